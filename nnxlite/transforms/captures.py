"""What a function sees without receiving it: captured objects and constants.

A function sees its closure cells, the globals that its code loads, its defaults, and
through functions among these what they see. `View.look` reads all of it at every call,
so that a rebound global is noticed. Modules and Variables found there become implicit
arguments; everything else is a constant of the compiled program, compared like any
static value, so that rebinding it compiles again and never gives a stale result.

Attributes are not followed: what a function reaches through a field of a plain object,
a registry, or a module's namespace is not visible here.
"""

import dis
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from ..core import interception
from ..core.frames import is_local
from ..core.module import Pytree
from ..core.state import State
from ..core.statics import SMALL_BYTES, static_key
from ..core.variable import Variable
from .leaves import PLAIN, STATIC, flatten, has_fields, kind_of, of_library

# Functions of these packages hold none of the user's objects, and see a lot.
_NOT_FOLLOWED = frozenset(
    "builtins functools jax jaxlib math numpy nnxlite operator optax".split()
)
_ABSENT: Any = type("Absent", (), {})()
_CONTAINERS = (list, dict, tuple, set, State)


Place = tuple[Any, str]  # the code of a function, and a name in it


class View:
    """What one function sees, as far as it is found by following functions.

    `contained` are the functions in containers, which are followed too.
    `pinned` are the places whose values settle what else is seen, each a reader and a
    reference: as long as they hold these objects, `constants` holds too. `watched` are
    the places with containers, whose contents may change in place and are read anew at
    every look.

    Args:
      function: whose view it is.
      tokens: gives one object for each content of `constants`, which stands for it in
        keys: hashing the content itself takes longer than a compiled call. Without,
        the content stands for itself.
      ignored: places that are left out, since the function itself changes what they
        hold while it is traced: side effects that a compiled call does not repeat.
    """

    __slots__ = (
        "constants",
        "contained",
        "function",
        "ignored",
        "objects",
        "pinned",
        "token",
        "tokens",
        "watched",
    )

    def __init__(
        self,
        function: Any,
        tokens: dict[Hashable, object] | None = None,
        ignored: frozenset[Place] = frozenset(),
    ):
        self.function: Any = function
        self.tokens: dict[Hashable, object] | None = tokens
        self.ignored: frozenset[Place] = ignored
        self.pinned: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
        self.watched: list[tuple[Callable[[], Any], Place]] = []
        self.objects: list[Callable[[], Any]] = []
        self.contained: list[Any] = []
        constants: list[tuple[Place, Hashable]] = []
        followed: set[int] = set()
        waiting: list[Any] = [function]
        while waiting:
            seen = waiting.pop()
            if id(seen) in followed:
                continue
            followed.add(id(seen))
            for name, read in _places(seen):
                place = (getattr(seen, "__code__", type(seen)), name)
                try:
                    value = read()
                except ValueError:  # as above
                    value = _ABSENT
                if isinstance(value, (Pytree, Variable)):
                    self._pin(read, value)
                    self.objects.append(weakref.ref(value))
                elif is_followed(value):
                    self._pin(read, value)
                    waiting.append(value)
                    constants.append((place, own_part(value)))
                elif _may_change_inside(value):
                    self.watched.append((read, place))
                    if place not in ignored:
                        inner = [x for x in flatten(value)[0] if is_followed(x)]
                        self.contained += inner
                        waiting += inner
                elif place in ignored:
                    continue
                else:
                    self._pin(read, value)
                    constants.append((place, static_key(value)))
        self.constants: tuple[tuple[Place, Hashable], ...] = tuple(constants)
        self.token: Any = self.constants
        if tokens is not None:
            self.token = tokens.setdefault(self.constants, object())

    def _pin(self, read: Callable[[], Any], value: Any) -> None:
        try:
            expected: Callable[[], Any] = weakref.ref(value)
        except TypeError:  # numbers, strings: kept, so that their id stays taken
            expected = functools.partial(_same, value)
        self.pinned.append((read, expected))

    def is_current(self) -> bool:
        """True while every pinned place holds the object that it held."""
        try:
            for read, expected in self.pinned:
                if read() is not expected():
                    return False
        except ValueError:  # a closure's variable has no value now
            return False
        return True

    def look(self) -> tuple[list[Any], Hashable]:
        """The objects seen now, and a key of everything else seen."""
        objects = [reference() for reference in self.objects]
        if not self.watched:
            return objects, self.token
        functions: list[Any] = []
        keys = [
            _contents(read, objects, functions, place in self.ignored)
            for read, place in self.watched
        ]
        if list(map(id, functions)) != list(map(id, self.contained)):
            self.__init__(self.function, self.tokens, self.ignored)
            return self.look()
        return objects, (self.token, *keys)

    def without_effects(self, seen_before: "Sequence[tuple[View, Hashable]]") -> "View":
        """This view, or one that ignores what changed since it was seen.

        Args:
          seen_before: this view and others, with what each saw.
        """
        changed: set[Place] = set()
        for view, seen in seen_before:
            now = View(view.function, view.tokens, self.ignored)
            _, seen_now = now.look()
            if seen_now != seen:
                before, after = view._by_place(seen), now._by_place(seen_now)
                changed |= {p for p in before if p in after and before[p] != after[p]}
        if not changed:
            return self
        return View(self.function, self.tokens, self.ignored | changed)

    def keys(self) -> dict[Place, Hashable]:
        """Of each place the key of what it holds now."""
        return self._by_place(self.look()[1])

    def _by_place(self, seen: Any) -> dict[Place, Hashable]:
        places = dict(self.constants)
        if self.watched:
            watched = [place for _, place in self.watched]
            places.update(zip(watched, seen[1:], strict=True))
        return places


def _contents(
    read: Callable[[], Any],
    objects: list[Any],
    functions: list[Any],
    is_ignored: bool,
) -> Hashable:
    """A key of a container's contents; adds to the objects and functions seen in it."""
    leaves, treedef = flatten(read())
    keys: list[Hashable] = ["ignored" if is_ignored else treedef]
    for leaf in leaves:
        if isinstance(leaf, (Pytree, Variable)):
            if is_ignored and not is_local(leaf, _home_of(leaf)):
                continue  # the function has put it there while it was traced
            objects.append(leaf)
            keys.append(type(leaf))
        elif is_ignored:
            continue
        elif is_followed(leaf):
            functions.append(leaf)
            keys.append(getattr(leaf, "__code__", type(leaf)))
        else:
            keys.append(static_key(leaf))
    return tuple(keys)


def _home_of(obj: Any) -> Any:
    return obj._home if isinstance(obj, Variable) else obj._nnx_stamp.home


def own_part(value: Any) -> Hashable:
    """What settles a followed callable, besides what it sees."""
    if isinstance(value, (functools.partial, types.MethodType)):
        return type(value)
    if isinstance(value, types.FunctionType) and not _is_of_library(value):
        return value.__code__
    return static_key(value)  # a library's wrapper: it sees more than `__wrapped__`


def _may_change_inside(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.nbytes <= SMALL_BYTES
    return isinstance(value, _CONTAINERS)


def _same(value: Any) -> Any:
    return value


def goes_stale(arguments: Any) -> bool:
    """True if a program of these arguments may hold what changes unseen.

    So it is with what a function among them sees: bare arrays, which would be constants
    of the program, and objects and classes of the user, whose attributes are not read
    at each call. Other attributes than those of Modules are not read either.
    """
    for leaf in flatten(arguments)[0]:
        if is_followed(leaf):
            view = View(leaf)
            reads = [read for read, _ in view.pinned + view.watched]
            seen = [x for read in reads for x in flatten(read())[0]]
            if any(isinstance(x, jax.Array) or _may_change_unseen(x) for x in seen):
                return True
        elif kind_of(leaf) == PLAIN:
            if any(map(_may_change_unseen, flatten(list(vars(leaf).values()))[0])):
                return True
        elif _may_change_unseen(leaf):
            return True
    return False


def _may_change_unseen(value: Any) -> bool:
    if isinstance(value, type):
        return any(
            not (name.startswith("_") or callable(x) or hasattr(x, "__get__"))
            for cls in value.__mro__
            if not of_library(cls)
            for name, x in vars(cls).items()
        )
    parameters = getattr(value, "__dataclass_params__", None)
    is_frozen = parameters is not None and parameters.frozen
    return kind_of(value) in (PLAIN, STATIC) and has_fields(value) and not is_frozen


def is_followed(value: Any) -> bool:
    """True for a function whose own sight belongs to whoever sees it."""
    if isinstance(value, (functools.partial, types.MethodType)):
        return True
    if isinstance(value, types.FunctionType) and not _is_of_library(value):
        return True
    return callable(value) and hasattr(value, "__wrapped__")


def _is_of_library(function: types.FunctionType) -> bool:
    module = str(function.__globals__.get("__name__"))  # __module__ may be copied
    return module.partition(".")[0] in _NOT_FOLLOWED


def _places(seen: Any) -> Iterable[tuple[str, Callable[[], Any]]]:
    """Names and readers of the places that one callable sees directly."""
    if isinstance(seen, types.MethodType):
        yield "self", functools.partial(getattr, seen, "__self__")
        yield "function", functools.partial(getattr, seen, "__func__")
    elif isinstance(seen, functools.partial):
        yield "func", functools.partial(getattr, seen, "func")
        yield from _items(seen, "args")
        yield from _items(seen, "keywords")
    elif isinstance(seen, types.FunctionType) and not _is_of_library(seen):
        for name, cell in zip(
            seen.__code__.co_freevars, seen.__closure__ or (), strict=True
        ):
            yield name, functools.partial(getattr, cell, "cell_contents")
        for name in global_names(seen.__code__):
            yield name, functools.partial(seen.__globals__.get, name, _ABSENT)
        yield from _items(seen, "__defaults__")
        yield from _items(seen, "__kwdefaults__")
    elif hasattr(seen, "__wrapped__"):
        yield "__wrapped__", functools.partial(getattr, seen, "__wrapped__")


def _items(owner: Any, attribute: str) -> Iterable[tuple[str, Callable[[], Any]]]:
    """Each element of a tuple or dict that a callable has, as a place of its own."""
    items = getattr(owner, attribute) or ()
    for key in items if isinstance(items, dict) else range(len(items)):
        read = functools.partial(_item, owner, attribute, key)
        yield f"{attribute}[{key!r}]", read


def _item(owner: Any, attribute: str, key: Any) -> Any:
    try:
        return getattr(owner, attribute)[key]
    except (TypeError, LookupError):  # the defaults of a function may be replaced
        return _ABSENT


@functools.lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a code object, or one inside it, loads.

    `co_names` would also give attribute names, which name no global.
    """
    names = [
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    ]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += global_names(constant)
    return tuple(dict.fromkeys(names))


def _is_plain_callable(value: Any) -> bool:
    """True for an instance of a user's class with `__call__`, as a Trainer may be."""
    call = getattr(type(value), "__call__", None)  # noqa: B004
    return (
        isinstance(call, types.FunctionType)
        and not _is_of_library(call)
        and not hasattr(value, "__wrapped__")
    )


def unbound(function: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A callable as a plain function, and the arguments that it brings along.

    So the `self` of a bound method, a Module that is called, and the arguments of a
    partial are arguments like all others.
    """
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    while True:
        if isinstance(function, functools.partial):
            args, keywords = function.args + args, {**function.keywords, **keywords}
            function = function.func
        elif isinstance(function, types.MethodType):
            args, function = (function.__self__, *args), function.__func__
        elif isinstance(function, Pytree) or _is_plain_callable(function):
            args, function = (function, *args), type(function).__call__
        else:
            return interception.original(function), args, keywords


def positional_parameters(function: Callable[..., Any]) -> list[str]:
    """The names of the parameters that may be given by position or by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
