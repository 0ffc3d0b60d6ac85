"""Random state: how keys are derived, handed out once, split, forked and reseeded."""

import copy
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

DRAWS = {
    "normal": lambda r: r.normal((3,)),
    "uniform": lambda r: r.uniform((2, 2), minval=1.0, maxval=2.0),
    "bernoulli": lambda r: r.bernoulli(0.5, (8,)),
    "randint": lambda r: r.randint((4,), 0, 100),
    "choice": lambda r: r.choice(5, (3,), replace=False),
    "permutation": lambda r: r.permutation(6),
    "categorical": lambda r: r.categorical(jnp.zeros(7), shape=(4,)),
    "truncated_normal": lambda r: r.truncated_normal(-1.0, 1.0, (3,)),
    "gumbel": lambda r: r.gumbel((3,)),
    "bits": lambda r: r.bits((3,)),
}
INITIALIZERS = [
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "xavier_normal",
    "xavier_uniform",
    "delta_orthogonal",
]


def data(key):
    return np.asarray(jax.random.key_data(key))


def same(a, b):
    return np.array_equal(data(a), data(b))


def nth(seed, n):
    """The n-th key of a stream, by its definition."""
    key = seed if isinstance(seed, jax.Array) else jax.random.key(seed)
    return jax.random.fold_in(key, jnp.uint32(n))


def flax_value(variable):
    return variable.get_value()


# D41 to D48


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, -1])
@pytest.mark.parametrize("how", ["default", "named", "stream", "item"])
def test_d41_nth_key_of_a_stream(seed, how):
    rngs = nnx.Rngs(seed) if how == "default" else nnx.Rngs(noise=seed)
    draw = {
        "default": rngs,
        "named": lambda: rngs.noise(),
        "stream": nnx.RngStream(seed, tag="noise"),
        "item": lambda: rngs["noise"](),
    }[how]
    for n in range(4):
        key = draw()
        assert same(key, nth(seed, n))
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()


def test_d41_variables_of_a_stream():
    rngs = nnx.Rngs(0, dropout=1)
    rngs.dropout()
    for name, stream in rngs.items():
        assert type(stream.key) is nnx.RngKey and type(stream.count) is nnx.RngCount
        assert stream.tag == stream.key.tag == stream.count.tag == name
        assert stream.count.dtype == jnp.uint32
        assert jnp.issubdtype(stream.key.dtype, jax.dtypes.prng_key)
    assert (rngs.default.count.value, rngs.dropout.count.value) == (0, 1)
    paths = nnx.to_flat_state(nnx.state(rngs, "dropout")).paths
    assert paths == (("dropout", "count"), ("dropout", "key"))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_d41_other_generators(impl):
    key = jax.random.key(0, impl=impl)
    assert same(nnx.Rngs(key)(), nth(key, 0))
    assert nnx.Rngs(key)().dtype == key.dtype


@pytest.mark.parametrize("read", [getattr, lambda rngs, name: rngs[name]])
def test_d42_fallback_shares_the_default_stream(read):
    rngs = nnx.Rngs(0, params=1)
    assert same(read(rngs, "dropout")(), nth(0, 0))
    assert same(rngs(), nth(0, 1))
    assert same(read(rngs, "noise")(), nth(0, 2))
    assert same(read(rngs, "params")(), nth(1, 0))
    assert rngs.default.count.value == 3
    assert "dropout" not in rngs and list(rngs) == ["default", "params"]
    assert len(rngs) == 2 and dict(rngs.items())["params"] is rngs.params


@pytest.mark.parametrize(
    ("read", "error"),
    [(lambda r: r.dropout, AttributeError), (lambda r: r["dropout"], KeyError)],
)
@pytest.mark.parametrize("rngs", [nnx.Rngs(params=0), nnx.Rngs(), nnx.Rngs(None)])
def test_d42_no_stream_and_no_default(read, error, rngs):
    advice = r"No RngStream named 'dropout'.*nnx.Rngs\(dropout=seed\) or nnx.Rngs\(seed"
    with pytest.raises(error, match=advice):
        read(rngs)
    assert not hasattr(rngs, "dropout")


def test_d42_calling_without_default():
    with pytest.raises(AttributeError, match=r"named 'default'.*nnx.Rngs\(seed\)"):
        nnx.Rngs(params=0)()


@pytest.mark.parametrize("name", ["__fspath__", "__jax_array__", "_nnx_other"])
def test_d42_internal_names_do_not_fall_back(name):
    with pytest.raises(AttributeError, match=name):
        getattr(nnx.Rngs(0), name)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("rngs", [{"params": 3}, {"default": 3}])
def test_d43_kernel_of_linear(use_bias, rngs):
    rngs = nnx.Rngs(**rngs)
    layer = nnx.Linear(4, 5, use_bias=use_bias, rngs=rngs)
    expected = jax.nn.initializers.lecun_normal()(nth(3, 0), (4, 5), jnp.float32)
    assert np.array_equal(layer.kernel[...], expected)
    assert next(stream for _, stream in rngs.items()).count.value == 1 + use_bias
    if use_bias:
        assert not layer.bias[...].any()


LAYERS = {
    "Linear": (2, lambda nnx, r: nnx.Linear(2, 3, rngs=r)),
    "Linear without bias": (1, lambda nnx, r: nnx.Linear(2, 3, use_bias=False, rngs=r)),
    "Conv": (2, lambda nnx, r: nnx.Conv(2, 3, (3,), rngs=r)),
    "Embed": (1, lambda nnx, r: nnx.Embed(4, 3, rngs=r)),
    "BatchNorm": (2, lambda nnx, r: nnx.BatchNorm(3, rngs=r)),
    "LayerNorm": (2, lambda nnx, r: nnx.LayerNorm(3, rngs=r)),
}


@pytest.mark.parametrize(("draws", "make"), LAYERS.values(), ids=LAYERS)
def test_d43_draws_of_a_constructor_as_flax(oracle, draws, make):
    flax_nnx = oracle("flax.nnx")
    ours, theirs = nnx.Rngs(params=7), flax_nnx.Rngs(params=7)
    layers = make(nnx, ours), make(flax_nnx, theirs)
    assert ours.params.count.value == draws == flax_value(theirs.params.count)
    flat = dict(nnx.to_flat_state(nnx.state(layers[0])))
    other = dict(flax_nnx.to_flat_state(flax_nnx.state(layers[1])))
    assert flat.keys() == other.keys()
    for path, leaf in flat.items():
        assert np.array_equal(leaf[...], flax_value(other[path])), path


@pytest.mark.parametrize("shape", [3, (3,), (2, 3), 1])
def test_d44_split(shape):
    rngs = nnx.Rngs(0, dropout=1)
    rngs()
    parts = rngs.split(shape)
    full = (shape,) if isinstance(shape, int) else shape
    for name, seed, n in (("default", 0, 1), ("dropout", 1, 0)):
        part = parts[name]
        assert same(part.key.value, jax.random.split(nth(seed, n), shape))
        assert part.key.shape == part.count.shape == full
        assert part.count.dtype == jnp.uint32 and not part.count.any()
        assert part.tag == part.key.tag == name
        assert rngs[name].count.value == n + 1, "one key is consumed"


def test_d44_fork():
    rngs = nnx.Rngs(0, dropout=1)
    rngs()
    fork = rngs.fork()
    assert list(fork) == list(rngs)
    for name, seed, n in (("default", 0, 1), ("dropout", 1, 0)):
        assert same(fork[name].key.value, nth(seed, n))
        assert fork[name].count.value == 0 and fork[name].tag == name
        assert rngs[name].count.value == n + 1
        assert same(fork[name](), nth(nth(seed, n), 0))


@pytest.mark.parametrize("split", [3, (2, 2), {"dropout": 3}, {...: 2}])
def test_d44_fork_and_split(split):
    rngs = nnx.Rngs(0, dropout=1)
    fork = rngs.fork(split=split)
    dropout = next(iter(split.values())) if isinstance(split, dict) else split
    assert same(fork.dropout.key.value, jax.random.split(nth(1, 0), dropout))
    if split == {"dropout": 3}:
        assert same(fork.default.key.value, nth(0, 0)), "forked, not split"
    assert (rngs.default.count.value, rngs.dropout.count.value) == (1, 1)


@pytest.mark.parametrize("shape", [None, 3, (2, 2)])
def test_d44_fork_and_split_of_one_stream(shape):
    stream = nnx.RngStream(5, tag="noise")
    new = stream.fork(split=shape)
    expected = nth(5, 0) if shape is None else jax.random.split(nth(5, 0), shape)
    assert same(new.key.value, expected) and new.tag == "noise"
    if shape is not None:
        assert same(stream.split(shape).key.value, jax.random.split(nth(5, 1), shape))


@pytest.mark.parametrize("shape", [3, (2, 3)])
def test_d44_broadcast(shape):
    rngs = nnx.Rngs(0)
    parts = rngs.broadcast(shape)
    full = (shape,) if isinstance(shape, int) else shape
    assert np.array_equal(
        data(parts.default.key.value), np.broadcast_to(data(nth(0, 0)), (*full, 2))
    )
    assert parts.default.count.shape == full and rngs.default.count.value == 1
    stream = rngs.default.broadcast(shape)
    assert stream.key.shape == full and bool((stream() == nth(nth(0, 1), 0)).all())


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_d44_split_streams_draw_one_key_each(shape):
    parts = nnx.Rngs(0).split(shape)
    for n in range(2):
        keys = parts()
        expected = jnp.ravel(jax.random.split(nth(0, 0), shape))
        expected = jnp.stack([nth(key, n) for key in expected]).reshape(shape)
        assert same(keys, expected)
    assert (parts.default.count[...] == 2).all()


@pytest.mark.parametrize(
    ("splits", "shapes"),
    [
        ({"dropout": 2}, {"dropout": (2,)}),
        ({"dropout": None, ...: 2}, {"default": (2,), "params": (2,)}),
        ({("dropout", "params"): 2, ...: (3, 1)}, {"dropout": (2,), "params": (2,)}),
        ({nnx.PathContains("dropout"): 2}, {"dropout": (2,)}),
        ({nnx.Not("dropout"): 2}, {"default": (2,), "params": (2,)}),
        ({nnx.RngStream: 2}, dict.fromkeys(["default", "dropout", "params"], (2,))),
        ({}, {}),
    ],
)
@pytest.mark.parametrize("method", ["split", "broadcast"])
def test_d44_splits_by_filter_first_match_wins(method, splits, shapes):
    rngs = nnx.Rngs(0, dropout=1, params=2)
    parts = getattr(rngs, method)(splits)
    if splits.get(...) == (3, 1):
        shapes = {**shapes, "default": (3, 1)}
    for name in rngs:
        assert parts[name].key.shape == shapes.get(name, ())
        assert rngs[name].count.value == (name in shapes), "kept ones draw nothing"


KEEPING = {
    "split none": lambda r: r.split({"default": None}),
    "split no match": lambda r: r.split({"other": 2}),
    "broadcast none": lambda r: r.broadcast({...: None}),
    "stream": lambda r: nnx.Rngs(default=r.default),
    "stream under another name": lambda r: nnx.Rngs(other=r.default).other,
    "positional": lambda r: nnx.Rngs(r.default),
    "rngs": lambda r: nnx.Rngs(r),
    "mapping": lambda r: nnx.Rngs(dict(r.items())),
    "RngStream": lambda r: nnx.RngStream(r.default, tag="x"),
    "clone": nnx.clone,
    "deepcopy": copy.deepcopy,
    "pickle": lambda r: pickle.loads(pickle.dumps(r)),
    "merge": lambda r: nnx.merge(*nnx.split(r)),
}


@pytest.mark.parametrize("keep", KEEPING.values(), ids=KEEPING)
def test_d45_copies_go_on_where_the_stream_is(keep):
    rngs = nnx.Rngs(0)
    before = [rngs(), rngs()]
    copied = keep(rngs)
    key = copied()
    assert not any(same(key, old) for old in before)
    assert same(key, nth(0, 2))


def test_d45_no_key_is_handed_out_twice():
    rngs = nnx.Rngs(0, dropout=1)
    seen = []
    for step in range(3):
        seen += [rngs(), rngs.dropout(), rngs.other()]
        fork = rngs.fork()
        seen += [fork(), fork.dropout(), fork()]
        seen += list(jnp.ravel(rngs.split((2, 2)).default.key.value))
        seen += list(rngs.split({"dropout": 3}).dropout.key.value)
        rngs = rngs.split({...: None}) if step else nnx.Rngs(rngs)
    keys = [tuple(data(key).tolist()) for key in seen]
    assert len(set(keys)) == len(keys)


def test_d45_a_stream_made_from_a_stream_is_its_own():
    a = nnx.Rngs(0)
    b = nnx.Rngs(noise=a.default)
    assert b.noise is not a.default and b.noise.key is not a.default.key
    assert b.noise.tag == b.noise.key.tag == "noise"
    b.noise()
    assert a.default.count.value == 0


def masks(layer, n):
    x = jnp.ones(64)
    return [np.asarray(layer(x) != 0) for _ in range(n)]


@pytest.mark.parametrize(
    ("rngs", "seed"), [({"dropout": 3}, 3), ({"default": 3}, 3), ({"params": 1}, None)]
)
def test_d46_dropout_forks_its_stream(rngs, seed):
    rngs = nnx.Rngs(**rngs)
    layer = nnx.Dropout(0.5, rngs=rngs)
    if seed is None:
        assert layer.rngs is None
        return
    assert same(layer.rngs.key.value, nth(seed, 0)) and layer.rngs.tag == "dropout"
    for _ in range(3):
        rngs.dropout()
    key = nth(seed, 0)
    for n, mask in enumerate(masks(layer, 2)):
        expected = jax.random.bernoulli(nth(key, n), 0.5, (64,))
        assert np.array_equal(mask, expected)


@pytest.mark.parametrize("rngs", [{"dropout": 3}, {"default": 3}])
@pytest.mark.parametrize("seed", [9, jax.random.key(9), np.int64(9)])
def test_d46_reseed_restarts_the_masks(rngs, seed):
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(**rngs))
    before = masks(layer, 2)
    nnx.reseed(layer, dropout=seed)
    assert same(layer.rngs.key.value, nth(9, 0)) and layer.rngs.count.value == 0
    first = masks(layer, 2)
    assert not np.array_equal(first, before)
    nnx.reseed(layer, dropout=seed)
    assert np.array_equal(masks(layer, 2), first)


def test_d46_reseed_gives_each_stream_its_own_key():
    model = nnx.Dict(
        b=nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        a=nnx.List([nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2)]),
        noise=nnx.RngStream(4, tag="noise"),
    )
    variables = [x for _, x in nnx.to_flat_state(nnx.state(model))]
    nnx.reseed(model, dropout=7, unused=1)
    streams = [model.a[0].rngs, model.a[1].rngs, model.b.rngs]
    for n, stream in enumerate(streams):
        assert same(stream.key.value, nth(7, n))
    assert same(model.noise.key.value, jax.random.key(4)), "another tag"
    after = nnx.to_flat_state(nnx.state(model)).leaves
    assert all(a is b for a, b in zip(variables, after, strict=True))


def test_d46_a_shared_stream_is_reseeded_once():
    stream = nnx.RngStream(0, tag="dropout")
    other = nnx.RngStream(0, tag="dropout")
    nnx.reseed(nnx.List([stream, stream, other]), dropout=7)
    assert same(stream.key.value, nth(7, 0)) and same(other.key.value, nth(7, 1))


@pytest.mark.parametrize("shape", [3, (2, 3)])
def test_d46_reseed_of_split_streams(shape):
    rngs = nnx.Rngs(dropout=0, noise=1).split({"dropout": shape})
    full = (shape,) if isinstance(shape, int) else shape
    advice = rf"'dropout' holds keys of shape \({full[0]}.*pass policy='match_shape'"
    before = rngs.dropout.key.value
    with pytest.raises(ValueError, match=advice):
        nnx.reseed(rngs, noise=5, dropout=5)
    assert same(rngs.dropout.key.value, before)
    assert same(rngs.noise.key.value, jax.random.key(1)), "nothing is changed"
    nnx.reseed(rngs, dropout=5, policy="match_shape")
    assert same(rngs.dropout.key.value, jax.random.split(nth(5, 0), shape))
    assert rngs.dropout.count.shape == full

    seen = []

    def policy(path, key, shape):
        seen.append((path, key, shape))
        return jax.random.split(key, shape)

    nnx.reseed(rngs, dropout=6, policy=policy)
    ((path, key, got),) = seen
    assert path == ("dropout", "key") and same(key, nth(6, 0)) and got == full
    assert same(rngs.dropout.key.value, jax.random.split(nth(6, 0), shape))


@pytest.mark.parametrize("policy", ["match", None, 3])
def test_d46_unknown_policy(policy):
    with pytest.raises(ValueError, match="policy.*'match_shape'|policy.*match_shape"):
        nnx.reseed(nnx.Rngs(dropout=0), dropout=1, policy=policy)


SEEDS = {
    "int": 3,
    "negative": -3,
    "numpy int": np.int64(3),
    "array": jnp.array(3),
    "numpy array": np.array(3),
    "uint32": jnp.uint32(3),
    "typed key": jax.random.key(3),
    "raw key": jax.random.PRNGKey(3),
    "numpy raw key": np.asarray(jax.random.PRNGKey(3)),
    "stream": nnx.RngStream(3, tag="other"),
    "variable": nnx.RngKey(jax.random.key(3)),
    "bool": True,
}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("how", ["default", "named", "mapping", "stream"])
def test_d47_seeds(seed, how):
    stream = {
        "default": lambda: nnx.Rngs(seed).default,
        "named": lambda: nnx.Rngs(a=seed).a,
        "mapping": lambda: nnx.Rngs({"a": seed}).a,
        "stream": lambda: nnx.RngStream(seed, tag="a"),
    }[how]()
    expected = seed if isinstance(seed, int) else 3
    assert same(stream(), nth(expected, 0))
    assert stream.tag == ("default" if how == "default" else "a")


BAD = {
    "1.5": 1.5,
    "'text'": "text",
    r"\[1\]": [1],
    r"float32\[2\]": jnp.ones(2),
    r"float32\[\]": jnp.array(1.5),
    r"int32\[2\]": jnp.array([1, 2]),
    r"b'x'": b"x",
}


@pytest.mark.parametrize(("shown", "seed"), BAD.items(), ids=BAD)
@pytest.mark.parametrize("how", ["default", "named", "mapping", "stream"])
def test_d47_bad_seeds(shown, seed, how):
    advice = f"{shown} is no seed: use an int, a key from jax.random.key"
    with pytest.raises(ValueError, match=advice):
        {
            "default": lambda: nnx.Rngs(seed),
            "named": lambda: nnx.Rngs(a=seed),
            "mapping": lambda: nnx.Rngs({"a": seed}),
            "stream": lambda: nnx.RngStream(seed, tag="a"),
        }[how]()


def test_d47_named_none_is_no_seed():
    with pytest.raises(ValueError, match="None is no seed: use an int"):
        nnx.Rngs(a=None)


def test_d47_keywords_win_over_the_mapping():
    rngs = nnx.Rngs({"a": 1, "default": 0}, a=2, b=3)
    assert list(rngs) == ["a", "default", "b"]
    assert same(rngs.a(), nth(2, 0)) and same(rngs(), nth(0, 0))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("source", ["rngs", "stream"])
@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit])
def test_d48_samplers_draw_with_the_next_key(name, source, transform):
    rngs = nnx.Rngs(0, noise=1)
    rngs(), rngs.noise()
    given, seed = (rngs, 0) if source == "rngs" else (rngs.noise, 1)

    class Plain:
        """The same calls with a key given by hand."""

        def __getattr__(self, name):
            return lambda *args, **kw: getattr(jax.random, name)(
                nth(seed, 1), *args, **kw
            )

    got = transform(lambda r: DRAWS[name](r))(given)
    assert np.array_equal(got, DRAWS[name](Plain()))
    stream = rngs.default if source == "rngs" else rngs.noise
    assert stream.count.value == 2


@pytest.mark.parametrize("name", INITIALIZERS)
def test_d48_initializers_draw_at_each_call(name):
    rngs = nnx.Rngs(0)
    init = getattr(rngs, name)()
    assert rngs.default.count.value == 0
    shape = (3, 4, 4) if name == "delta_orthogonal" else (4, 5)
    dtype = jnp.float32 if name == "delta_orthogonal" else jnp.bfloat16
    for n in range(2):
        expected = getattr(jax.nn.initializers, name)()(nth(0, n), shape, dtype)
        assert np.array_equal(init(shape, dtype), expected)


@pytest.mark.parametrize("how", ["argument", "captured", "in a model", "method"])
def test_d48_counts_come_back_from_jit(how):
    rngs = nnx.Rngs(0)
    model = nnx.Dict(rngs=rngs)
    traces = []

    def draw(r):
        traces.append(1)
        return r(), r.noise()

    run = {
        "argument": lambda: nnx.jit(draw)(rngs),
        "captured": nnx.jit(lambda: draw(rngs)),
        "in a model": nnx.jit(lambda: draw(model.rngs)),
        "method": lambda: (nnx.jit(rngs.__call__)(), nnx.jit(rngs.default)()),
    }[how]
    for n in range(3):
        for key, expected in zip(
            run(), (nth(0, 2 * n), nth(0, 2 * n + 1)), strict=True
        ):
            assert same(key, expected)
    assert rngs.default.count.value == 6 and rngs.default.count.dtype == jnp.uint32
    if how in ("captured", "in a model"):
        assert len(traces) == 1


def test_d48_streams_made_in_jit():
    @nnx.jit
    def make(seed):
        rngs = nnx.Rngs(seed, dropout=seed + 1)
        rngs()
        return rngs.fork()

    fork = make(3)
    assert same(fork(), nth(nth(3, 1), 0)) and same(fork.dropout(), nth(nth(4, 0), 0))


def test_d48_an_exception_in_jit_hands_out_nothing():
    rngs = nnx.Rngs(0)

    @nnx.jit
    def f():
        rngs()
        raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        f()
    assert same(rngs(), nth(0, 0))


@pytest.mark.parametrize("plain", [jax.jit, jax.vmap, jax.grad])
def test_drawing_inside_a_plain_transform(plain):
    rngs = nnx.Rngs(0)
    x = jnp.ones(2) if plain is jax.vmap else 1.0
    advice = (
        "RngCount 'Rngs.default.count' cannot be changed.*Use the nnxlite transform"
    )
    with pytest.raises(nnx.TraceContextError, match=advice):
        plain(lambda x: x * rngs.normal(()))(x)
    assert same(rngs(), nth(0, 0))


def test_every_sampler_is_one_of_jax():
    names = [n for n in dir(nnx.Rngs) if hasattr(jax.random, n) and n[0] != "_"]
    names = [n for n in names if n not in ("split",)]
    assert len(names) >= 38
    for cls, name in itertools.product((nnx.Rngs, nnx.RngStream), names):
        assert name in getattr(cls, name).__doc__


# Flax NNX


SCRIPTS = {
    "default": lambda r, nnx: [r(), r.params(), r()],
    "streams": lambda r, nnx: [r.dropout(), r.dropout(), r()],
    "fork": lambda r, nnx: [r.fork()(), r.fork().dropout(), r()],
    "split": lambda r, nnx: [r.split(3).default.key, r.split((2, 2)).dropout.key, r()],
    "split by filter": lambda r, nnx: [
        r.split({"dropout": 2}).dropout.key,
        r.dropout(),
    ],
    "broadcast": lambda r, nnx: [r.broadcast(3).default.key, r()],
    "reseed": lambda r, nnx: [nnx.reseed(r, dropout=5), r.dropout(), r()],
    "reseed split": lambda r, nnx: [
        s := r.split(2),
        nnx.reseed(s, dropout=5, policy="match_shape"),
        s.dropout.key,
    ][1:],
    "dropout": lambda r, nnx: [nnx.Dropout(0.5, rngs=r).rngs.key, r.dropout()],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("seed", [0, 12345])
def test_keys_as_flax(oracle, script, seed):
    results = []
    for module in (nnx, oracle("flax.nnx")):
        keys = script(module.Rngs(seed, dropout=seed + 1), module)
        keys = [k.get_value() if hasattr(k, "get_value") else k for k in keys]
        results.append([data(k).tolist() for k in keys if k is not None])
    assert results[0] == results[1]


@pytest.mark.parametrize("name", DRAWS)
def test_samples_as_flax(oracle, name):
    ours, theirs = nnx.Rngs(0), oracle("flax.nnx").Rngs(0)
    for _ in range(2):
        assert np.array_equal(DRAWS[name](ours), DRAWS[name](theirs))


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_as_flax(oracle, name):
    shape = (3, 4, 4) if name == "delta_orthogonal" else (4, 5)
    got = [getattr(m.Rngs(3), name)()(shape) for m in (nnx, oracle("flax.nnx"))]
    assert np.array_equal(*got)


def test_names_as_flax(oracle):
    theirs = oracle("flax.nnx").Rngs
    wanted = {n for n in dir(theirs) if hasattr(jax.random, n) and n[0] != "_"}
    wanted |= {
        n for n in dir(theirs) if hasattr(jax.nn.initializers, n) and n[0] != "_"
    }
    assert wanted <= set(dir(nnx.Rngs))
