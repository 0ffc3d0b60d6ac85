"""Streams replaced for a while: split_rngs, fork_rngs, restore_rngs, with_rngs."""

import contextlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx


def data(key):
    return np.asarray(jax.random.key_data(getattr(key, "get_value", lambda: key)()))


def nth(seed, n):
    """The n-th key of a stream, by its definition; a key may stand for the seed."""
    key = seed if isinstance(seed, jax.Array) else jax.random.key(seed)
    return jax.random.fold_in(key, jnp.uint32(n))


def held(node):
    """Keys and counts of the streams of an Rngs, by name."""
    return {
        name: (data(stream.key).tolist(), count_of(stream))
        for name, stream in sorted(node.items())
    }


def count_of(stream):
    count = stream.count.get_value()
    return count.dtype.name, count.tolist()


def unchanged(rngs, drawn=0):
    """Whether the streams of Rngs(0, dropout=1) are as when made, but for the count."""
    fresh = nnx.Rngs(0, dropout=1)
    for name, stream in rngs.items():
        assert np.array_equal(data(stream.key), data(fresh[name].key)), name
        assert count_of(stream) == ("uint32", drawn), name
    return True


ONLY = {
    "tag": lambda nnx: "dropout",
    "all": lambda nnx: ...,
    "True": lambda nnx: True,
    "None": lambda nnx: None,
    "False": lambda nnx: False,
    "RngState": lambda nnx: nnx.RngState,
    "RngKey is not the count": lambda nnx: nnx.RngKey,
    "RngStream is no Variable": lambda nnx: nnx.RngStream,
    "both kinds": lambda nnx: (nnx.RngKey, nnx.RngCount),
    "Not": lambda nnx: nnx.Not("dropout"),
    "path": lambda nnx: nnx.PathContains("default"),
    "path of the key": lambda nnx: nnx.PathContains("key"),
    "list": lambda nnx: ["dropout", "other"],
    "callable": lambda nnx: lambda path, x: path[0] == "dropout",
}


@pytest.mark.parametrize("only", ONLY.values(), ids=ONLY)
def test_only_as_flax(oracle, only):
    seen = []
    for module in (nnx, oracle("flax.nnx")):
        rngs = module.Rngs(0, dropout=1)
        backups = module.split_rngs(rngs, splits=2, only=only(module))
        tags = [next(iter(backup)).tag for backup in backups]
        seen.append([held(rngs), tags, module.restore_rngs(backups), held(rngs)])
    assert seen[0] == seen[1]


SPLITS = [1, 2, (2,), (2, 3), [2, 1], (), 0, True]


@pytest.mark.parametrize("splits", SPLITS, ids=repr)
def test_split_as_flax(oracle, splits):
    seen = []
    for module in (nnx, oracle("flax.nnx")):
        rngs = module.Rngs(7)
        rngs()
        with module.split_rngs([rngs, {"again": rngs.default}], splits=splits):
            seen.append([held(rngs)])
        seen[-1] += [held(rngs), data(rngs()).tolist()]
    assert seen[0] == seen[1]


FORKS = {
    "none": lambda nnx: None,
    "number": lambda nnx: 2,
    "shape": lambda nnx: (2, 2),
    "by tag": lambda nnx: {"dropout": 2},
    "by tag, not split": lambda nnx: {"dropout": None},
    "by kind": lambda nnx: {nnx.RngState: 3},
    "several": lambda nnx: {"dropout": (1, 2), "default": 2},
    "list of filters": lambda nnx: {("dropout", "default"): 2},
    "nothing": lambda nnx: {},
}


@pytest.mark.filterwarnings("ignore:The 'split' argument:DeprecationWarning")
@pytest.mark.parametrize("split", FORKS.values(), ids=FORKS)
def test_fork_as_flax(oracle, split):
    seen = []
    for module in (nnx, oracle("flax.nnx")):
        rngs = module.Rngs(0, dropout=1)
        rngs()
        with module.fork_rngs(rngs, split=split(module)):
            seen.append([held(rngs)])
        seen[-1].append(held(rngs))
    assert seen[0] == seen[1]


WITH = {
    "nothing": lambda nnx: {},
    "split": lambda nnx: {"split": 2},
    "split shape": lambda nnx: {"split": (2, 1)},
    "split some": lambda nnx: {"split": {"dropout": 2}},
    "first wins": lambda nnx: {"split": {"dropout": 2, nnx.RngStream: 4, ...: 3}},
    "all first": lambda nnx: {"split": {...: 3, "dropout": 2}},
    "fork": lambda nnx: {"fork": ...},
    "fork one": lambda nnx: {"fork": "dropout"},
    "fork list": lambda nnx: {"fork": ["dropout", ("default",)]},
    "fork none": lambda nnx: {"fork": []},
    "broadcast": lambda nnx: {"broadcast": 2},
    "broadcast one": lambda nnx: {"broadcast": {"dropout": (2, 1)}},
    "each its own": lambda nnx: {"split": {"dropout": 2}, "broadcast": {"default": 3}},
    "the rest": lambda nnx: {"split": {"dropout": 2}, "fork": ...},
    "the rest of a list": lambda nnx: {
        "split": {"default": 2},
        "fork": ["dropout", ...],
    },
    "split before broadcast": lambda nnx: {"split": 2, "broadcast": {"dropout": 3}},
    "broadcast before fork": lambda nnx: {"broadcast": {...: 2}, "fork": "dropout"},
    "only": lambda nnx: {"split": 2, "only": "dropout"},
    "only stream": lambda nnx: {"fork": ..., "only": nnx.RngStream},
    "only variable": lambda nnx: {"fork": ..., "only": nnx.RngKey},
}


@pytest.mark.parametrize("options", WITH.values(), ids=WITH)
def test_with_as_flax_of_trees(oracle, options):
    seen = []
    for module, flags in ((nnx, {}), (oracle("flax.nnx"), {"graph": False})):
        rngs = module.Rngs(0, dropout=1)
        model = module.Dict(rngs=rngs, w=module.Param(1.0))
        new = module.with_rngs(model, **options(module), **flags)
        shared = [new.rngs[name].key is rngs[name].key for name in sorted(rngs)]
        assert new is not model and new.w is model.w
        assert all(new.rngs[name] is not rngs[name] for name in rngs)
        assert all(new.rngs[name].tag == name for name in rngs)
        seen.append([held(new.rngs), held(rngs), shared])
    assert seen[0] == seen[1]


# In place


@pytest.mark.parametrize("splits", [1, np.int64(1)])
def test_squeeze_takes_the_only_axis_away(splits):
    rngs = nnx.Rngs(0)
    with nnx.split_rngs(rngs, splits=splits, squeeze=True):
        assert np.array_equal(
            data(rngs.default.key), data(jax.random.split(nth(0, 0), 1)[0])
        )
        assert rngs.default.count.shape == ()
    assert np.array_equal(data(rngs()), data(nth(0, 1)))


def test_numpy_ints_are_ints():
    rngs = nnx.Rngs(0)
    nnx.split_rngs(rngs, splits=(np.int64(2), np.uint8(3)))
    assert rngs.default.key.shape == rngs.default.count.shape == (2, 3)


def test_fork_rngs_first_filter_wins():
    rngs = nnx.Rngs(0, dropout=1)
    with nnx.fork_rngs(rngs, split={"dropout": None, ...: 3}):
        assert (rngs.dropout.key.shape, rngs.default.key.shape) == ((), (3,))
        assert np.array_equal(data(rngs.dropout.key), data(nth(1, 0)))
    assert unchanged(rngs, drawn=1)


def test_variables_stay_the_same_objects():
    rngs = nnx.Rngs(0)
    stream, key, count = rngs.default, rngs.default.key, rngs.default.count
    with nnx.split_rngs(rngs, splits=2), nnx.fork_rngs(rngs):
        assert rngs.default is stream and stream.key is key and stream.count is count
        assert key.tag == count.tag == "default"


@pytest.mark.parametrize("splits", [2, (2, 3)])
def test_forking_split_streams(splits):
    rngs = nnx.Rngs(0)
    with nnx.split_rngs(rngs, splits=splits):
        before = data(rngs.default.key)
        with nnx.fork_rngs(rngs):
            assert not np.array_equal(data(rngs.default.key), before)
        assert np.array_equal(data(rngs.default.key), before)
        assert (rngs.default.count[...] == 1).all()
    assert rngs.default.count.value == 1


NODES = {
    "stream": lambda r: r.default,
    "rngs": lambda r: r,
    "list": lambda r: [1, r],
    "dict": lambda r: {"a": (r, None)},
    "nnx.List": lambda r: nnx.List([r]),
    "module": lambda r: nnx.Dict(layer=nnx.Dict(rngs=r)),
    "twice": lambda r: (r, nnx.Dict(again=r, stream=r.default)),
    "cycle": lambda r: cyclic(r),
}


def cyclic(rngs):
    model = nnx.Dict(rngs=rngs)
    model.me = model
    return model


@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
@pytest.mark.parametrize(
    "replace", [lambda n: nnx.split_rngs(n, splits=2), nnx.fork_rngs]
)
def test_where_streams_are_found_once(make, replace):
    rngs = nnx.Rngs(0)
    backups = replace(make(rngs))
    assert [backup.stream for backup in backups] == [rngs.default]
    assert rngs.default.count.shape == rngs.default.key.shape
    nnx.restore_rngs(backups)
    assert unchanged(rngs, drawn=1)


@pytest.mark.parametrize(
    "node", [3, None, jnp.ones(2), nnx.Param(1.0), nnx.Dropout(0.5), {}, nnx.State({})]
)
def test_nodes_without_streams(node):
    assert list(nnx.split_rngs(node, splits=2)) == list(nnx.fork_rngs(node)) == []
    copy = nnx.with_rngs(node, split=2)
    assert type(copy) is type(node)


@pytest.mark.parametrize("form", [lambda b: b, list, iter, lambda b: list(b)[::-1]])
def test_restoring_all_at_once_and_again(form):
    rngs = nnx.Rngs(0, dropout=1)
    backups = nnx.split_rngs(rngs, splits=2)
    nnx.restore_rngs(form(backups))
    assert unchanged(rngs, drawn=1)
    rngs()
    nnx.restore_rngs(backups)
    assert unchanged(rngs, drawn=1)


def test_restoring_some():
    rngs = nnx.Rngs(0, dropout=1)
    backups = nnx.split_rngs(rngs, splits=2)
    nnx.restore_rngs(b for b in backups if b.stream.tag == "dropout")
    assert rngs.dropout.key.shape == () and rngs.default.key.shape == (2,)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "replace",
    [lambda n: nnx.split_rngs(n, splits=2), nnx.fork_rngs],
)
def test_restored_after_an_exception(replace, error):
    rngs = nnx.Rngs(0, dropout=1)
    with pytest.raises(error), replace(rngs):
        rngs()
        raise error
    assert unchanged(rngs, drawn=1)


def remove(model):
    del model.rngs.default


def replace_stream(model):
    model.rngs.default = nnx.RngStream(5, tag="default")


def replace_parent(model):
    model.rngs = nnx.Rngs(5)


@pytest.mark.parametrize("change", [remove, replace_stream, replace_parent])
def test_a_stream_that_is_gone_is_restored_too(change):
    model = nnx.Dict(rngs=nnx.Rngs(0))
    stream = model.rngs.default
    with nnx.split_rngs(model, splits=2):
        change(model)
    assert unchanged({"default": stream}, drawn=1)
    if change is not remove:
        assert np.array_equal(data(model.rngs()), data(nth(5, 0)))


# Decorators


@pytest.mark.parametrize(
    ("decorate", "shape"),
    [
        (nnx.split_rngs(splits=3), (3,)),
        (nnx.split_rngs(splits=1, squeeze=True), ()),
        (nnx.fork_rngs(), ()),
        (nnx.fork_rngs(split={"default": 2}), (2,)),
        (nnx.with_rngs(split=4), (4,)),
        (nnx.with_rngs(fork=...), ()),
    ],
)
def test_decorated_functions(decorate, shape):
    def draw(a, b=1, *, c: int = 2):
        """Draws."""
        assert a[0].default.key.shape == c.default.key.shape == shape
        assert np.array_equal(data(a[0].default.key), data(c.default.key))
        return a[0](), b

    wrapped = decorate(draw)
    assert (wrapped.__name__, wrapped.__doc__) == ("draw", "Draws.")
    assert inspect.signature(wrapped) == inspect.signature(draw)
    assert wrapped.__wrapped__ is draw
    first, second = nnx.Rngs(0), nnx.Rngs(0)
    keys = [wrapped([first], c=second)[0] for _ in range(2)]
    assert not np.array_equal(*map(data, keys))
    assert wrapped([first], 5, c=second)[1] == 5
    assert unchanged(first, drawn=3) and unchanged(second, drawn=3)


class Noisy(nnx.Module):
    def __init__(self):
        self.rngs = nnx.Rngs(0)
        self.calls = 0

    @nnx.split_rngs(splits=2)
    def split(self, x):
        """Doc."""
        self.calls += 1
        return self.rngs.default.key.shape, x

    @nnx.fork_rngs()
    def fail(self):
        self.rngs()
        raise RuntimeError("later")


def test_decorated_methods():
    model = Noisy()
    assert model.split(5) == ((2,), 5) and model.calls == 1
    assert model.split.__doc__ == "Doc."
    with pytest.raises(RuntimeError, match="later"):
        model.fail()
    assert unchanged(model.rngs, drawn=2)


def test_paths_of_arguments(oracle):
    paths = [[], []]
    for seen, module in zip(paths, (nnx, oracle("flax.nnx")), strict=True):
        only = lambda path, x, seen=seen: not seen.append(path)  # noqa: E731
        decorate = module.split_rngs(splits=2, only=only)
        decorate(lambda a, *, r: None)([module.Rngs(0)], r=module.Rngs(0))
    assert paths[0] == paths[1]


# Copies


def test_with_rngs_keeps_what_is_shared():
    stream = nnx.RngStream(0, tag="noise")
    stream.key.set_metadata(note="x")
    model = cyclic(nnx.Rngs(0))
    model.a = model.b = stream
    new = nnx.with_rngs(model, split={"noise": 2})
    assert new is not model and new.me is new
    assert new.a is new.b is not stream and new.a.key.shape == (2,)
    assert new.a.key.note == "x" and type(new.a.count) is nnx.RngCount
    assert new.a.count.tag == new.a.tag == "noise"
    assert new.rngs.default.key is model.rngs.default.key
    assert (stream.count.value, stream.key.shape) == (1, ())


def test_with_rngs_of_a_stream():
    stream = nnx.RngStream(0, tag="noise")
    new = nnx.with_rngs(stream, broadcast=3)
    assert np.array_equal(data(new.key), [data(nth(0, 0))] * 3)
    assert stream.count.value == 1


def test_with_rngs_none_is_no_match():
    rngs = nnx.Rngs(0, dropout=1)
    new = nnx.with_rngs(rngs, split={"dropout": None, ...: 2}, fork="dropout")
    assert new.dropout.key.shape == () and new.dropout.key is not rngs.dropout.key
    assert new.default.key.shape == (2,)


def test_with_rngs_decorator_calls_with_copies():
    @nnx.with_rngs(fork="default")
    def f(model, text, function=len):
        model.new = 1
        model.w[...] = 5.0
        model.rngs()
        return model, function(text)

    model = nnx.Dict(rngs=nnx.Rngs(0), w=nnx.Param(0.0))
    copy, length = f(model, "abc")
    assert length == 3 and copy.new == 1 and not hasattr(model, "new")
    assert model.w.value == 5.0 and model.rngs.default.count.value == 1
    assert np.array_equal(data(copy.rngs()), data(nth(nth(0, 0), 1)))


# Transforms


def draw_split(rngs):
    with nnx.split_rngs(rngs, splits=3):
        inside = rngs()
    return inside, rngs()


@pytest.mark.parametrize("transform", [nnx.jit, jax.jit], ids=["nnx", "jax"])
@pytest.mark.parametrize("times", [1, 2])
def test_split_inside_jit(transform, times):
    eager, rngs = nnx.Rngs(0), nnx.Rngs(0)
    if transform is jax.jit:

        @jax.jit
        def plain(state):
            rngs = nnx.merge(graphdef, state)
            return draw_split(rngs), nnx.state(rngs)

        graphdef = nnx.graphdef(rngs)
    else:
        compiled = nnx.jit(draw_split)
    for _ in range(times):
        wanted = draw_split(eager)
        if transform is jax.jit:
            got, state = plain(nnx.state(rngs))
            nnx.update(rngs, state)
        else:
            got = compiled(rngs)
        assert all(
            np.array_equal(data(a), data(b)) for a, b in zip(got, wanted, strict=True)
        )
    assert held(rngs) == held(eager)
    assert rngs.default.count.value == 2 * times


@pytest.mark.parametrize(
    "decorate", [nnx.split_rngs(splits=2), nnx.fork_rngs(), nnx.with_rngs(split=2)]
)
@pytest.mark.parametrize("order", ["split inside jit", "jit inside split"])
def test_decorators_and_jit(decorate, order):
    traces = []

    def draw(rngs):
        traces.append(1)
        return rngs(), rngs()

    eager, rngs = nnx.Rngs(0), nnx.Rngs(0)
    f = nnx.jit(decorate(draw)) if order[0] == "s" else decorate(nnx.jit(draw))
    got = [f(rngs) for _ in range(3)]
    assert len(traces) == 1
    wanted = [decorate(draw)(eager) for _ in range(3)]
    assert all(
        np.array_equal(data(a), data(b))
        for pair in zip(got, wanted, strict=True)
        for a, b in zip(*pair, strict=True)
    )
    assert unchanged(rngs, drawn=3)


def test_captured_streams_in_jit():
    model = nnx.Dict(rngs=nnx.Rngs(0), other=nnx.Rngs(1))

    @nnx.jit
    def f():
        with nnx.fork_rngs(model.rngs):
            inside = model.rngs(), model.other()
        return inside

    for n in range(2):
        forked, other = f()
        assert np.array_equal(data(forked), data(nth(nth(0, n), 0)))
        assert np.array_equal(data(other), data(nth(1, n)))


def test_backups_cross_jit():
    rngs = nnx.Rngs(0)
    backups = nnx.jit(lambda r: nnx.split_rngs(r, splits=2))(rngs)
    assert rngs.default.key.shape == (2,)
    nnx.jit(nnx.restore_rngs)(backups)
    assert unchanged(rngs, drawn=1)


def test_split_inside_eval_shape():
    rngs = nnx.Rngs(0, dropout=1)
    inside, after = nnx.eval_shape(draw_split, rngs)
    assert inside.shape == (3,) and after.shape == () and unchanged(rngs)


def test_an_exception_in_jit_changes_nothing():
    rngs = nnx.Rngs(0)

    @nnx.jit
    def f(rngs):
        nnx.split_rngs(rngs, splits=2)
        raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        f(rngs)
    assert unchanged(rngs)


@pytest.mark.parametrize("where", ["inside", "around"])
def test_split_and_grad(where):
    model = nnx.Dict(w=nnx.Param(jnp.ones(3)), rngs=nnx.Rngs(0))

    def loss(model):
        inside = where == "inside"
        with nnx.split_rngs(model, splits=3) if inside else contextlib.nullcontext():
            noise = jax.vmap(jax.random.normal)(model.rngs())
        return (model.w * noise).sum()

    with (
        contextlib.nullcontext()
        if where == "inside"
        else nnx.split_rngs(model, splits=3)
    ):
        grads = nnx.grad(loss)(model)
    wanted = [jax.random.normal(nth(key, 0)) for key in jax.random.split(nth(0, 0), 3)]
    assert np.allclose(grads.w[...], jnp.stack(wanted), rtol=1e-6)
    assert unchanged(model.rngs, drawn=1)


def test_d88_vmap_over_construction():
    rngs = nnx.Rngs(0)

    @nnx.split_rngs(splits=3)
    def make(rngs):
        graphdef, state = nnx.split(rngs)

        def one(state):
            return nnx.state(nnx.Linear(2, 4, rngs=nnx.merge(graphdef, state)))

        return jax.vmap(one)(state)

    stacked = make(rngs)
    for i, key in enumerate(jax.random.split(nth(0, 0), 3)):
        alone = nnx.Linear(2, 4, rngs=nnx.Rngs(key))
        assert np.array_equal(stacked.kernel[i], alone.kernel[...])
    assert unchanged(rngs, drawn=1)


def test_d92_vmap_with_dropout():
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    first = layer.rngs.count.value
    x = jnp.ones((4, 32))

    def apply(state, x):
        return nnx.merge(graphdef, state)(x)

    with nnx.split_rngs(layer, splits=4):
        graphdef, state = nnx.split(layer)
        masks = jax.vmap(apply)(state, x)
        inside = jax.vmap(lambda s, x: inner(nnx.merge(graphdef, s), x))(state, x)
    assert len({tuple(mask) for mask in masks.tolist()}) == 4
    assert inside.shape == (4, 2, 32)
    assert layer.rngs.key.shape == () and layer.rngs.count.value == first + 1


def inner(layer, x):
    """Splits once more, in each lane."""
    graphdef, _ = nnx.split(layer)
    with nnx.split_rngs(layer, splits=2):
        state = nnx.state(layer)
        return jax.vmap(lambda s: nnx.merge(graphdef, s)(x))(state)


@pytest.mark.parametrize("plain", [jax.jit, jax.vmap, jax.grad])
@pytest.mark.parametrize(
    "replace",
    [
        lambda n: nnx.split_rngs(n, splits=2),
        nnx.fork_rngs,
        lambda n: nnx.with_rngs(n, fork=...),
    ],
)
def test_streams_from_outside_a_plain_transform(plain, replace):
    rngs = nnx.Rngs(0)

    def f(x):
        local = nnx.RngStream(0, tag="default")
        key, count = local.key.value, local.count.value
        with pytest.raises(nnx.TraceContextError, match="Use the nnxlite transform"):
            replace([local, rngs])
        assert local.key.value is key and local.count.value is count, "all or nothing"
        return x * 1.0

    plain(f)(jnp.ones(2) if plain is jax.vmap else 1.0)
    assert unchanged(rngs)


# Mistakes: what, where, what to do, and nothing is changed

ADVICE = "use an int, such as 4, or a tuple of ints"
NOT_SPLIT = {
    "float": (1.5, TypeError, "1.5 is no number of keys.*" + ADVICE),
    "str": ("ab", TypeError, "'ab' is no number of keys.*" + ADVICE),
    "in a shape": ((2, 1.5), TypeError, r"\(2, 1.5\) is no number.*" + ADVICE),
    "negative": (-1, ValueError, "cannot split into -1 keys: use an int.*from 0 up"),
    "negative in a shape": ((2, -1), ValueError, r"cannot split into \(2, -1\) keys"),
}
SPLITTERS = {
    "split_rngs": lambda n, k: nnx.split_rngs(*n, splits=k),
    "fork_rngs": lambda n, k: nnx.fork_rngs(*n, split=k),
    "fork_rngs by filter": lambda n, k: nnx.fork_rngs(*n, split={"default": 2, ...: k}),
    "with_rngs": lambda n, k: nnx.with_rngs(*n, split=k),
    "with_rngs broadcast": lambda n, k: nnx.with_rngs(*n, broadcast={"dropout": k}),
    "Rngs.split": lambda n, k: nnx.Rngs.split(n[0] if n else nnx.Rngs(), k),
    "RngStream.fork": lambda n, k: (n[0] if n else nnx.Rngs(0)).default.fork(split=k),
}


@pytest.mark.parametrize(
    ("splits", "error", "match"), NOT_SPLIT.values(), ids=NOT_SPLIT
)
@pytest.mark.parametrize("split", SPLITTERS.values(), ids=SPLITTERS)
@pytest.mark.parametrize("decorator", [False, True])
def test_no_number_of_keys(splits, error, match, split, decorator):
    rngs = nnx.Rngs(0, dropout=1)
    with pytest.raises(error, match=match):
        split(() if decorator else (rngs,), splits)
    assert unchanged(rngs)


def test_split_rngs_needs_a_number():
    with pytest.raises(TypeError, match="None is no number of keys.*" + ADVICE):
        nnx.split_rngs(nnx.Rngs(0), splits=None)
    with pytest.raises(TypeError, match="'splits'"):
        nnx.split_rngs(nnx.Rngs(0))


@pytest.mark.parametrize("splits", [2, 0, (1,)])
@pytest.mark.parametrize("decorator", [False, True])
def test_squeeze_of_several_keys(splits, decorator):
    rngs = nnx.Rngs(0, dropout=1)
    with pytest.raises(ValueError, match="squeeze=True .*: pass splits=1, or leave"):
        nnx.split_rngs(*([] if decorator else [rngs]), splits=splits, squeeze=True)
    assert unchanged(rngs)


@pytest.mark.parametrize(
    "split",
    [
        lambda n: nnx.split_rngs(n, splits=2),
        lambda n: nnx.fork_rngs(n, split={"b": 2, ...: None}),
        lambda n: nnx.with_rngs(n, split=2),
        lambda n: nnx.with_rngs(n, broadcast=2),
    ],
)
def test_split_twice(split):
    model = nnx.Dict(layers=nnx.List([nnx.Rngs(a=0, b=1)]))
    with nnx.split_rngs(model, splits=3, only="b"):
        before = held(model.layers[0])
        match = (
            r"the stream 'layers\[0\].b' holds keys of shape \(3,\).*split it once "
            r".*splits=\(2, 3\), or restore it before \(nnx.restore_rngs\)"
        )
        with pytest.raises(ValueError, match=match):
            split(model)
        assert held(model.layers[0]) == before


def test_paths_in_messages_about_arguments():
    rngs = nnx.Rngs(0).split(2)
    with pytest.raises(ValueError, match=r"stream 'args\[0\]\[1\].default' holds keys"):
        nnx.split_rngs(splits=2)(print)([1, rngs])
    with pytest.raises(ValueError, match=r"stream 'kwargs.end.default' holds keys"):
        nnx.with_rngs(split=2)(print)(end=rngs)


@pytest.mark.parametrize(
    "options",
    [
        {"split": {"dropout": 2}, "fork": "dropout"},
        {"split": {"dropout": 2}, "broadcast": {nnx.RngStream: 2}},
        {"broadcast": {...: 2}, "split": {nnx.Everything(): 2}, "fork": "dropout"},
        {"fork": ["other", "dropout"], "split": {"x": 1, "dropout": 2, ...: 3}},
    ],
)
def test_two_specific_rules(options):
    rngs = nnx.Rngs(0, dropout=1)
    with pytest.raises(
        ValueError, match=r"stream 'dropout' is matched for .* and for .*nnx.Not.*one"
    ):
        nnx.with_rngs([rngs][0], **options)
    assert unchanged(rngs)


FUNCTIONS = [
    lambda *n: nnx.split_rngs(*n, splits=2),
    lambda *n: nnx.fork_rngs(*n),
    lambda *n: nnx.with_rngs(*n, fork=...),
]


@pytest.mark.parametrize("function", [len, lambda x: x, nnx.jit(lambda x: x), nnx.Rngs])
@pytest.mark.parametrize("replace", FUNCTIONS)
def test_a_function_in_place_of_a_node(replace, function):
    match = r"was given a function.*with keywords only, `@nnx.(split|fork|with)_rngs\("
    with pytest.raises(TypeError, match=match):
        replace(function)


@pytest.mark.parametrize("filter", [3, {"dropout": 2}])
def test_no_filter(filter):
    rngs = nnx.Rngs(0, dropout=1)
    for replace in (
        lambda: nnx.split_rngs(rngs, splits=2, only=filter),
        lambda: nnx.with_rngs(rngs, fork=filter),
        lambda: nnx.with_rngs(rngs, fork=..., only=filter),
    ):
        with pytest.raises(TypeError, match="is not a filter: use a type"):
            replace()
    assert unchanged(rngs)


def test_a_filter_that_raises():
    rngs = nnx.Rngs(0, dropout=1)

    def only(path, x):
        return {"default": True}[path[0]]

    for replace in (
        lambda: nnx.split_rngs(rngs, splits=2, only=only),
        lambda: nnx.with_rngs(rngs, fork=..., only=only),
    ):
        with pytest.raises(KeyError, match="dropout"):
            replace()
    assert unchanged(rngs)


@pytest.mark.parametrize("bad", [None, 3, [3], nnx.Rngs(0), [(nnx.Rngs(0).default,)]])
def test_no_backups(bad):
    rngs = nnx.Rngs(0)
    (backup,) = nnx.split_rngs(rngs, splits=2)
    match = "is no backup of a stream: pass what split_rngs or fork_rngs returned"
    for wrong in (bad, [backup, bad], backup):
        with pytest.raises(TypeError, match=match):
            nnx.restore_rngs(wrong)
    assert rngs.default.key.shape == (2,)
