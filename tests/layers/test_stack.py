"""Stack, stack and unstack: equal layers as one Module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any, scale: Any = 1.0, *, shift: Any = 0.0) -> Any:
        return self.dropout(self.norm(nnx.relu(self.linear(x)))) * scale + shift


def x() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, 4))


def stacked(n: int = 5, **options: Any) -> nnx.Stack:
    return nnx.Stack(Block, n, rngs=nnx.Rngs(0), **options)


def assert_equal(left: Any, right: Any) -> None:
    assert nnx.graphdef(left) == nnx.graphdef(right)
    pairs = zip(*(jax.tree.leaves(nnx.state(m)) for m in (left, right)), strict=True)
    for ours, theirs in pairs:
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"remat": True}, {"unroll": 2}, {"unroll": True}]
)
def test_a_stack_does_what_the_list_of_its_layers_does(options: Any) -> None:
    model = stacked(**options)
    layers = list(model)
    assert len(layers) == len(model) == 5
    expected = x()
    for layer in layers:
        expected = layer(expected, 2.0, shift=0.5)
    np.testing.assert_allclose(model(x(), 2.0, shift=0.5), expected, rtol=1e-6)
    for layer, own in zip(layers, model, strict=True):
        assert_equal(own, layer)  # statistics and random counts are each layer's own
    means = model.layers.norm.mean.value
    assert len(np.unique(np.asarray(means).round(6), axis=0)) == 5


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_are_those_of_the_list(remat: bool) -> None:
    class Smooth(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(4, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return x + self.dropout(jnp.tanh(self.linear(x)))

    model = nnx.Stack(Smooth, 3, rngs=nnx.Rngs(0), remat=remat)
    layers = nnx.List(list(model))

    def loss(model: Any) -> Any:
        y = x()
        for layer in model if isinstance(model, nnx.List) else [model]:
            y = layer(y)
        return (y**2).mean()

    ours, theirs = nnx.grad(loss)(model), nnx.grad(loss)(layers)
    expected = jax.tree.map(lambda *xs: jnp.stack(xs), *(theirs[n] for n in range(3)))
    for own, one in zip(
        jax.tree.leaves(ours["layers"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(own, one, rtol=1e-5, atol=1e-6)


def test_training_a_stack_decreases_its_loss_and_traces_once() -> None:
    model = stacked(4)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    traces = []

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any) -> Any:
        traces.append(1)
        loss, grads = nnx.value_and_grad(lambda m: ((m(x) - 1) ** 2).mean())(model)
        optimizer.update(grads)
        return loss

    losses = [step(model, optimizer, x()) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert len(traces) == 1


def test_equal_calls_without_jit_trace_once() -> None:
    traces = []

    class Counting(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            traces.append(1)
            return self.linear(x)

    for seed in range(3):
        nnx.Stack(Counting, 3, rngs=nnx.Rngs(seed))(x())
    assert len(traces) == 1


def test_layers_draw_different_masks_and_parameters() -> None:
    model = stacked(4)
    kernels = np.asarray(model.layers.linear.kernel.value)
    assert len(np.unique(kernels.reshape(4, -1), axis=0)) == 4
    keys = jax.random.key_data(model.layers.dropout.rngs.key.value)
    assert len(np.unique(np.asarray(keys), axis=0)) == 4


def test_indexing_gives_copies_of_layers_and_stacks_of_some() -> None:
    model = stacked(5)
    model.eval()
    first, last = model[0], model[-1]
    some = model[1:4]
    assert isinstance(some, nnx.Stack)
    assert len(some) == 3 and len(model) == 5
    y = x()
    for layer in [first, *some, last]:
        y = layer(y)
    np.testing.assert_allclose(model(x()), y, rtol=1e-6)
    first.linear.kernel.value *= 0
    assert model[0].linear.kernel.value.any()
    with pytest.raises(IndexError):
        model[5]


def test_setting_a_layer_writes_its_values() -> None:
    model, layer = stacked(3), Block(nnx.Rngs(7))
    before = model[0]
    model[1] = layer
    assert_equal(model[1], layer)
    assert_equal(model[0], before)
    with pytest.raises(ValueError, match=r"the layer differs .* a Linear .* a Block"):
        model[1] = nnx.Linear(4, 4, rngs=nnx.Rngs(0))


def test_from_layers_and_back() -> None:
    layers = [Block(nnx.Rngs(seed)) for seed in range(3)]
    model = nnx.Stack.from_layers(layers, remat=True)
    assert model.remat is True
    for own, layer in zip(nnx.unstack(model.layers), layers, strict=True):
        assert_equal(own, layer)


def test_train_and_eval_reach_the_layers() -> None:
    model = stacked(3)
    model.eval()
    before = model.layers.norm.mean.value
    np.testing.assert_array_equal(model(x()), model(x()))
    np.testing.assert_array_equal(model.layers.norm.mean.value, before)


def test_no_layers() -> None:
    with pytest.raises(ValueError, match="at least one layer, not 0"):
        stacked(0)
    with pytest.raises(ValueError, match="at least one Module"):
        nnx.stack([])


def test_stack_keeps_sharing_metadata_and_static_values() -> None:
    class Tied(nnx.Module):
        def __init__(self, seed: int):
            self.a = nnx.Param(jnp.full((2,), seed), out_sharding=("x",), note="n")
            self.b = self.a
            self.name = "tied"

    model = nnx.stack([Tied(1), Tied(2)])
    assert model.a is model.b
    assert model.a.out_sharding == (None, "x")
    assert (model.a.note, model.name) == ("n", "tied")
    first, second = nnx.unstack(model)
    assert first.a is first.b and first.a.out_sharding == ("x",)
    np.testing.assert_array_equal(second.a.value, [2, 2])


def test_stack_names_where_modules_differ() -> None:
    linears = [nnx.Linear(2, n, rngs=nnx.Rngs(0)) for n in (3, 4)]
    with pytest.raises(ValueError, match=r"'out_features' is 3 in the first and 4 in"):
        nnx.stack(linears)
    with pytest.raises(ValueError, match=r"arrays of one shape.*\(2,\), \(3,\)"):
        nnx.stack([nnx.Param(jnp.ones(2)), nnx.Param(jnp.ones(3))])


def test_unstack_names_what_does_not_fit() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"'kernel' has the shape \(2, 3\).*needs 3"):
        nnx.unstack(model)
    with pytest.raises(ValueError, match="holds no arrays"):
        nnx.unstack(nnx.Module())


def test_an_ensemble_under_vmap() -> None:
    models = [nnx.Linear(2, 3, rngs=nnx.Rngs(seed)) for seed in range(4)]
    forward = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
    expected = jnp.stack([model(jnp.ones(2)) for model in models])
    np.testing.assert_allclose(forward(nnx.stack(models), jnp.ones(2)), expected)


def test_compile_time_does_not_grow_with_the_number_of_layers() -> None:
    sizes = []
    for n in (2, 40):
        lowered = nnx.jit(lambda model, x: model(x)).lower(stacked(n), x())
        sizes.append(len(lowered.as_text().splitlines()))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("over", ["vmap", "scan"])
def test_each_example_may_draw_its_own_masks(over: str) -> None:
    model = nnx.Stack(lambda rngs: nnx.Dropout(0.5, rngs=rngs), 2, rngs=nnx.Rngs(0))
    options: Any = {"in_axes": (None, 0), "out_axes": 0, "split_rngs": True}
    each = getattr(nnx, over)(lambda model, x: model(x), **options)
    masks = np.asarray(each(model, jnp.ones((4, 32)))) > 0
    assert len(np.unique(masks, axis=0)) == 4
    np.testing.assert_array_equal(model.layers.rngs.count.value, [1, 1])


def test_layers_without_arrays() -> None:
    model = nnx.Stack(lambda rngs: nnx.Dropout(0.5), 3, rngs=nnx.Rngs(0))
    rngs = nnx.Rngs(1)
    out = model(jnp.ones(64), rngs=rngs)
    assert set(np.unique(out)) <= {0.0, 8.0}
    assert rngs.default.count.value == 3


def test_a_filter_that_matches_no_stream() -> None:
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    each = nnx.vmap(lambda x: dropout(x), split_rngs="dropuot")
    with pytest.raises(ValueError, match="split_rngs='dropuot' matches no random"):
        each(jnp.ones((2, 3)))


def test_layers_instead_of_a_function_that_makes_one() -> None:
    layers = [nnx.Linear(2, 2, rngs=nnx.Rngs(seed)) for seed in range(2)]
    for given in (layers, layers[0]):
        with pytest.raises(TypeError, match=r"makes a layer.*nnx\.Stack\.from_layers"):
            nnx.Stack(given, 2, rngs=nnx.Rngs(0))  # type: ignore[arg-type]


def test_flags_reach_the_layers_as_they_are() -> None:
    model = nnx.Stack(lambda rngs: nnx.Dropout(0.5, rngs=rngs), 3, rngs=nnx.Rngs(0))
    x = jnp.ones(8)
    for wrap in (lambda f: f, nnx.jit):
        off = wrap(lambda x: model(x, deterministic=True))
        assert off(x).tolist() == [1.0] * 8

    class Power(nnx.Module):
        def __call__(self, x: Any, n: int, *, flag: bool = False) -> Any:
            for _ in range(n):
                x = x * 2 if flag else x + 1
            return x

    powers = nnx.Stack(lambda rngs: Power(), 2, rngs=nnx.Rngs(0))
    assert powers(x[0], 3).item() == 7.0 and powers(x[0], 2, flag=True).item() == 16.0


def test_modules_that_share_a_variable_are_not_stacked() -> None:
    shared = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    class Layer(nnx.Module):
        def __init__(self) -> None:
            self.inner = shared

    match = r"'inner\.bias' of number 1 is the same Param as in number 0.*nnx\.clone"
    for make in (nnx.stack, nnx.Stack.from_layers):
        with pytest.raises(ValueError, match=match):
            make([Layer(), Layer()])
    layers = nnx.stack([nnx.clone(Layer()) for _ in range(2)])
    assert layers.inner.kernel.shape == (2, 2, 2)


# View: modes are set in the layers of a Stack as in single layers


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x, is_causal=False):
        return x + self.drop(self.norm(self.attention(x, is_causal=is_causal)))


EVAL = {"deterministic": True, "use_running_average": True}


def test_view_makes_a_cache_for_each_layer():
    layers = nnx.Stack(Decoder, 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    whole = nnx.view(layers, **EVAL)(x, is_causal=True)
    cached = nnx.view(layers, **EVAL, decode=True, batch_size=2, max_length=5)
    steps = [cached(x[:, n : n + 1]) for n in range(5)]
    np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, rtol=1e-5, atol=1e-6)
    assert cached.layers.attention.cached_key.shape == (3, 2, 5, 2, 2)
    assert cached.layers.norm.scale is layers.layers.norm.scale
    assert not layers.layers.attention.decode and not layers.layers.drop.deterministic


def test_view_of_stacks_in_stacks_and_of_some_layers():
    inner = functools.partial(nnx.Stack, Decoder, 2)
    model = nnx.List([nnx.Stack(lambda rngs: inner(rngs=rngs), 3, rngs=nnx.Rngs(0))])
    x = jnp.ones((1, 1, 4))
    cached = nnx.view(model, **EVAL, decode=True, batch_size=1, max_length=4)
    key = cached[0].layers.layers.attention.cached_key
    assert key.shape == (3, 2, 1, 4, 2, 2) and cached[0](x).shape == x.shape
    path = nnx.PathContains("drop")
    view = nnx.view(model, only=path, deterministic=True)[0].layers.layers
    assert view.drop.deterministic and not view.attention.decode
    with pytest.raises(ValueError, match="no Module takes the mode deterministic"):
        nnx.view(model, only=nnx.PathContains("norm"), deterministic=True)


def test_slices_are_written():
    layers = nnx.Stack(Block, 4, rngs=nnx.Rngs(0))
    other = nnx.clone(layers)
    layers[1:3] = other[2:]
    np.testing.assert_array_equal(layers[1].linear.kernel, other[2].linear.kernel)
    np.testing.assert_array_equal(layers[2].linear.kernel, other[3].linear.kernel)
    np.testing.assert_array_equal(layers[3].linear.kernel, other[3].linear.kernel)
    layers[::-1] = other
    np.testing.assert_array_equal(layers[0].linear.kernel, other[3].linear.kernel)
    for wrong in (other, other[0]):
        with pytest.raises(ValueError, match="a Stack of 2 layers belongs there"):
            layers[:2] = wrong


@pytest.mark.parametrize("remat", [False, True])
def test_layers_that_return_another_shape_are_described(remat):
    layers = nnx.Stack(
        lambda rngs: nnx.Linear(3, 5, rngs=rngs), 3, rngs=nnx.Rngs(0), remat=remat
    )
    text = r"layer of nnx.Stack gets float32\[2,3\] and returns float32\[2,5\]: each"
    with pytest.raises(TypeError, match=text):
        layers(jnp.ones((2, 3)))
