"""Cells, RNN and Bidirectional against loops, Flax NNX and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 3)).astype(np.float32)
CELLS = ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"]
every_cell = pytest.mark.parametrize("kind", CELLS)


def close(actual, desired, tolerance=1e-5):
    actual, desired = np.asarray(actual), np.asarray(desired)
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def random_bias(key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


def cell(kind, framework=nnx, seed=0):
    rngs = framework.Rngs(seed)
    return getattr(framework, kind)(3, 4, bias_init=random_bias, rngs=rngs)


def looped(cell, x, steps=None):
    """What an RNN makes of one sequence (time, features): last carry and outputs."""
    carry, outputs = cell.initialize_carry(x.shape[1:]), []
    for row in x[:steps]:
        carry, y = cell(carry, row)
        outputs.append(y)
    return carry, jnp.stack(outputs) if outputs else jnp.zeros((0, 4))


def close_row(carry, row, wanted):
    jax.tree.map(lambda a, b: close(a[row], b), carry, wanted)


# ------------------------------------------------------------- against a Python loop


@every_cell
def test_an_rnn_is_a_loop_over_its_cell(kind):
    model = nnx.RNN(cell(kind), return_carry=True)
    carry, y = model(X)
    for row in range(2):
        wanted, outputs = looped(model.cell, X[row])
        close(y[row], outputs)
        close_row(carry, row, wanted)


@every_cell
@pytest.mark.parametrize("lengths", [(5, 3), (0, 1)])
def test_the_carry_is_the_one_after_so_many_steps(kind, lengths):
    model = nnx.RNN(cell(kind), return_carry=True)
    carry, y = model(X, seq_lengths=jnp.array(lengths))
    assert y.shape == (2, 5, 4)
    for row, length in enumerate(lengths):
        wanted, outputs = looped(model.cell, X[row], length)
        close_row(carry, row, wanted)
        close(y[row, :length], outputs)


@every_cell
@pytest.mark.parametrize("keep_order", [False, True])
@pytest.mark.parametrize("lengths", [None, (5, 3)])
def test_reverse_goes_from_the_last_step_that_counts_to_the_first(
    kind, keep_order, lengths
):
    model = nnx.RNN(cell(kind), reverse=True, keep_order=keep_order)
    carry, y = model(
        X,
        return_carry=True,
        seq_lengths=None if lengths is None else jnp.array(lengths),
    )
    for row, length in enumerate(lengths or (5, 5)):
        wanted, outputs = looped(model.cell, X[row, :length][::-1])
        close(y[row, :length], outputs[::-1] if keep_order else outputs)
        close_row(carry, row, wanted)


@every_cell
def test_time_may_be_the_first_axis_or_the_only_one(kind):
    model = nnx.RNN(cell(kind))
    y = model(X)
    close(model(X.swapaxes(0, 1), time_major=True).swapaxes(0, 1), y)
    close(model(X[0]), y[0])
    close(model(X[None]), y[None])
    lengths = jnp.array([5, 2])
    options = {"seq_lengths": lengths, "return_carry": True, "reverse": True}
    carry, y = model(X, **options)
    carry_major, y_major = model(X.swapaxes(0, 1), time_major=True, **options)
    jax.tree.map(close, carry_major, carry)
    close(y_major.swapaxes(0, 1), y)


def test_an_initial_carry_goes_on_where_another_call_ended():
    model = nnx.RNN(cell("LSTMCell"), return_carry=True)
    carry, first = model(X[:, :2])
    _, second = model(X[:, 2:], initial_carry=carry)
    close(jnp.concatenate([first, second], axis=1), model(X)[1])


@every_cell
def test_the_gradient_is_that_of_the_loop(kind):
    model = nnx.RNN(cell(kind))

    def loss(model):
        return (model(X) ** 2).sum()

    def loop_loss(model):
        return sum((looped(model.cell, row)[1] ** 2).sum() for row in X)

    grads, wanted = nnx.grad(loss)(model), nnx.grad(loop_loss)(model)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), grads, wanted)


def test_an_eager_call_traces_once():
    traces = []

    class Counting(nnx.SimpleCell):
        def __call__(self, carry, inputs):
            traces.append(1)
            return super().__call__(carry, inputs)

    model = nnx.RNN(Counting(3, 4, rngs=nnx.Rngs(0)))
    model(X)
    first = len(traces)
    for _ in range(3):
        model(X)
    assert len(traces) == first


class Noisy(nnx.RNNCellBase):
    """Dropout of the hidden state, and a count of the steps."""

    def __init__(self):
        self.hidden_features = 3
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))
        self.steps = nnx.Variable(jnp.array(0))

    def __call__(self, carry, inputs):
        self.steps.value += 1
        return carry, self.dropout(jnp.ones_like(inputs))


def test_each_step_changes_the_state_of_the_cell():
    model = nnx.RNN(Noisy())
    y = model(jnp.ones((20, 3)))
    assert model.cell.steps.value == 20 and len({*map(tuple, y.tolist())}) > 1
    wanted = Noisy()
    close(y, [wanted.dropout(jnp.ones(3)) for _ in range(20)])


def test_streams_that_are_broadcast_give_each_step_the_same():
    model = nnx.RNN(Noisy(), broadcast_rngs="dropout")
    first, second = model(jnp.ones((20, 3))), model(jnp.ones((20, 3)))
    assert (first == first[0]).all() and (second == second[0]).all()
    assert model.cell.steps.value == 40
    wanted = Noisy()
    close(first[0], wanted.dropout(jnp.ones(3)))
    close(second[0], wanted.dropout(jnp.ones(3)))


def test_state_axes_give_each_step_its_own_variables():
    class Stepwise(nnx.RNNCellBase):
        hidden_features = 3

        def __init__(self):
            self.scale = nnx.Param(jnp.arange(5.0))

        def __call__(self, carry, inputs):
            return carry, inputs * self.scale.value

    model = nnx.RNN(Stepwise(), state_axes={nnx.Param: 0, ...: nnx.Carry})
    close(model(X), X * jnp.arange(5.0)[:, None])


# ------------------------------------------------------------- against Flax


@every_cell
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reverse": True},
        {"reverse": True, "keep_order": True},
        {"time_major": True},
        {"seq_lengths": (5, 3)},
        {"seq_lengths": (2, 1), "reverse": True, "keep_order": True},
    ],
    ids=str,
)
def test_rnn_as_flax(oracle, kind, options):
    flax_nnx = oracle("flax.nnx")
    options = {k: jnp.array(v) if k == "seq_lengths" else v for k, v in options.items()}
    x = X.swapaxes(0, 1) if options.get("time_major") else X
    ours, theirs = (
        framework.RNN(cell(kind, framework), return_carry=True)(x, **options)
        for framework in (nnx, flax_nnx)
    )
    jax.tree.map(lambda a, b: close(a, b, 1e-6), ours, theirs)


@pytest.mark.parametrize("lengths", [None, (5, 2)])
def test_bidirectional_as_flax(oracle, lengths):
    flax_nnx = oracle("flax.nnx")
    lengths = None if lengths is None else jnp.array(lengths)
    ours, theirs = (
        framework.Bidirectional(
            framework.RNN(cell("LSTMCell", framework)),
            framework.RNN(cell("GRUCell", framework, seed=1)),
            return_carry=True,
        )(X, seq_lengths=lengths)
        for framework in (nnx, flax_nnx)
    )
    jax.tree.map(lambda a, b: close(a, b, 1e-6), ours, theirs)


def test_exchanged_directions_are_exchanged_networks():
    one, other = nnx.RNN(cell("GRUCell")), nnx.RNN(cell("GRUCell", seed=1))
    model = nnx.Bidirectional(one, other)
    lengths = jnp.array([5, 3])
    y = model(X, seq_lengths=lengths, reverse=True, keep_order=True)
    swapped = nnx.Bidirectional(other, one)(X, seq_lengths=lengths)
    wanted = jnp.concatenate([swapped[..., 4:], swapped[..., :4]], axis=-1)
    for row, length in enumerate([5, 3]):
        close(y[row, :length], wanted[row, :length])
        flipped = model(X, seq_lengths=lengths, reverse=True)
        close(flipped[row, :length], wanted[row, :length][::-1])


# ------------------------------------------------------------- against PyTorch


def torch_rnn(oracle, kind, bidirectional=False):
    """A network of PyTorch's; its weights with gates in rows, one pair a direction."""
    torch = oracle("torch")
    torch.manual_seed(0)
    return torch, getattr(torch.nn, kind)(
        3, 4, batch_first=True, bidirectional=bidirectional
    )


def copy_weights(layer, net, kind, suffix=""):
    weights = {name: x.detach().numpy() for name, x in net.named_parameters()}
    wi, wh, bi, bh = (
        weights[f"{name}_l0{suffix}"]
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    if kind == "GRU":  # ours has one bias for what the reset gate does not scale
        bh = np.where(np.arange(12) < 8, bh, 0)
        layer.dense_i.bias[...] = jnp.asarray(bi + bh)
    else:
        (layer.dense_h if kind == "LSTM" else layer.dense_i).bias[...] = bi + bh
    layer.dense_i.kernel[...] = jnp.asarray(wi.T)
    layer.dense_h.kernel[...] = jnp.asarray(wh.T)


@pytest.mark.parametrize(
    "kind, ours",
    [("LSTM", "OptimizedLSTMCell"), ("GRU", "GRUCell"), ("RNN", "SimpleCell")],
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_as_torch(oracle, kind, ours, bidirectional):
    torch, net = torch_rnn(oracle, kind, bidirectional)
    if kind == "GRU":
        with torch.no_grad():  # see copy_weights
            for name, bias in net.named_parameters():
                if name.startswith("bias_hh"):
                    bias[8:] = 0
    layers = [nnx.RNN(cell(ours)) for _ in range(2)]
    for layer, suffix in zip(layers, ("", "_reverse"), strict=True):
        if bidirectional or not suffix:
            copy_weights(layer.cell, net, kind, suffix)
    model = nnx.Bidirectional(*layers) if bidirectional else layers[0]
    x = torch.tensor(X, requires_grad=True)
    y, _ = net(x)
    (y**2).sum().backward()
    close(model(X), y.detach().numpy())
    grad = jax.grad(lambda x: (model(x) ** 2).sum())(X)
    close(grad, x.grad.numpy())


# ------------------------------------------------------------- ConvLSTM


def test_a_conv_lstm_of_one_pixel_is_an_lstm():
    conv = nnx.ConvLSTMCell(3, 4, (1,), bias_init=random_bias, rngs=nnx.Rngs(0))
    dense = nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0))
    dense.dense_i.kernel[...] = conv.conv_i.kernel[0]
    dense.dense_h.kernel[...] = conv.conv_h.kernel[0]
    dense.dense_h.bias[...] = conv.conv_h.bias[...]
    y = nnx.RNN(conv)(X[:, :, None])
    close(y[:, :, 0], nnx.RNN(dense)(X))


@pytest.mark.parametrize("size", [3, (3,), (3, 2), (1, 2, 3)])
def test_a_conv_lstm_over_any_number_of_spatial_axes(size):
    rank = 1 if isinstance(size, int) else len(size)
    layer = nnx.ConvLSTMCell(2, 3, size, rngs=nnx.Rngs(0))
    assert layer.num_feature_axes == rank + 1
    x = jnp.ones((2, 4, *range(5, 5 + rank), 2))
    (memory, hidden), y = nnx.RNN(layer, return_carry=True)(x)
    assert y.shape == (*x.shape[:-1], 3)
    assert memory.shape == hidden.shape == y[:, 0].shape
    close(hidden, y[:, -1])


# ------------------------------------------------------------- carries


@every_cell
def test_initial_carries(kind):
    layer = cell(kind)
    carry = layer.initialize_carry((2, 7, 3))
    assert all((part == 0).all() for part in jax.tree.leaves(carry))
    assert {part.shape for part in jax.tree.leaves(carry)} == {(2, 7, 4)}
    rngs = nnx.Rngs(carry=1)
    carry = layer.initialize_carry((2, 3), rngs, carry_init=random_bias)
    parts = jax.tree.leaves(carry)
    assert rngs.carry.count[...] == len(parts)
    keys = nnx.Rngs(carry=1)
    for part in parts:
        close(part, random_bias(keys.carry(), (2, 4), jnp.float32))


def test_a_kept_stream_draws_carries():
    layer = nnx.LSTMCell(
        3, 4, carry_init=random_bias, keep_rngs=True, rngs=nnx.Rngs(params=0, carry=1)
    )
    stream = nnx.Rngs(params=0, carry=1).carry.fork()
    memory, hidden = layer.initialize_carry((2, 3))
    close(memory, random_bias(stream(), (2, 4), jnp.float32))
    close(hidden, random_bias(stream(), (2, 4), jnp.float32))


# ------------------------------------------------------------- mistakes


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="carry_init needs random keys.*rngs=nnx.Rngs"):
        cell("GRUCell").initialize_carry((2, 3), carry_init=random_bias)
    with pytest.raises(TypeError, match="nnx.RNN needs a cell, such as nnx.GRUCell"):
        nnx.RNN(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="rngs must be an nnx.Rngs.*got int"):
        nnx.RNN(cell("GRUCell"), rngs=0)
    model = nnx.RNN(cell("GRUCell"))
    with pytest.raises(ValueError, match=r"shape \(3,\) lack an axis.*inputs\[None\]"):
        model(jnp.ones(3))
    with pytest.raises(ValueError, match=r"seq_lengths must be from 0 to 5.*1 to 6"):
        model(X, seq_lengths=jnp.array([1, 6]))
    with pytest.raises(ValueError, match=r"seq_lengths must be integers of shape \(2,"):
        model(X, seq_lengths=jnp.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"wants x to have sizes \(3,\).*got \(2,\)"):
        model(jnp.ones((1, 5, 2)))
    with pytest.raises(NotImplementedError, match="Bare needs a method __call__"):

        class Bare(nnx.RNNCellBase):
            hidden_features = 3

        nnx.RNN(Bare())(X)


def test_under_jit_a_wrong_length_gives_nan():
    model = nnx.RNN(cell("GRUCell"), return_carry=True)
    call = nnx.jit(lambda model, lengths: model(X, seq_lengths=lengths))
    carry, _ = call(model, jnp.array([6, 5]))
    assert np.isnan(carry[0]).all() and np.isfinite(carry[1]).all()


@every_cell
@pytest.mark.parametrize("kind_of_inputs", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "policy",
    [
        nnx.Policy(dtype=jnp.bfloat16),
        nnx.Policy(param_dtype=jnp.bfloat16),
        nnx.Policy(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
    ],
    ids=["computes", "holds", "both"],
)
def test_low_precision(kind, kind_of_inputs, policy):
    layer = getattr(nnx, kind)(3, 4, policy=policy, rngs=nnx.Rngs(0))
    y = nnx.RNN(layer)(jnp.asarray(X, kind_of_inputs))
    exact = getattr(nnx, kind)(3, 4, rngs=nnx.Rngs(0))
    nnx.update(exact, jax.tree.map(jnp.float32, nnx.state(layer)))
    close(np.float32(y), nnx.RNN(exact)(X), 0.1)


def test_lengths_of_any_integer_type():
    model = nnx.RNN(cell("GRUCell"), return_carry=True)
    x = jnp.ones((2, 300, 3))
    carry, _ = model(x, seq_lengths=np.array([200, 255], np.uint8))
    wanted, _ = model(x, seq_lengths=jnp.array([200, 255]))
    close(carry, wanted)
    call = nnx.jit(lambda model, n: model(x, seq_lengths=n)[0])
    close(call(model, jnp.array([200, 255], jnp.uint8)), wanted)
