"""Corners of the tools for open models: what a review of them has broken."""

import copy
import functools
import pickle
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx


def linear(n: int = 2, m: int = 2, seed: int = 0, **options: Any) -> nnx.Linear:
    return nnx.Linear(n, m, rngs=nnx.Rngs(seed), **options)


def doubled(next: Any, args: Any, kwargs: Any, call: Any) -> Any:
    return 2 * next(*args, **kwargs)


@pytest.fixture
def x() -> Any:
    return jnp.arange(1.0, 3.0)


# Interceptors and compiled programs


def test_a_hook_is_on_one_of_two_equal_models(x):
    a, b = linear(), linear()
    step = nnx.jit(lambda m, x: m(x))
    difference = nnx.jit(lambda m, n, x: m(x) - n(x))
    remove = nnx.hook(a, doubled)
    np.testing.assert_allclose(step(a, x), 2 * step(b, x), rtol=1e-6)
    np.testing.assert_allclose(difference(a, b, x), -difference(b, a, x), rtol=1e-6)
    assert difference(a, b, x).any()
    remove()
    np.testing.assert_array_equal(step(a, x), step(b, x))


class Inner(nnx.Module):
    def __call__(self, x):
        return x + 1.0


class Middle(nnx.Module):
    def __init__(self):
        self.inner = Inner()

    @nnx.jit
    def __call__(self, x):
        return self.inner(x)


class Outer(nnx.Module):
    def __init__(self, middle):
        self.middle = middle

    def __call__(self, x):
        return self.middle(x)


def test_paths_in_compiled_methods_begin_at_the_first_call():
    middle = Middle()
    outer = Outer(middle)
    with nnx.intercept(doubled, only=lambda path, _: path == ("inner",)):
        for _ in range(2):
            assert middle(1.0) == 4 and outer(1.0) == 2


def test_a_policy_is_seen_by_compiled_functions():
    make = nnx.jit(lambda: linear())
    assert make().kernel.dtype == jnp.float32
    with nnx.dtype_policy(param=jnp.bfloat16):
        assert make().kernel.dtype == jnp.bfloat16
        assert linear(policy=nnx.Policy()).kernel.dtype == jnp.float32
        with nnx.dtype_policy(compute=jnp.float16):
            assert (
                linear().kernel.dtype == jnp.float32 and linear().dtype == jnp.float16
            )
    half = nnx.Policy(param_dtype=jnp.bfloat16)
    with nnx.dtype_policy(half, compute=jnp.float16):
        assert (linear().param_dtype, linear().dtype) == (jnp.bfloat16, jnp.float16)
    assert make().kernel.dtype == jnp.float32


def test_checks_in_functions_that_jax_has_traced_before():
    body = jax.checkpoint(lambda x: nnx.error_if(x, (x < 0).any(), "negative"))
    count = nnx.Dict(n=nnx.Variable(jnp.zeros(())))

    def one(count, x):
        count.n += 1
        return body(x).sum()

    def other(count, x):
        count.n += 2
        return body(x).sum()

    nnx.jit(one)(count, jnp.ones(3))
    step = nnx.jit(other)
    step(count, jnp.ones(3))
    inner = nnx.jit(lambda x: nnx.error_if(x, (x < 0).any(), "negative"))
    nested = nnx.jit(lambda count, x: other(count, inner(x)))
    inner(jnp.ones(3))
    for failing in (step, nested):
        with pytest.raises(ValueError, match="^negative$"):
            failing(count, -jnp.ones(3))
    assert count.n[...] == 3


# Patched classes


def test_classes_come_back_as_they_were():
    class A(nnx.Module):
        def __call__(self, x):
            return x

    class B(nnx.Module):
        pass

    class C(A, B):
        def __call__(self, x):
            return x + 1

    class Mixin:
        def __call__(self, x):
            return x

    class D(Mixin, nnx.Module):
        pass

    before = C.__call__, A.__call__, nnx.Linear.__call__
    for _ in range(3):
        with nnx.intercept(doubled):
            assert C()(1) == 4 and D()(1) == 2

            class E(nnx.Module):
                def __call__(self, x):
                    return x

            assert E()(1) == 2
    assert (C.__call__, A.__call__, nnx.Linear.__call__) == before
    assert "__call__" not in vars(D) and E()(1) == 1
    remove = nnx.hook(A(), doubled)
    replaced = lambda self, x: 100  # noqa: E731
    A.__call__ = replaced
    remove()
    assert A.__call__ is replaced


def test_methods_by_other_names_and_held_from_before(x):
    class A(nnx.Module):
        def __call__(self, x):
            return x

        def named(self, module, call, function, about):
            return module + call + function + about

    class B(A):
        run = A.__call__

    a = A()
    early = nnx.jit(a)
    with nnx.intercept(doubled):
        late = nnx.jit(a)
        assert nnx.jit(A())(1.0) == 2 and early(1.0) == 2 and B().run(1.0) == 2
        assert a.named(module=1, call=2, function=3, about=4) == 20
    assert late(1.0) == 1
    with nnx.intercept(lambda next, args, kwargs, call: 3 * next(*args, **kwargs)):
        assert late(1.0) == 3 and early(1.0) == 3


def test_contexts_that_end_out_of_order(x):
    layer = linear()

    def generator():
        with nnx.intercept(doubled):
            yield

    y, first = layer(x), generator()
    next(first)
    with nnx.intercept(lambda next, args, kwargs, call: 3 * next(*args, **kwargs)):
        np.testing.assert_allclose(layer(x), 6 * y, rtol=1e-6)
        first.close()
        np.testing.assert_allclose(layer(x), 3 * y, rtol=1e-6)
    np.testing.assert_array_equal(layer(x), y)
    nnx.hook(linear(), doubled)()
    np.testing.assert_array_equal(layer(x), y)


def test_paths_of_modules_made_on_the_way():
    class Model(nnx.Module):
        def __init__(self):
            self.kids = []

        def __call__(self, x):
            Inner()(x)
            self.kids.append(Inner())
            return self.kids[-1](x)

    paths = []

    def note(next, args, kwargs, call):
        paths.append(call.path)
        return next(*args, **kwargs)

    model = Model()
    with nnx.intercept(note, only=Inner):
        model(1.0)
        model(1.0)
    assert paths == [(), ("kids", 0), (), ("kids", 1)]


def test_writing_under_a_read_interceptor():
    layer = linear()
    layer.bias[...] = 1
    with nnx.intercept_variables(get=lambda variable, value: 2 * value):
        layer.bias += 1
        layer.bias[0] += 1  # reads `v[0]`, as the assignment says
    assert layer.bias.value.tolist() == [5, 2]


def test_other_threads_see_a_hook_in_what_jax_has_kept():
    layer = nnx.Dict(call=Inner())
    inner = jax.jit(lambda x: layer.call(x))
    results = []

    def run():
        results.append(nnx.jit(lambda x: inner(x) + 0.0 * len(results))(1.0))

    run()
    remove = nnx.hook(layer.call, doubled)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    remove()
    run()
    assert [float(x) for x in results] == [2, 4, 2]


def test_check_nans_as_a_decorator(x):
    layer = linear()
    checked = nnx.debug.check_nans()(lambda: layer(x))
    checked()
    layer.bias[...] = jnp.inf
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="Linear 'the root' returns NaN"):
            checked()


def test_a_retrace_by_an_interceptor_is_explained(x):
    step = nnx.jit(lambda m, x: m(x))
    layer = linear()
    step(layer, x)
    with nnx.intercept(doubled):
        step(layer, x)
    assert "interceptor 0: nothing -> " in nnx.debug.explain_retrace(step)


# Capture


def test_capture_leaves_everything_as_it_was():
    class Model(nnx.Module):
        def __init__(self):
            self.items = [nnx.Intermediate(jnp.zeros(1)), nnx.Param(jnp.ones(1))]
            self.a = self.b = nnx.Intermediate(jnp.zeros(1))

        def __call__(self, x):
            self.sow(nnx.Intermediate, "a", x)
            return x

    model = Model()
    held = model.items[0], model.items[1], model.a
    _, state = nnx.capture(model)(1.0)
    assert state["a"].value == (1.0,) and list(state) == ["a"]
    assert (model.items[0], model.items[1], model.a) == held
    assert model.a is model.b and model.items[1][0] == 1


# Selections


def test_at_a_place_of_a_shared_module():
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    model = nnx.Dict(a=dropout, b=dropout)
    changed = nnx.at(model, "b.rate").set(0.1)
    assert changed["b"].rate == 0.1 and changed["a"] is changed["b"]
    assert dropout.rate == 0.5
    param = nnx.Param(jnp.zeros(2))
    tied = nnx.Dict(a=param, b=param)
    assert nnx.at(tied, ["a", "b"]).count() == 1


def test_a_selection_that_fails_writes_nothing(x):
    model = nnx.Sequential(linear(), linear())
    nnx.parametrize(model, "layers[1].kernel", jnp.exp)
    kernels = nnx.select(model, nnx.PathContains("kernel"))
    before = model.layers[0].kernel.value
    with pytest.raises(ValueError, match=r"nothing was set: layers\[1\].kernel cannot"):
        kernels.apply(lambda w: w * 0)
    with pytest.raises(ValueError, match="nothing was set"):
        kernels.set_each([0, None])
    held = nnx.Dict(pair=(linear(), nnx.Param(x)), w=nnx.Param(x))
    with pytest.raises(ValueError, match="cannot change the tuple at 'pair'"):
        nnx.select(held, nnx.Linear).wrap(nnx.Sequential)
    np.testing.assert_array_equal(model.layers[0].kernel.value, before)


# States and files


def test_states_of_plain_and_parametrized_models_do_not_mix():
    plain, other = linear(), linear()
    nnx.parametrize(other, "kernel", jnp.exp)
    for target, source in ((plain, other), (other, plain)):
        with pytest.raises(ValueError, match="kernel shows a function of"):
            nnx.update(target, nnx.state(source))
    nnx.update(other, nnx.state(nnx.clone(other)))
    assert (other.kernel.value > 0).all()


def test_loading_shared_and_transformed_parameters():
    model = nnx.Dict(embed=linear(), head=linear(seed=1))
    model.head.kernel = model.embed.kernel
    w = np.full((2, 2), 3.0)
    flat = {"embed.kernel": w, "head.kernel": w, "embed.bias": w[0], "head.bias": w[0]}
    assert nnx.load_state(model, flat)
    assert model.head.kernel is model.embed.kernel and model.head.kernel[0, 0] == 3
    with pytest.raises(ValueError, match="transform has scale, but no path ends so"):
        nnx.load_state(model, flat, transform={"scale": np.transpose})
    held = nnx.Dict(w=nnx.Param(jnp.zeros(2)), pair=(jnp.zeros(2), jnp.zeros(2)))
    state = {"w": w[0], "pair": {0: w[0], 1: w[0]}}
    with pytest.raises(ValueError, match=r"cannot load 'pair\[0\]' in place: a tuple"):
        nnx.load_state(held, state)
    assert not held.w[...].any()


@pytest.mark.parametrize(
    "model",
    [
        nnx.Dict(a=nnx.Variable({"p": jnp.ones(2)})),
        nnx.Dict(a=nnx.Variable((jnp.ones(2, jnp.float8_e4m3fn), 1, "b"))),
        nnx.Dict(a=nnx.Variable((jax.random.key(3), jnp.ones(2)))),
        nnx.Dict(a=nnx.Variable((1, 2)), b=nnx.Variable(()), c=nnx.Variable(None)),
        nnx.Dict(t=(jnp.ones(2), jnp.zeros(3))),
        nnx.Dict(a=nnx.Variable(np.array(1j))),
        nnx.Dict(a=nnx.Param(jnp.ones((3, 0)))),
        nnx.Param(jnp.ones(2)),
        nnx.State({"a": nnx.Param(jnp.ones(2)), "b": 3}),
    ],
    ids=lambda model: repr(model)[:40].replace("\n", ""),
)
def test_files_hold_all_values(model, tmp_path):
    nnx.save(tmp_path / "m", model)
    loaded = nnx.load(tmp_path / "m", like=model)
    assert not nnx.diff(model, loaded)
    assert type(loaded) is type(model)


def test_a_file_has_one_value_at_a_name(tmp_path):
    model = nnx.Dict({1: nnx.Param(jnp.ones(1)), "1": nnx.Param(jnp.ones(1))})
    with pytest.raises(TypeError, match="two values at '1'"):
        nnx.save(tmp_path / "m", model)


# Whole models


def test_an_error_leaves_the_model_as_it_was():
    rngs = nnx.Rngs(0)
    held = nnx.Dict(pair=(linear(),), w=nnx.Param(jnp.ones(2)))
    with pytest.raises(ValueError, match="cannot change the tuple"):
        nnx.loraify(held, rank=1, rngs=rngs)
    assert not held.w.has_metadata("frozen")
    model = nnx.Dict(a=nnx.Embed(3, 2, rngs=rngs), b=linear())
    before, count = model.a.embedding.value, rngs.default.count.value
    with pytest.raises(ValueError):
        nnx.reinit(model, rngs, init=nnx.initializers.lecun_normal())
    np.testing.assert_array_equal(model.a.embedding.value, before)
    assert rngs.default.count.value == count


def test_cast_of_what_has_no_value_yet():
    lazy = linear(None)
    nnx.cast(lazy, jnp.bfloat16)
    lazy(jnp.ones(2))
    assert lazy.kernel.dtype == lazy.bias.dtype == jnp.bfloat16
    abstract = nnx.eval_shape(lambda: linear())
    nnx.cast(abstract, jnp.bfloat16)
    assert abstract.kernel.dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="no floating dtype"):
        nnx.cast(lazy, jnp.complex64)


def test_temporary_keeps_what_took_a_place():
    model = nnx.Dict(a=nnx.Param(jnp.ones(1)), kept=[nnx.Param(jnp.ones(1))])
    with nnx.temporary(model):
        model.a = new = nnx.Param(jnp.zeros(1))
        model.b = nnx.Param(jnp.zeros(1))
        model.kept[0] = nnx.Param(jnp.zeros(1))
    assert model.a is new and "b" not in model and len(model.kept) == 1


def test_diff_of_integers_and_of_values_with_one_repr():
    a, b = (nnx.Dict(n=nnx.Variable(jnp.array(n))) for n in (1, 2))
    assert nnx.diff(a, b) and not nnx.diff(a, b, atol=1)

    class Same:
        def __repr__(self):
            return "same"

    a, b = nnx.Dict(x=Same()), nnx.Dict(x=Same())
    assert nnx.diff(a, b).lines == {"x": "same -> another same"}


def test_partition_needs_parts():
    with pytest.raises(TypeError, match="not none"):
        nnx.combine()


# compact


class Compact(nnx.Module):
    def __init__(self, rngs):
        self.rngs = rngs
        self.given = linear()

    @nnx.compact
    def __call__(self, x):
        copies = copy.deepcopy(self.given), pickle.loads(pickle.dumps(self.given))
        shape = nnx.eval_shape(lambda: linear()).kernel.shape
        init = functools.partial(lambda *args: jax.nn.initializers.ones(*args))
        y = nnx.Linear(shape[0], 2, kernel_init=init)(x)
        return copies[0](y) + copies[1](y)


def test_compact_methods_that_copy_modules(x):
    model = Compact(nnx.Rngs(0))
    y = model(x)
    np.testing.assert_array_equal(model(x), y)
    assert list(nnx.state(model, nnx.Param)) == ["Linear_1", "given"]


def test_a_failed_call_takes_back_what_inner_calls_made(x):
    class Inner(nnx.Module):
        @nnx.compact
        def __call__(self, x):
            return nnx.Linear(2, 2)(x)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs
            self.inner = Inner()

        @nnx.compact
        def __call__(self, x):
            self.inner(x)
            raise ZeroDivisionError

    model = Model(nnx.Rngs(0))
    before = nnx.graphdef(model)
    with pytest.raises(ZeroDivisionError):
        model(x)
    assert nnx.graphdef(model) == before and model.rngs.default.count[...] == 0


def test_constructors_of_mixins_and_dataclasses():
    import dataclasses

    class Mixin:
        def __init__(self, size):
            self.size = size

    class Checked(nnx.Module):
        def __post_init_check__(self):
            if self.size < 0:
                raise ValueError("negative")

    class Mixed(Mixin, Checked):
        pass

    @dataclasses.dataclass(eq=False)
    class Data(Checked):
        size: int

    for cls in (Mixed, Data):
        cls(1)
        with pytest.raises(ValueError, match="negative"):
            cls(-1)


# What a newcomer stumbled over


def test_lora_beside_attention(x):
    rngs = nnx.Rngs(0)
    model = nnx.Dict(attention=nnx.MultiHeadAttention(2, 4, rngs=rngs))
    inputs = jax.random.normal(jax.random.key(0), (1, 3, 4))
    model.attention.decode = False
    before = model.attention(inputs)
    nnx.loraify(model, rank=2, rngs=rngs)
    np.testing.assert_array_equal(model.attention(inputs), before)
    assert model.attention.out.lora_a.shape == (2, 2, 2)  # heads, size, rank
    grads = nnx.grad(lambda m: (m.attention(inputs) ** 2).sum())(model)
    assert {path[-1] for path in nnx.to_flat_state(grads).paths} == {"lora_a", "lora_b"}
    nnx.select(model, nnx.PathContains("lora_b")).apply(lambda b: b + 0.1)
    adapted = model.attention(inputs)
    assert np.abs(adapted - before).max() > 1e-3
    nnx.merge_lora(model)
    np.testing.assert_allclose(model.attention(inputs), adapted, rtol=1e-4, atol=1e-6)


def test_lora_where_it_cannot_be():
    rngs = nnx.Rngs(0)
    tied = nnx.Dict(a=linear(), b=linear(seed=1))
    tied.b.kernel = tied.a.kernel
    nnx.loraify(tied, rank=1, rngs=rngs)
    before = tied.a.base_module.kernel.value
    with pytest.raises(ValueError, match="'b' and 'a' share a kernel"):
        nnx.merge_lora(tied)
    np.testing.assert_array_equal(tied.a.base_module.kernel.value, before)
    shown = nnx.Dict(a=linear())
    nnx.parametrize(shown, "a.kernel", jnp.tanh)
    nnx.loraify(shown, rank=1, rngs=rngs)
    with pytest.raises(ValueError, match="cannot be written without an inverse"):
        nnx.merge_lora(shown)
    assert type(shown.a) is nnx.LoRA
    stack = nnx.Stack(lambda rngs: nnx.Linear(2, 2, rngs=rngs), 3, rngs=rngs)
    with pytest.raises(ValueError, match="'layers' is stacked"):
        nnx.loraify(stack, rank=1, rngs=rngs)
    with pytest.raises(ValueError, match="in a Stack, which has one array"):
        nnx.parametrize(stack, "layers.kernel", jnp.abs)
    with pytest.raises(ValueError, match="rank must be at least 1"):
        nnx.loraify(nnx.Dict(a=linear()), rank=0, rngs=rngs)
    with pytest.raises(ValueError, match="below Linear matches .*there are none"):
        nnx.loraify(linear(), rank=1, rngs=rngs)


def test_diff_tells_of_metadata_and_values():
    a, b = linear(2, 1), linear(2, 1)
    b.kernel += 1
    nnx.freeze(b)
    line = nnx.diff(a, b).lines["kernel"]
    assert line.startswith("a Param -> a Param with {'frozen': True}; 2 of 2 values")


def test_a_selection_of_nothing_changes_nothing_loudly():
    model = nnx.Sequential(linear(), nnx.relu)
    with pytest.raises(ValueError, match="nothing in Sequential was selected"):
        nnx.select(model, nnx.PathContains("kernal")).apply(lambda w: 0 * w)
    assert not nnx.select(model, nnx.PathContains("kernal")).count()
    nnx.select(model, lambda _, f: f is nnx.relu, static=True).replace(nnx.tanh)
    assert model.layers[1] is nnx.tanh
    for wrong in (nnx.Linear, nnx.PathContains("bias"), 5):
        with pytest.raises(TypeError, match="takes a function.*nnx.select takes"):
            nnx.at(model, wrong)
    with pytest.raises(ValueError, match="no place was given"):
        nnx.at(model, lambda m: [k for k in m.layers if isinstance(k, nnx.Linear)])


def test_at_one_place_of_several():
    layer = linear()
    model = nnx.Sequential(layer, nnx.relu, layer)
    other = nnx.at(model, "layers[2]").replace(nnx.tanh)
    assert type(other.layers[0]) is nnx.Linear and other.layers[2] is nnx.tanh
    assert len(nnx.at(model, "layers[2]").remove().layers) == 2
    tied = nnx.at(model, "layers[2].bias").set(1)
    assert tied.layers[0] is tied.layers[2] and tied.layers[0].bias[...].all()


def test_stack_of_layers_that_keep_their_rngs():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs
            self.linear = nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, x):
            return self.linear(x) + self.rngs.normal((2,))

    stack = nnx.Stack(Layer, 3, rngs=nnx.Rngs(0))
    assert not np.allclose(stack(jnp.ones(2)), stack(jnp.ones(2)))
    assert stack.layers.rngs.default.count.shape == (3,)


def test_an_embedding_follows_a_cast():
    table = nnx.Embed(5, 4, rngs=nnx.Rngs(0))
    nnx.cast(table, jnp.bfloat16)
    assert table(jnp.array([1])).dtype == jnp.bfloat16


def test_loading_only_parameters():
    model = nnx.Dict(a=linear(), dropout=nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    state = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    assert nnx.load_state(model, state, only=nnx.Param)
    with pytest.raises(ValueError, match="missing: a.kernel"):
        nnx.load_state(model, {"a": {"bias": jnp.ones(2)}}, only=nnx.Param)


def test_a_retrace_by_a_changed_dict_is_explained(x):
    scales = {"a": 1}
    step = nnx.jit(lambda x: x * scales["a"])
    step(x)
    scales["a"] = 2
    step(x)
    assert "the constant 'scales': " in nnx.debug.explain_retrace(step)


def test_reinit_and_cast_name_wrong_arguments():
    with pytest.raises(TypeError, match="rngs must be an nnx.Rngs, not 0"):
        nnx.reinit(linear(), 0)
    with pytest.raises(ValueError, match="it asks for Modules"):
        nnx.cast(linear(), jnp.bfloat16, nnx.Linear)


def test_a_pytree_parametrization_in_a_file(tmp_path):
    def weight_normed(seed):
        layer = linear(seed=seed)
        nnx.parametrize(
            layer,
            "kernel",
            lambda s: s["g"] * s["v"],
            inverse=lambda w: {"g": jnp.ones(()), "v": w},
        )
        return layer

    saved = weight_normed(0)
    nnx.save(tmp_path / "m", saved)
    loaded = nnx.load(tmp_path / "m", like=weight_normed(1))
    np.testing.assert_array_equal(loaded.kernel.value, saved.kernel.value)


class Tensor:
    """An array of another library."""

    def __init__(self, *shape):
        self.shape = shape

    def __array__(self, dtype=None, copy=None):
        return np.ones(self.shape, dtype)


def test_load_state_takes_arrays_of_other_libraries():
    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    report = nnx.load_state(layer, {"kernel": Tensor(2, 3), "bias": Tensor(3)})
    assert report and str(report) == "no difference"
    np.testing.assert_array_equal(layer.kernel, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"kernel wants .*\(2, 3\)|kernel wants"):
        nnx.load_state(layer, {"kernel": Tensor(2, 4), "bias": Tensor(3)})


@pytest.mark.parametrize(
    "names",
    [{"counter": None}, lambda path: None if path[0] == "counter" else path],
    ids=["mapping", "function"],
)
def test_renaming_to_none_leaves_out(names):
    state = {"counter": {"n": 1, "m": 2}, "kernel": 3}
    assert nnx.rename(state, names) == {"kernel": 3}
    layer = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
    given = {"counter.n": np.ones(1), "kernel": np.full((1, 1), 5.0)}
    assert nnx.load_state(layer, given, rename=names)
    assert float(layer.kernel[0, 0]) == 5


def test_missing_random_streams_get_their_own_advice():
    model = nnx.List([nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Param(1.0)])
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with pytest.raises(ValueError, match=r"only=nnx.Not\(nnx.RngState\) leaves"):
        nnx.load_state(model, params)
    assert nnx.load_state(model, params, only=nnx.Not(nnx.RngState))
    with pytest.raises(ValueError, match=r"loads what there is$"):
        nnx.load_state(model, {})


def test_swapped_arguments_of_update_are_named():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    grads = nnx.grad(lambda m: m(jnp.ones(2)).sum())(model)
    before = np.asarray(model.bias)
    with pytest.raises(TypeError, match=r"the order is optimizer.update\(model, grads"):
        optimizer.update(grads, model)
    np.testing.assert_array_equal(model.bias, before)
    optimizer.update(model, grads)


def test_parametrized_variables_show_what_they_are_and_store():
    model = nnx.Dict(a=nnx.Param(jnp.array(1.0), note="x"))
    nnx.parametrize(model, "a", lambda w: 2 * w)
    text = "ParametrizedParam(value=Array(2., dtype=float32"
    assert repr(model["a"]).startswith(text) and "0x" not in repr(model)
    assert "stored=Array(1., dtype=float32" in repr(model) and "note='x'" in repr(model)


def test_parametrize_of_a_variable_alone_says_where_to_put_it():
    for model, where in ((nnx.Param(1.0), ()), ({"a": nnx.Param(1.0)}, "a")):
        with pytest.raises(ValueError, match="nnx.Dict"):
            nnx.parametrize(model, where, jnp.exp, inverse=jnp.log)
