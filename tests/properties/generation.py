"""Strategies of hypothesis for programs."""

from typing import Any

from hypothesis import strategies as st

from .binding import FRONT, WAYS
from .programs import INPUTS, KINDS, MODULES, Program

Strategy = st.SearchStrategy[Any]


def case(name: str, *operands: Strategy) -> Strategy:
    return st.tuples(st.just(name), *operands)


def blocks(elements: Strategy, longest: int, shortest: int = 0) -> Strategy:
    return st.lists(elements, min_size=shortest, max_size=longest).map(tuple)


def entries(names: Strategy, values: Strategy) -> Strategy:
    """What a dict would hold, as a tuple of pairs."""
    return st.dictionaries(names, values, max_size=2).map(lambda d: tuple(d.items()))


numbers = st.integers(0, 7) | st.integers(-3, 30)
small = st.integers(1, 5)
names = st.sampled_from(["a", "b", "c", "d"])
keys = st.sampled_from(["x", "y", "items"])
fields = st.sampled_from(["model", "other"])
kinds = st.sampled_from(sorted(KINDS))
modules = st.sampled_from(sorted(MODULES))
INPUT_KINDS = ["array", *INPUTS]
shapes = st.sampled_from([(2,), ()])
statics = st.sampled_from([0, 1, 2, "text", None, (1, 2), 0.5, True])
metadata_names = st.sampled_from(["note", "group"])
metadata_values = st.sampled_from([1, 2, "text", None, ("x", None)])

# What values are made of; see `Machine.new`.
arrays = st.one_of(
    case("traced", shapes, small),
    case("traced", shapes, small),
    case("array", shapes, small),
    case("ints", shapes, small),
    case("numpy", shapes, small),
)
odd = st.one_of(
    case("static", st.sampled_from(["text", None, 1, 0.5])),
    case("key", small),
    case("dict", st.tuples(*[st.tuples(st.just(key), arrays) for key in "wv"])),
)
contents = st.one_of(arrays, arrays, odd)
variables = case("variable", kinds, contents, entries(metadata_names, metadata_values))
existing = case("object", numbers)
plain = st.one_of(variables, existing, arrays, case("static", statics))


def containers(parts: Strategy) -> Strategy:
    return st.one_of(
        case("list", blocks(parts, 3)),
        case("list", blocks(parts, 3)),
        case("tuple", blocks(parts, 3)),
        case("pair", parts, parts),
        case("dict", entries(keys, parts)),
        case("module", modules, entries(names, parts)),
    )


holders = containers(plain | containers(plain))
values = st.one_of(
    variables,
    existing,
    existing,
    arrays,
    case("static", statics),
    case("part", numbers),
    holders,
    holders,
)
results = st.one_of(existing, values, case("state", numbers))

READING = (
    case("read", numbers),
    case("survey"),
    case("give", results),
    case("give_total"),
)
WRITING = (
    case("write", numbers, contents),
    case("write_all", numbers, contents),
    case("write_one", numbers, numbers),
    case("assign", numbers, numbers),
    case("add_to", numbers, arrays),
    case("update", numbers),
)
SHARING = (
    case("set", numbers, names, values),
    case("set", numbers, names, holders),
    case("set", numbers, names, existing),
    case("replace", numbers, values),
    case("share", numbers, numbers, variables | containers(plain)),
)
CONNECTING = (
    *SHARING,
    case("mark", numbers, names, st.just("data"), st.sampled_from([0.5, 1.0])),
    case("mark", numbers, names, st.just("static"), st.sampled_from([1, "text"])),
)
CHANGING = (
    *CONNECTING,
    case("set_field", numbers, fields, values),
    case("increment", numbers),
    case("delete", numbers),
    case("delete", numbers),
    case("swap", numbers, numbers),
    case("append", numbers, values),
    case("insert", numbers, numbers, values),
    case("pop", numbers, numbers),
    case("reverse", numbers),
    case("set_item", numbers, keys, values),
    case("pop_item", numbers),
    case("pop_kind", numbers, kinds),
    case("clone", numbers),
    case("rebuild", numbers),
    case("make", values),
    case("set_metadata", numbers, metadata_names, metadata_values),
    case("del_metadata", numbers, metadata_names),
)
KEEPING = (
    case("write_all", numbers, contents),
    case("write_one", numbers, numbers),
    case("update", numbers),
)
steady = st.one_of(*READING, *KEEPING)  # types of values stay, as a rule
calm = st.one_of(*READING, *WRITING)
lively = st.one_of(*READING, *WRITING, *CHANGING)
raising = case("halt") | case("overwrite", numbers) | case("halt_if", names)


def nesting(instructions: Strategy) -> Strategy:
    """Instructions, and once in a while a block of them."""
    inner = blocks(instructions, 3, shortest=1)
    failing = st.tuples(inner, raising).map(lambda parts: (*parts[0], parts[1]))
    nested = case("nest", inner) | case("attempt", failing)
    return st.one_of(*[instructions] * 8, nested)


def bodies(instructions: Strategy) -> Strategy:
    return blocks(nesting(instructions), 10, shortest=1)


@st.composite
def failing_bodies(draw: Any) -> tuple[Any, ...]:
    body = draw(bodies(lively))
    place = draw(st.integers(0, len(body)))
    return (*body[:place], draw(raising), *body[place:])


@st.composite
def ways(draw: Any, numbers: Strategy) -> tuple[tuple[int, str], ...]:
    """One to five objects, some in two ways; at most one is bound in front."""
    pairs = draw(blocks(st.tuples(numbers, st.sampled_from(WAYS)), 4, shortest=1))
    if draw(st.booleans()):
        pairs = (*pairs, (pairs[0][0], draw(st.sampled_from(WAYS))))
    front = [n for n, (_, way) in enumerate(pairs) if way in FRONT][1:]
    return tuple(
        (number, "bare" if n in front else way) for n, (number, way) in enumerate(pairs)
    )


objects = blocks(case("module", modules, st.just(())) | variables, 4).map(
    lambda rest: (("module", "Node", ()), *rest)
)
same = st.sampled_from(INPUT_KINDS).map(lambda kind: (kind, kind))
base = {
    "objects": objects,
    "edges": blocks(st.one_of(*CONNECTING), 10),
    "ways": ways(numbers),
    "fresh": st.booleans(),
    "forgets": st.booleans(),
    "donates": st.sampled_from([False, False, False, True]),
}
# Most bodies change the structure.
changing = st.builds(
    Program,
    **base,
    body=st.one_of(bodies(calm), bodies(lively), bodies(lively), failing_bodies()),
    between=blocks(lively, 3),
    is_between_compiled=st.booleans(),
    again=st.just(()) | blocks(numbers, 3),
    inputs=st.tuples(*[st.sampled_from(INPUT_KINDS)] * 2),
)
# Nothing but what happens between the calls tells them apart.
interrupted = st.builds(
    Program,
    **base,
    body=bodies(calm).map(lambda body: (("survey",), *body, ("give_total",))),
    between=blocks(lively, 3, shortest=1),
    is_between_compiled=st.booleans(),
    inputs=same,
)
# Nothing but which objects the function gets tells the calls apart.
rebound = st.builds(
    Program,
    **{**base, "ways": ways(st.integers(0, 4))},
    body=bodies(calm).map(lambda body: (*body, ("survey",), ("give_total",))),
    again=blocks(st.integers(0, 4), 4, shortest=1),
    inputs=same,
)
programs = st.one_of(changing, changing, interrupted, rebound)


def under(*body: Strategy) -> Strategy:
    """Programs for other transforms than jit, with one of these bodies."""
    return st.builds(
        Program,
        objects=objects,
        edges=blocks(st.one_of(*SHARING), 8) | blocks(st.one_of(*CONNECTING), 8),
        ways=ways(numbers),
        body=st.one_of(*body),
        inputs=same,
    )


freely = under(bodies(steady), bodies(calm), *[bodies(lively)] * 2, failing_bodies())
mostly_steady = under(
    *[bodies(steady)] * 4, *[bodies(calm)] * 2, bodies(lively), failing_bodies()
)
