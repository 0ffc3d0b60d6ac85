"""Interception: functions that stand in the way of calls, reads and new Variables.

While an interceptor is active, in any thread, classes carry wrappers in place of their
methods, and a wrapper asks for the interceptors of its own thread. When the last one
has gone the methods are back, so that nothing costs anything while nobody intercepts.

A compiled function sees the interceptors of its thread as it sees its closure, and the
other things that surround a thread, such as a policy of dtypes: see `seen`. JAX must
not find again what it has traced without them, or with others.
"""

import contextlib
import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from . import frames
from .construction import class_watchers
from .errors import name_of
from .filters import Predicate
from .module import Module, Pytree, iter_nodes
from .operators import WRITING
from .paths import Path, format_path
from .uninferred import Uninferred
from .variable import Variable

CALL, READ, CREATION, POLICY = "call", "read", "creation", "policy"


class Interceptor(NamedTuple):
    """One function in the way, or something else that surrounds what a thread does.

    Attributes:
      verb: what it intercepts.
      function: for calls `(next, args, kwargs, call) -> result`; for reads and new
        Variables `(variable, value) -> value`; a policy is just seen.
      matches: which Modules or Variables; the path is that below the Module that was
        called first, or () for Variables.
    """

    verb: str
    function: Any
    matches: Predicate


class Call(NamedTuple):
    """What an interceptor is told of a call.

    Attributes:
      module: the Module whose method is called.
      method_name: its name.
      path: where the Module is below the one that was called first.
      caller: the path of the Module whose method makes the call, if one does.
    """

    module: Any
    method_name: str
    path: Path
    caller: Path | None


class _State(threading.local):
    stack: tuple[Interceptor, ...] = ()
    root: Any = None  # the Module that was called first
    paths: dict[int, tuple[Any, Path]] = {}  # of those below it
    caller: Path | None = None
    is_reading: bool = False


_state = _State()
_lock = threading.RLock()
_hooks: list[Interceptor] = []  # active in all threads
active: list[Interceptor] = []  # in any thread; empty means that nothing is patched
_patches: list[tuple[type, str, Any, Any]] = []
_wrappers: dict[Any, Any] = {}
_ABSENT: Any = object()


def seen(verb: str | None = None) -> list[Interceptor]:
    """The interceptors of this thread, all or those of a verb, outermost first."""
    both = (*_hooks, *_state.stack) if active else ()
    return [one for one in both if verb in (None, one.verb)]


def paths_of(modules: Iterable[Any]) -> tuple[Path, ...]:
    """What paths in a compiled function depend on: where its Modules are now."""
    if _state.root is None:
        return ()
    return tuple(_path_of(module) for module in modules)


def hits(objects: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    """Which hook is on which of some objects, by number."""
    hooks = [one for one in seen() if isinstance(one.matches, Among)]
    return tuple(
        (place, number)
        for place, obj in enumerate(objects if hooks else ())
        for number, one in enumerate(hooks)
        if one.matches((), obj)
    )


def current(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a method that was looked up earlier is now."""
    return _wrappers.get(function, function) if active else function


def original(function: Callable[..., Any]) -> Callable[..., Any]:
    """The method itself, if a wrapper was looked up."""
    return getattr(function, "_nnx_original", function)


@contextlib.contextmanager
def entered(interceptor: Interceptor) -> Iterator[None]:
    """Makes an interceptor the innermost one of this thread."""
    _begin(interceptor)
    _state.stack = (*_state.stack, interceptor)
    try:
        yield
    finally:
        _state.stack = tuple(x for x in _state.stack if x is not interceptor)
        _end(interceptor)


def hooked(interceptor: Interceptor) -> Callable[[], None]:
    """Makes an interceptor active in all threads; returns what ends that."""
    _begin(interceptor, _hooks)

    def remove() -> None:
        if any(one is interceptor for one in _hooks):
            _end(interceptor)

    return remove


class Among:
    """Matches some Modules themselves, which it does not keep alive."""

    def __init__(self, modules: Iterable[Any]):
        self._modules = {id(module): weakref.ref(module) for module in modules}

    def __call__(self, path: Path, value: Any) -> bool:
        """Whether `value` is one of the Modules."""
        module = self._modules.get(id(value))
        return module is not None and module() is value


def _begin(interceptor: Interceptor, hooks: list[Interceptor] | None = None) -> None:
    with _lock:
        active.append(interceptor)
        if hooks is not None:
            hooks.append(interceptor)
        _patch()
    frames.renew()


def _end(interceptor: Interceptor) -> None:
    with _lock:
        for ones in (active, _hooks):
            ones[:] = [one for one in ones if one is not interceptor]
        if not active:
            for cls, name, before, wrapper in reversed(_patches):
                if vars(cls).get(name) is not wrapper:
                    continue  # somebody else has set it meanwhile
                if before is _ABSENT:
                    delattr(cls, name)
                else:
                    setattr(cls, name, before)
            _patches.clear()
            _wrappers.clear()
    frames.renew()


def _patch(new: type | None = None) -> None:
    """Wraps what the active interceptors need, where that is not done yet."""
    verbs = {one.verb for one in active}
    done = {(cls, name) for cls, name, *_ in _patches}

    def put(cls: type, name: str, wrapper: Any) -> None:
        if (cls, name) in done:
            return
        before = vars(cls).get(name, _ABSENT)
        _patches.append((cls, name, before, wrapper))
        setattr(cls, name, wrapper)
        if isinstance(before, types.FunctionType):
            _wrappers.setdefault(before, wrapper)

    if CALL in verbs:
        for cls in dict.fromkeys(_below(Module)) if new is None else [new]:
            for name, method in _methods(cls):
                put(cls, name, _calling(name, method))
    if not verbs & {READ, CREATION}:
        return
    for cls in dict.fromkeys((Variable, *_below(Variable))):
        own = vars(cls)
        if "get_value" in own and (cls, "get_value") not in done:
            put(cls, "get_value", _reading(own["get_value"]))
        if "value" in own and (cls, "value") not in done:
            shown = _reading(own["value"].fget, "value")
            put(cls, "value", property(shown, own["value"].fset))
    if (Variable, "__init__") not in done:
        put(Variable, "__init__", _creating(Variable.__init__))
        for name in WRITING:
            put(Variable, name, _not_reading(getattr(Variable, name)))


def _patch_new(cls: type) -> None:
    if active:
        with _lock:
            _patch(cls)


class_watchers.append(_patch_new)


def _below(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)


def _methods(cls: type) -> list[tuple[str, Any]]:
    """The public methods of a class, its own and those of bases that are no Modules."""
    found = dict(vars(cls))
    for base in cls.__mro__:
        if not issubclass(base, Pytree) and base.__module__ not in (
            "builtins",
            "typing",
        ):
            mixed = {k: x for k, x in vars(base).items() if getattr(cls, k, None) is x}
            found = {**mixed, **found}
    return [(name, x) for name, x in found.items() if _is_method(cls, name, x)]


def _is_method(cls: type, name: str, value: Any) -> bool:
    if name.startswith("_") and name != "__call__":
        return False
    if cls.__module__.startswith("nnxlite.core."):  # containers, random streams
        return False
    is_other = isinstance(value, (staticmethod, classmethod, property, type))
    return callable(value) and hasattr(value, "__get__") and not is_other


def _calling(name: str, method: Any) -> Any:
    @functools.wraps(method)
    def wrapper(module: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = method.__get__(module, type(module))
        chain = seen(CALL)
        if not chain or getattr(type(module), name, None) is not wrapper:
            return call(*args, **kwargs)  # the latter: by `super()`
        caller, is_first = _state.caller, _state.root is None
        if is_first:
            _state.root, _state.paths = module, {}
        about = Call(module, name, _path_of(module), caller)
        _state.caller = about.path
        try:
            for one in reversed(chain):
                if one.matches(about.path, module):
                    call = functools.partial(_intercepted, one.function, call, about)
            return call(*args, **kwargs)
        finally:
            _state.caller = caller
            if is_first:
                _state.root, _state.paths = None, {}

    setattr(wrapper, "_nnx_original", method)  # noqa: B010
    return wrapper


def _path_of(module: Any) -> Path:
    paths = _state.paths
    known = paths.get(id(module))
    if known is None or known[0] is not module:
        paths.update((id(x), (x, path)) for path, x in iter_nodes(_state.root))
        known = paths.get(id(module))
    if known is None or known[0] is not module:
        known = paths[id(module)] = (module, ())
    return known[1]


def _intercepted(
    function: Callable[..., Any],
    call: Callable[..., Any],
    about: Call,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    results: list[Any] = []

    def following(*args: Any, **kwargs: Any) -> Any:
        results.append(call(*args, **kwargs))
        return results[-1]

    result = function(following, args, kwargs, about)
    if result is None and not (results and results[-1] is None):
        what = "without its result" if results else "without calling on"
        raise TypeError(
            f"the interceptor {getattr(function, '__name__', function)!r} returned "
            f"None {what}, for {about.method_name!r} of {type(about.module).__name__} "
            f"{format_path(about.path)!r}: end it with `return next(*args, **kwargs)`"
        )
    return result


def _reading(read: Callable[..., Any], attribute: str = "get_value") -> Any:
    @functools.wraps(read)
    def wrapper(variable: Any, **index: Any) -> Any:
        provider = getattr(type(variable), attribute)
        if getattr(provider, "fget", provider) is not wrapper:
            return read(variable, **index)  # by `super()`
        value = _change(READ, variable)(read(variable))
        part = index.get("index", ...)
        return value if part is ... else value[part]

    return wrapper


def _creating(begin: Callable[..., Any]) -> Any:
    @functools.wraps(begin)
    def wrapper(variable: Any, value: Any, **metadata: Any) -> None:
        begin(variable, value, **metadata)
        if "_metadata" in metadata:  # JAX makes it of leaves: it is not new
            return
        made, change = variable.raw_value, _change(CREATION, variable)
        if isinstance(made, Uninferred):
            variable._write(made.followed_by(change))
        elif (new := change(made)) is not made:
            variable._write(new)

    return wrapper


def _not_reading(method: Callable[..., Any]) -> Any:
    @functools.wraps(method)
    def wrapper(*args: Any) -> Any:
        with _undisturbed():
            return method(*args)

    return wrapper


def _change(verb: str, variable: Any) -> Callable[[Any], Any]:
    """What the interceptors of now make of a value of a Variable."""
    chain = () if _state.is_reading else reversed(seen(verb))
    found = [one for one in chain if one.matches((), variable)]

    def change(value: Any) -> Any:
        for one in found:
            with _undisturbed():
                value = one.function(variable, value)
            if value is None:
                raise TypeError(
                    f"the interceptor {getattr(one.function, '__name__', one)!r} "
                    f"returned None for {name_of(variable)}: return the value"
                )
        return value

    return change


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """What an interceptor itself reads is not intercepted."""
    around, _state.is_reading = _state.is_reading, True
    try:
        yield
    finally:
        _state.is_reading = around
