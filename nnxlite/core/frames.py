"""Frames: the trace levels, and what each object is there.

While a transform runs a user's function, a *frame* gives the caller's own Variables
the values that they have at this level: tracers. Reading asks the innermost frame
that knows the Variable, writing goes to the innermost frame. Variables made inside
have no value but in their frame. Structural changes are made on the objects
themselves and *journaled*: the frame keeps what each changed object was like before.
When the frame is left, values vanish with it and the journal is undone, so that no
outer object holds a tracer and an exception changes nothing; what the function did
is then applied by whoever opened the frame (`transforms.boundary`).

A *sealed* frame belongs to a compiled function, which runs again without Python: what
it reads must have been handed in. Other frames see everything around them.

Frames belong to one thread. `everywhere` lists those of all threads: while it is
empty no read or write needs to look for a frame, which keeps eager code fast.

JAX keeps what it has traced of a function that a plain transform was given, and with
it, as constants, what reading a Variable gave there. It must not find that again where
the Variable has another value. So each frame has a *level*, a JAX user context that is
part of the key of these caches; levels are used again, until a Variable was read under
a plain transform: then the next frame, and the next write, get a new one.

A *stamp* stands for the structure of one node (Module, List, Dict) as it is now.
Every structural change gives the node a new one and tells all that watch the old one,
so that "these nodes are as they were" is one look at a flag, however many they are.
"""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from .errors import HiddenError, TraceContextError, name_of
from .workarounds import get_opaque_trace_state, is_tracing_a_program

with jax.ensure_compile_time_eval():
    NO_TRACE = get_opaque_trace_state()


_level = jax.make_user_context(None)
_generations = itertools.count(1)


_epoch = [0]  # of what surrounds all threads


class _ThreadState(threading.local):
    frame: "Frame | None" = None

    def __init__(self) -> None:
        self.generation = next(_generations)


_thread = _ThreadState()
everywhere: "list[Frame]" = []


class Stamp:
    """The structure of one node between two structural changes.

    Attributes:
      home: the JAX trace in which the node was made.
      watchers: weak references to those that rely on it.
    """

    __slots__ = ("home", "watchers")

    def __init__(self, home: Any):
        self.home: Any = home
        self.watchers: tuple[weakref.ref[Any], ...] = ()

    def watch(self, watcher: "weakref.ref[Any]") -> None:
        """Has `watcher.is_current` set to False when the node changes."""
        alive = [one for one in self.watchers if one() is not None]
        self.watchers = (*alive, watcher)

    def replaced(self) -> "Stamp":
        """Ends this stamp and returns the node's next one."""
        for reference in self.watchers:
            watcher = reference()
            if watcher is not None:
                watcher.is_current = False
        return Stamp(self.home)


class Frame:
    """One trace level.

    Attributes:
      transform: how error messages call the transform, such as "nnx.jit of 'step'".
      is_sealed: whether only the objects in `known` may be reached.
      known: the objects that were handed in, by id, with their index.
      shows_arrays: whether bare arrays are shown too, which are read unseen.
      values: the value that each Variable has at this level.
      written: the Variables written at this level, in order.
      depth: how many frames are around this one.
      is_cached: whether JAX may keep what a Variable's value was at this level.
      made: by id, each object made at this level and the trace in which it was made.
      journal: by id, each outer object changed here and its structure before.
    """

    __slots__ = (
        "contexts",
        "depth",
        "is_cached",
        "is_sealed",
        "journal",
        "known",
        "made",
        "parent",
        "shows_arrays",
        "trace",
        "transform",
        "values",
        "written",
    )

    def __init__(self, transform: str, known: dict[int, int] | None = None):
        self.transform: str = transform
        self.is_sealed: bool = known is not None
        self.known: dict[int, int] = known if known is not None else {}
        self.values: dict[Any, Any] = {}
        self.written: dict[Any, None] = {}
        self.made: dict[int, tuple[Any, Any]] = {}
        self.journal: dict[int, tuple[Any, Any]] = {}
        self.parent: Frame | None = _thread.frame
        self.depth: int = 0 if self.parent is None else self.parent.depth + 1
        self.is_cached: bool = False
        self.shows_arrays: bool = False
        self.contexts: contextlib.ExitStack = contextlib.ExitStack()
        self.trace: Any = get_opaque_trace_state()

    def enter_level(self) -> None:
        """Separates what JAX traces from here on from what it has kept."""
        self.contexts.enter_context(_level(self.level()))

    def level(self) -> tuple[int, ...]:
        """What tells this level from others that JAX may have traced in."""
        return (_epoch[0], _thread.generation, self.depth)

    def leave_level(self) -> None:
        """Makes sure that this level is not used again if JAX may have kept it."""
        if self.is_cached:
            _thread.generation = next(_generations)
            self.is_cached = self.shows_arrays

    def renew_level(self) -> None:
        """Must be called when a value at this level changes."""
        if self.is_cached:
            self.leave_level()
            self.enter_level()

    def hides(self, obj: Any) -> bool:
        """True if this frame is sealed and `obj` was neither handed in nor made."""
        return self.is_sealed and id(obj) not in self.known and id(obj) not in self.made


def current() -> Frame | None:
    """The innermost frame of this thread."""
    return _thread.frame


def is_outermost() -> bool:
    """True outside of all transforms, nnxlite's and JAX's."""
    if everywhere and _thread.frame is not None:
        return False
    return bool(get_opaque_trace_state() == NO_TRACE)


@contextlib.contextmanager
def entered(frame: Frame) -> Iterator[Frame]:
    """Makes `frame` the innermost one; on leaving, undoes its structural changes."""
    _thread.frame = frame
    everywhere.append(frame)
    frame.enter_level()
    try:
        yield frame
    finally:
        frame.leave_level()
        frame.contexts.close()
        _thread.frame = frame.parent
        everywhere.remove(frame)
        for obj, structure in frame.journal.values():
            obj._nnx_restore(structure)


def neutral_level() -> contextlib.AbstractContextManager[Any]:
    """For calls that read nothing but what they are given: found from every level."""
    return _level(None)


def home_of_new(obj: Any) -> Any:
    """Tells the innermost frame of a new object; returns the trace it is made in."""
    trace = get_opaque_trace_state()
    if everywhere and _thread.frame is not None:
        _thread.frame.made[id(obj)] = (obj, trace)
    return trace


def read(variable: Any) -> Any:
    """The value that a Variable has at the innermost level that knows it."""
    frame = _thread.frame
    if frame is not None and not frame.is_cached:
        trace = get_opaque_trace_state()
        if trace != frame.trace and is_tracing_a_program():
            made = frame.made.get(id(variable))  # JAX made it of what it was given
            frame.is_cached = made is None or made[1] != trace
    while frame is not None:
        if variable in frame.values:
            return frame.values[variable]
        if frame.is_sealed:
            raise hidden(variable, frame, "read")
        frame = frame.parent
    try:
        return variable._cell.value
    except AttributeError:
        raise ended(variable) from None


def write(variable: Any, value: Any) -> bool:
    """Writes at the innermost level; False if that is the outermost, to be done yet."""
    check_may_change(variable, variable._home)
    frame = _thread.frame
    if frame is None:
        return False
    frame.values[variable] = value
    frame.written[variable] = None
    frame.renew_level()
    return True


def renew() -> None:
    """Must be called when something else changes that JAX may have traced."""
    _epoch[0] = next(_generations)
    if _thread.frame is not None:
        _thread.frame.contexts.enter_context(_level(_thread.frame.level()))


@contextlib.contextmanager
def overlaid(values: Mapping[Any, Any]) -> Iterator[None]:
    """Gives Variables other values for a while, which is no write.

    What is written to them meanwhile is lost.
    """
    frame = _thread.frame
    if frame is None:
        before = {v: v._cell.value for v in values}
        try:
            for variable, value in values.items():
                variable._cell.value = value
            yield
        finally:
            for variable, value in before.items():
                variable._cell.value = value
        return
    before = {v: frame.values[v] for v in values if v in frame.values}
    frame.values.update(values)
    frame.renew_level()
    try:
        yield
    finally:
        for variable in values:
            del frame.values[variable]
        frame.values.update(before)
        frame.renew_level()


def before_change(obj: Any, home: Any, part: str = "") -> None:
    """Must be called before the structure of an object changes; journals it.

    Raises:
      TraceContextError: if the object may not be changed here.
    """
    check_may_change(obj, home, part)
    frame = _thread.frame
    if frame is None:
        return
    frame.renew_level()
    if id(obj) in frame.made or id(obj) in frame.journal:
        return
    frame.journal[id(obj)] = (obj, obj._nnx_snapshot())


def is_local(obj: Any, home: Any) -> bool:
    """True if an object may be changed here; see `check_may_change`."""
    frame = _thread.frame
    if frame is not None:
        made = frame.made.get(id(obj))
        home = frame.trace if made is None else made[1]
    return bool(get_opaque_trace_state() == home)


def check_may_change(obj: Any, home: Any, part: str = "") -> None:
    """Raises TraceContextError unless the current trace is where `obj` lives."""
    trace = get_opaque_trace_state()
    frame = _thread.frame
    if frame is not None:
        made = frame.made.get(id(obj))
        home = frame.trace if made is None else made[1]
        if frame.hides(obj):
            raise hidden(obj, frame, "changed")
    if trace == home:
        return
    if trace == NO_TRACE:
        raise ended(obj)
    raise TraceContextError(
        f"{name_of(obj)}{part} cannot be changed here: it lives outside the plain JAX "
        "transform (jax.jit, jax.grad, jax.vmap, jax.lax.scan, ...) whose function is "
        "running, and the change would leak a tracer out of it. Nothing was changed. "
        "Use the nnxlite transform of the same name (nnx.jit, nnx.grad, nnx.vmap, "
        "nnx.scan, ...), which carries changes out, or split the object before and "
        "merge it inside."
    )


def ended(obj: Any) -> TraceContextError:
    """The error for an object that outlived the transform in which it was made."""
    return TraceContextError(
        f"{name_of(obj)} was made inside a transform that has ended; it holds tracers "
        "and cannot be used any more. Return it from the function, or store it on an "
        "object that the function was given: what comes out of the transform then has "
        "real values."
    )


def hidden(obj: Any, frame: Frame, what: str) -> HiddenError:
    """The error for an object that a compiled function reaches unseen."""
    return HiddenError(
        f"{name_of(obj)} is {what} inside {frame.transform}, which does not visibly "
        "see it: it is reached through a field of a plain object, a registry, or an "
        "import, so that the compiled program could not follow its changes. Nothing "
        "was changed. Pass it as an argument of the function, or let the function "
        "capture it by name."
    )
