"""Strategies of hypothesis for the programs of `programs`."""

from typing import Any

from hypothesis import strategies as st

from .programs import (
    FRONT,
    KEYS,
    KINDS,
    METADATA_NAMES,
    MODULES,
    NAMES,
    PASSED,
    WAYS,
    Program,
)

Strategy = st.SearchStrategy[Any]

numbers = st.integers(0, 7)
small = st.integers(1, 5)
names = st.sampled_from(NAMES)
keys = st.sampled_from(KEYS)
kinds = st.sampled_from(sorted(KINDS))
shapes = st.sampled_from([(2,), ()])
statics = st.sampled_from([0, 1, 2, "text", None, (1, 2), 0.5, True])
metadata_values = st.sampled_from([1, 2, "text", None, ("x", None)])
metadata = st.dictionaries(
    st.sampled_from(METADATA_NAMES), metadata_values, max_size=2
).map(lambda entries: tuple(entries.items()))


def case(name: str, *operands: Strategy) -> Strategy:
    return st.tuples(st.just(name), *operands)


arrays = (
    case("traced", shapes, small)
    | case("array", shapes, small)
    | case("numpy", shapes, small)
)
odd = case("static", st.sampled_from(["text", None, 1, 0.5])) | case(
    "dict", st.tuples(st.tuples(st.just("w"), arrays), st.tuples(st.just("v"), arrays))
)
contents = st.one_of(arrays, arrays, arrays, odd)
variables = case("variable", kinds, contents, metadata)
existing = case("object", numbers)
plain = st.one_of(variables, existing, arrays, case("static", statics))


def _containers(parts: Strategy) -> Strategy:
    elements = st.lists(parts, max_size=3).map(tuple)
    entries = st.dictionaries(keys, parts, max_size=2).map(lambda d: tuple(d.items()))
    attributes = st.dictionaries(names, parts, max_size=2).map(
        lambda d: tuple(d.items())
    )
    return st.one_of(
        case("list", elements),
        case("tuple", elements),
        case("dict", entries),
        case("module", st.sampled_from(sorted(MODULES)), attributes),
    )


values = st.one_of(
    variables,
    existing,
    existing,
    arrays,
    case("static", statics),
    case("part", numbers),
    _containers(plain | _containers(plain)),
)
results = st.one_of(existing, values)

READING = (case("read", numbers), case("give", results), case("give_total"))
WRITING = (
    case("write", numbers, contents),
    case("write_all", numbers, contents),
    case("write_one", numbers, numbers),
    case("assign", numbers, numbers),
    case("add_to", numbers, arrays),
)
CHANGING = (
    case("set", numbers, names, values),
    case("set", numbers, names, values),
    case("replace", numbers, values),
    case("increment", numbers),
    case("delete", numbers),
    case("swap", numbers, numbers),
    case("append", numbers, values),
    case("insert", numbers, numbers, values),
    case("pop", numbers, numbers),
    case("reverse", numbers),
    case("set_item", numbers, keys, values),
    case("pop_item", numbers, keys),
    case("pop_kind", numbers, kinds),
    case("clone", numbers),
    case("make", values),
    case("set_metadata", numbers, st.sampled_from(METADATA_NAMES), metadata_values),
    case("del_metadata", numbers, st.sampled_from(METADATA_NAMES)),
)
RAISING = (case("halt"), case("overwrite", numbers))

calm = st.one_of(*READING, *WRITING)
lively = st.one_of(*READING, *WRITING, *CHANGING)


def _nesting(instructions: Strategy) -> Strategy:
    block = st.lists(instructions, min_size=1, max_size=3).map(tuple)
    raising = st.tuples(block, st.one_of(*RAISING)).map(lambda p: (*p[0], p[1]))
    return st.one_of(
        *[instructions] * 8, case("nest", block), case("attempt", raising)
    )


def _body(instructions: Strategy, raises: bool) -> Strategy:
    block = st.lists(_nesting(instructions), min_size=1, max_size=10).map(tuple)
    if not raises:
        return block
    return st.tuples(block, st.one_of(*RAISING), block).map(
        lambda parts: (*parts[0], parts[1], *parts[2])
    )


bodies = st.one_of(
    _body(calm, False),
    _body(lively, False),
    _body(lively, False),
    _body(lively, False),
    _body(lively, True),
)
objects = st.lists(
    st.one_of(
        case("module", st.sampled_from(sorted(MODULES)), st.just(())), variables
    ),
    max_size=4,
).map(lambda rest: (("module", "Node", ()), *rest))
holders = _containers(plain | _containers(plain))
edges = st.lists(
    st.one_of(case("set", numbers, names, values | holders), *CHANGING[:3]), max_size=8
).map(tuple)


@st.composite
def ways(draw: Any) -> tuple[tuple[int, str], ...]:
    """One to three objects, each in one or two ways, at most one bound in front."""
    pairs = draw(
        st.lists(st.tuples(numbers, st.sampled_from(WAYS)), min_size=1, max_size=4)
    )
    if draw(st.booleans()):
        pairs.append((pairs[0][0], draw(st.sampled_from(WAYS))))
    fronts = 0
    for index, (number, way) in enumerate(pairs):
        fronts += way in FRONT
        if way in FRONT and fronts > 1:
            pairs[index] = (number, PASSED[0])
    return tuple(pairs)


programs = st.builds(
    Program,
    objects=objects,
    edges=edges,
    ways=ways(),
    body=bodies,
    between=st.just(()) | st.lists(lively, max_size=2).map(tuple),
    fresh=st.booleans(),
)
