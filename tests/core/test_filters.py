"""Filters: literals, combinations, equality, and where they decide."""

import itertools

import jax.numpy as jnp
import pytest

import nnxlite as nnx

to_predicate = nnx.filterlib.to_predicate


class Weight(nnx.Param):
    pass


def model():
    return nnx.Dict(
        a=nnx.Dict(kernel=nnx.Param(1.0), bias=Weight(2.0, tag="small")),
        b=[nnx.BatchStat(3.0), nnx.Param(4.0, tag="head"), jnp.ones(2)],
        rngs=nnx.Rngs(0, dropout=1),
    )


A = {("a", "bias"), ("a", "kernel")}
B = {("b", 0), ("b", 1), ("b", 2)}
DEFAULT = {("rngs", "default", "count"), ("rngs", "default", "key")}
DROPOUT = {("rngs", "dropout", "count"), ("rngs", "dropout", "key")}
RNGS = DEFAULT | DROPOUT
ALL = A | B | RNGS
VARIABLES = ALL - {("b", 2)}
PARAMS = A | {("b", 1)}

# D18: each literal or combination, and the paths that it selects.
FILTERS = {
    "type": (nnx.Param, PARAMS),
    "subclass": (Weight, {("a", "bias")}),
    "base class": (nnx.Variable, VARIABLES),
    "abstract kind": (nnx.RngState, RNGS),
    "type of an array": (type(jnp.ones(2)), {("b", 2)}),
    "union": (nnx.BatchStat | Weight, {("a", "bias"), ("b", 0)}),
    "tag": ("dropout", DROPOUT),
    "tag of a param": ("head", {("b", 1)}),
    "callable of path": (lambda path, value: path[0] == "a", A),
    "callable of value": (
        lambda path, value: isinstance(value, Weight),
        {("a", "bias")},
    ),
    "true": (True, ALL),
    "ellipsis": (..., ALL),
    "everything": (nnx.Everything(), ALL),
    "false": (False, set()),
    "none": (None, set()),
    "nothing": (nnx.Nothing(), set()),
    "list": ([nnx.BatchStat, "head"], {("b", 0), ("b", 1)}),
    "tuple": ((nnx.BatchStat, "head"), {("b", 0), ("b", 1)}),
    "empty": ((), set()),
    "nested": (
        [nnx.BatchStat, ["head", (Weight,)]],
        {("a", "bias"), ("b", 0), ("b", 1)},
    ),
    "any": (nnx.Any(nnx.BatchStat, "dropout"), DROPOUT | {("b", 0)}),
    "any of none": (nnx.Any(), set()),
    "all": (nnx.All(nnx.Param, nnx.PathContains("a")), A),
    "all of none": (nnx.All(), ALL),
    "not": (nnx.Not(nnx.RngState), A | B),
    "not of a list": (nnx.Not([nnx.RngState, nnx.Param]), {("b", 0), ("b", 2)}),
    "not all": (nnx.Not(...), set()),
    "path": (nnx.PathContains("kernel"), {("a", "kernel")}),
    "index in path": (nnx.PathContains(0), {("b", 0)}),
    "inner part": (nnx.PathContains("rngs"), RNGS),
    "exact": (nnx.PathContains("ker"), set()),
    "substring": (nnx.PathContains("ker", exact=False), {("a", "kernel")}),
    "substring of any": (nnx.PathContains("a", exact=False), A | DEFAULT),
    "path in": (
        nnx.filterlib.PathIn(("b", 0), ("a", "bias")),
        {("b", 0), ("a", "bias")},
    ),
    "of type": (nnx.OfType(nnx.Param), PARAMS),
    "with tag": (nnx.WithTag("small"), {("a", "bias")}),
    "deep": (
        nnx.All(nnx.Any(nnx.Param, "dropout"), nnx.Not(nnx.All("head", nnx.Param))),
        A | DROPOUT,
    ),
}
filters = pytest.mark.parametrize(
    ("literal", "paths"), FILTERS.values(), ids=FILTERS.keys()
)


@filters
@pytest.mark.parametrize(
    "select",
    [
        lambda m, f: nnx.state(m, f),
        lambda m, f: nnx.state(m, f, ...)[0],
        lambda m, f: nnx.split(m, f, ...)[1],
        lambda m, f: nnx.filter_state(nnx.state(m), f),
        lambda m, f: nnx.split_state(nnx.state(m), f, ...)[0],
        lambda m, f: nnx.to_flat_state(nnx.state(m)).filter(f),
        lambda m, f: nnx.to_flat_state(nnx.state(m)).split(f, ...)[0],
        lambda m, f: nnx.state(m, nnx.Not(nnx.Not(f))),
        lambda m, f: nnx.state(m, [f]),
        lambda m, f: nnx.state(m, nnx.All(f, ...)),
        lambda m, f: nnx.state(m, None, f)[1],
        lambda m, f: nnx.state(m, to_predicate(f)),
    ],
)
def test_d18_filters_select(literal, paths, select):
    got = select(model(), literal)
    flat = got if isinstance(got, nnx.FlatState) else nnx.to_flat_state(got)
    assert set(flat.paths) == paths


@filters
def test_d18_negation_selects_the_rest(literal, paths):
    rest = nnx.to_flat_state(nnx.state(model(), nnx.Not(literal)))
    assert set(rest.paths) == ALL - paths


PAIRS = list(itertools.product(["type", "tag", "list", "path", "none"], repeat=2))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_d18_the_first_match_wins(first, second):
    (f, a), (g, b) = FILTERS[first], FILTERS[second]
    m = model()
    parts = [set(nnx.to_flat_state(s).paths) for s in nnx.split(m, f, g, ...)[1:]]
    assert parts == [a, b - a, ALL - a - b]
    assert set(nnx.to_flat_state(nnx.state(m, nnx.Any(f, g))).paths) == a | b
    assert set(nnx.to_flat_state(nnx.state(m, nnx.All(f, g))).paths) == a & b


@filters
def test_predicates_are_called_with_path_and_value(literal, paths):
    predicate = to_predicate(literal)
    for path, leaf in nnx.to_flat_state(nnx.state(model())):
        assert predicate(path, leaf) is (path in paths)


@pytest.mark.parametrize(
    ("literal", "predicate"),
    [
        (nnx.Param, nnx.OfType(nnx.Param)),
        (nnx.Param | nnx.Cache, nnx.OfType(nnx.Param | nnx.Cache)),
        ("x", nnx.WithTag("x")),
        (..., nnx.Everything()),
        (True, nnx.Everything()),
        (None, nnx.Nothing()),
        (False, nnx.Nothing()),
        (["x", nnx.Param], nnx.Any("x", nnx.Param)),
        ((), nnx.Any()),
        (nnx.Not("x"), nnx.Not("x")),
        (nnx.PathContains("a"), nnx.PathContains("a")),
    ],
)
def test_literals(literal, predicate):
    assert to_predicate(literal) == predicate
    assert hash(to_predicate(literal)) == hash(predicate)


MAKERS = [
    lambda: nnx.Everything(),
    lambda: nnx.Nothing(),
    lambda: nnx.OfType(nnx.Param),
    lambda: nnx.OfType(nnx.Cache),
    lambda: nnx.WithTag("a"),
    lambda: nnx.PathContains("a"),
    lambda: nnx.PathContains("a", exact=False),
    lambda: nnx.filterlib.PathIn(("a",), ("b", 0)),
    lambda: nnx.All(nnx.Param, "a"),
    lambda: nnx.Any(nnx.Param, "a"),
    lambda: nnx.Any("a", nnx.Param),
    lambda: nnx.Not(nnx.Param),
    lambda: nnx.Not(nnx.Any(nnx.Param, ["a"])),
]


@pytest.mark.parametrize(
    ("i", "j"), list(itertools.product(range(len(MAKERS)), repeat=2))
)
def test_equality_and_hash_are_by_content(i, j):
    a, b = MAKERS[i](), MAKERS[j]()
    assert (a == b) is (i == j)
    assert len({a: 1, b: 2}) == (1 if i == j else 2)
    assert a != "text" and repr(a) != repr(b) or i == j


@pytest.mark.parametrize(
    "make", [nnx.OfType, nnx.WithTag, nnx.PathContains], ids=lambda m: m.__name__
)
def test_filters_are_frozen(make):
    filter = make("a")
    with pytest.raises(AttributeError, match="cannot assign to field"):
        setattr(filter, "tag", "b")  # noqa: B010


@pytest.mark.parametrize("bad", [3, 1.5, {"a": 1}, {nnx.Param}, b"x", jnp.ones(2)])
@pytest.mark.parametrize(
    "use",
    [
        to_predicate,
        nnx.Any,
        nnx.All,
        nnx.Not,
        lambda f: to_predicate([nnx.Param, [f]]),
        lambda f: nnx.state(model(), f),
        lambda f: nnx.split(model(), nnx.Param, f),
    ],
)
def test_other_literals_are_refused(bad, use):
    advice = (
        rf"of type {type(bad).__name__} is not a filter: use a type, a str tag, a ca"
    )
    with pytest.raises(TypeError, match=advice):
        use(bad)


@pytest.mark.parametrize("catch_all", [..., True])
@pytest.mark.parametrize("later", [nnx.Param, None, "tag"])
@pytest.mark.parametrize(
    "use",
    [
        nnx.split,
        nnx.state,
        lambda m, *f: nnx.split_state(nnx.state(m), *f),
        lambda m, *f: nnx.filter_state(nnx.state(m), *f),
        lambda m, *f: nnx.pop(m, *f),
        lambda m, *f: nnx.unpack(m, *f),
    ],
)
def test_catch_all_stands_last(catch_all, later, use):
    advice = rf"filter 1 is `{catch_all!r}`, which matches everything.*put `...` last"
    with pytest.raises(ValueError, match=advice):
        use(model(), nnx.Cache, catch_all, later)
    use(model(), nnx.Cache, catch_all, ...)


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        (nnx.Linear, {("a",), ("b", 0)}),
        (nnx.Module, {("a",), ("b",), ("b", 0), ()}),
        (nnx.PathContains("b"), {("b",), ("b", 0)}),
    ],
)
def test_filters_of_modules(filter, found):
    rngs = nnx.Rngs(0)
    m = nnx.Dict(a=nnx.Linear(1, 1, rngs=rngs), b=[nnx.Linear(1, 1, rngs=rngs)])
    matches = to_predicate(filter)
    assert {path for path, node in nnx.iter_modules(m) if matches(path, node)} == found


def test_filters_are_keys():
    rules = {nnx.Any(nnx.Param, "a"): 1, nnx.All(): 2}
    assert rules[nnx.Any(nnx.Param, "a")] == 1 and rules[nnx.All()] == 2


# Flax NNX


def flax_filter(flax, name):
    kind = {nnx.Param: flax.Param, nnx.BatchStat: flax.BatchStat}
    literal = FILTERS[name][0]

    def build(f):
        if isinstance(f, list | tuple):
            return type(f)(map(build, f))
        if isinstance(f, nnx.Any | nnx.All | nnx.Not):
            return getattr(flax, type(f).__name__)(*map(build, f.predicates))
        if isinstance(f, nnx.OfType):
            return flax.OfType(kind.get(f.type, f.type))
        if isinstance(f, nnx.PathContains):
            return flax.PathContains(f.key, exact=f.exact)
        if isinstance(f, nnx.WithTag):
            return flax.WithTag(f.tag)
        if isinstance(f, nnx.Everything | nnx.Nothing):
            return getattr(flax, type(f).__name__)()
        return kind.get(f, f) if isinstance(f, type) else f

    return build(literal)


SAME = [
    "type",
    "tag",
    "tag of a param",
    "callable of path",
    "true",
    "ellipsis",
    "false",
    "none",
    "list",
    "tuple",
    "any",
    "all",
    "all of none",
    "any of none",
    "path",
    "index in path",
    "exact",
    "substring",
    "substring of any",
]


@pytest.mark.parametrize("name", SAME)
def test_as_flax(oracle, name):
    flax = oracle("flax.nnx")
    theirs = flax.Dict(
        a=flax.Dict(kernel=flax.Param(1.0), bias=flax.Param(2.0, tag="small")),
        b=flax.List([flax.BatchStat(3.0), flax.Param(4.0, tag="head"), jnp.ones(2)]),
        rngs=flax.Rngs(0, dropout=1),
    )
    got = flax.to_flat_state(flax.state(theirs, flax_filter(flax, name))).paths
    assert nnx.to_flat_state(nnx.state(model(), FILTERS[name][0])).paths == got
