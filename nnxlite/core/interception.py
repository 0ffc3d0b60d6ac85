"""Interception: functions that stand in the way of calls, reads and new Variables.

While an interceptor is active, in any thread, classes carry wrappers in place of their
methods, and a wrapper asks for the interceptors of its own thread. When the last one
has gone the methods are back, so that what nobody uses costs nothing.

A compiled function sees the active interceptors as it sees its closure: see
`seen`. JAX must not find again what it has traced without them, or with others.
"""

import contextlib
import functools
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from . import frames
from .errors import name_of
from .filters import Predicate
from .module import Module, iter_nodes
from .paths import Path, format_path
from .uninferred import Uninferred
from .variable import Variable

CALL, READ, CREATION = "call", "read", "creation"


class Interceptor(NamedTuple):
    """One function in the way.

    Attributes:
      verb: what it intercepts.
      function: for calls `(next, args, kwargs, call) -> result`; for the others
        `(variable, value) -> value`.
      matches: which Modules or Variables; the path is that below the Module that was
        called first, or () for Variables.
    """

    verb: str
    function: Callable[..., Any]
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
    paths: dict[int, Path] = {}  # of those below it
    caller: Path | None = None
    is_reading: bool = False


_state = _State()
_lock = threading.Lock()
_hooks: list[Interceptor] = []  # active in all threads
_active: list[Interceptor] = []  # in any thread; empty means that nothing is patched
_patches: list[tuple[type, str, Any]] = []
_wrappers: dict[Any, Any] = {}


def seen() -> tuple[Interceptor, ...]:
    """The interceptors of this thread, outermost first."""
    return (*_hooks, *_state.stack) if _active else ()


def current(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a method that was looked up earlier is now."""
    return _wrappers.get(function, function) if _active else function


@contextlib.contextmanager
def entered(interceptor: Interceptor) -> Iterator[None]:
    """Makes an interceptor the innermost one of this thread."""
    around = _state.stack
    _begin(interceptor)
    _state.stack = (*around, interceptor)
    try:
        yield
    finally:
        _state.stack = around
        _end(interceptor)


def hooked(interceptor: Interceptor) -> Callable[[], None]:
    """Makes an interceptor active in all threads; returns what ends that."""
    _begin(interceptor)
    _hooks.append(interceptor)

    def remove() -> None:
        if any(one is interceptor for one in _hooks):
            _hooks[:] = [one for one in _hooks if one is not interceptor]
            _end(interceptor)

    return remove


class Among:
    """Matches some Modules themselves, which it does not keep alive."""

    def __init__(self, modules: Iterable[Any]):
        self._modules = {id(module): weakref.ref(module) for module in modules}

    def __call__(self, path: Path, value: Any) -> bool:
        module = self._modules.get(id(value))
        return module is not None and module() is value


def _begin(interceptor: Interceptor) -> None:
    with _lock:
        _active.append(interceptor)
        _patch_all()
    frames.renew()


def _end(interceptor: Interceptor) -> None:
    with _lock:
        _active[:] = [one for one in _active if one is not interceptor]
        if not _active:
            for cls, name, original in _patches:
                setattr(cls, name, original)
            _patches.clear()
            _wrappers.clear()
    frames.renew()


def _patch_all() -> None:
    """Wraps the methods of all classes that there are, where they are not yet."""
    wrapped = {(cls, name) for cls, name, _ in _patches}

    def patch(cls: type, name: str, wrapper: Any) -> None:
        original = vars(cls)[name]
        _patches.append((cls, name, original))
        setattr(cls, name, wrapper)
        if isinstance(original, types.FunctionType):
            _wrappers[original] = wrapper

    for cls in _below(Module):
        for name, method in list(vars(cls).items()):
            if (cls, name) not in wrapped and _is_method(cls, name, method):
                patch(cls, name, _calling(name, method))
    for cls in (Variable, *_below(Variable)):
        own = vars(cls)
        if (cls, "value") in wrapped:
            continue
        if "get_value" in own:
            patch(cls, "get_value", _reading(own["get_value"]))
        if "value" in own:
            shown = _reading(own["value"].fget, "value")
            patch(cls, "value", property(shown, own["value"].fset))
    if (Variable, "__init__") not in wrapped:
        patch(Variable, "__init__", _creating(Variable.__init__))
        patch(Variable, "__setitem__", _not_reading(Variable.__setitem__))


def _below(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)


def _is_method(cls: type, name: str, value: Any) -> bool:
    if name.startswith("_") and name != "__call__":
        return False
    if cls.__module__.startswith("nnxlite.core."):  # containers, random streams
        return False
    is_other = isinstance(value, (staticmethod, classmethod, property, type))
    return callable(value) and hasattr(value, "__get__") and not is_other


def _calling(name: str, method: Any) -> Any:
    @functools.wraps(method)
    def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
        call = method.__get__(module, type(module))
        if getattr(type(module), name, None) is not wrapper:
            return call(*args, **kwargs)  # by `super()`
        caller, is_first = _state.caller, _state.root is None
        if is_first:
            _state.root, _state.paths = module, {}
        about = Call(module, name, _path_of(module), caller)
        _state.caller = about.path
        try:
            for one in reversed(seen()):
                if one.verb == CALL and one.matches(about.path, module):
                    call = functools.partial(_intercepted, one.function, call, about)
            return call(*args, **kwargs)
        finally:
            _state.caller = caller
            if is_first:
                _state.root, _state.paths = None, {}

    return wrapper


def _path_of(module: Any) -> Path:
    paths = _state.paths
    if id(module) not in paths:
        paths.update((id(node), path) for path, node in iter_nodes(_state.root))
    return paths.setdefault(id(module), ())


def _intercepted(
    function: Callable[..., Any],
    call: Callable[..., Any],
    about: Call,
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
    chain = () if _state.is_reading else reversed(seen())
    found = [x for x in chain if x.verb == verb and x.matches((), variable)]

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
