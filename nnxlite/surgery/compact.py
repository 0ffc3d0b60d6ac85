"""compact: methods that make their sub-modules where they call them."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..core.construction import making
from ..core.errors import name_of
from ..core.module import Module, Pytree, _empty, is_data
from ..core.rngs import Rngs
from ..core.variable import Variable

F = TypeVar("F", bound=Callable[..., Any])


def compact(method: F) -> F:
    """A method whose first call makes the Modules that it names; later ones find them.

    Modules are attributes, named by class and order, `Linear_0`, or by `name=`; those
    of another method than `__call__` begin with its name. They draw from the Rngs that
    the object, or the one whose compact method calls it, holds as an attribute, unless
    they are given `rngs`. The first call must be made outside of vmap, scan, loops and
    branches, and before `model.eval()`, `nnx.grad`, `nnx.load` and the Optimizer, which
    find no parameters before it; `nnx.lazy_init` makes none.

    Raises:
      ValueError: if a later call makes other Modules than the first one.
      TypeError: if a Module needs an Rngs and none is held.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.rngs = rngs
      ...     @nnx.compact
      ...     def __call__(self, x):
      ...         x = nnx.relu(nnx.Linear(x.shape[-1], 8)(x))
      ...         return nnx.Linear(8, 1, name='head')(x)
      >>> net = Net(nnx.Rngs(0))
      >>> net(jnp.ones((4, 2))).shape, net.Linear_0.kernel.shape, net.head.kernel.shape
      ((4, 1), (2, 8), (8, 1))
    """

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        around = making.scope
        if around is not None and around.is_of(self, method):
            return method(self, *args, **kwargs)  # by `super()`
        making.scope = scope = _Scope(self, method, around)
        try:
            result = method(self, *args, **kwargs)
        except BaseException:
            scope.undo()
            raise
        finally:
            making.scope = around
        scope.finish()
        return result

    return called  # pyright: ignore[reportReturnType]


_KEPT = "compact_modules"  # the attribute that remembers what was made


class _Scope:
    """One call of a compact method.

    Attributes:
      owner: the object.
      known: by name, what earlier calls made, as text.
      made: likewise, what this one makes.
    """

    def __init__(self, owner: Any, method: Callable[..., Any], around: Any):
        self.owner = owner
        self.method = method.__name__
        self.around = around
        self.kept = getattr(owner, _KEPT, None)
        kept = self.kept or ()
        self.known = {name: text for by, name, text in kept if by == self.method}
        self.is_first = not self.known
        self.made: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.waiting: dict[int, str] = {}  # by id, the names of instances to construct
        self.drawn: list[tuple[Variable[Any], Any]] = []
        self.inner: list[_Scope] = []

    def is_of(self, owner: Any, method: Callable[..., Any]) -> bool:
        return self.owner is owner and self.method == method.__name__

    def _prefix(self) -> str:
        return "" if self.method == "__call__" else f"{self.method}_"

    def instance(self, cls: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The instance for a call of a class: the one made before, or a new one."""
        if not issubclass(cls, Module):
            return _empty(cls)
        name = kwargs.get("name")
        if name is None or "name" in _parameters(cls):
            name = f"{self._prefix()}{cls.__name__}_{self.counts[cls.__name__]}"
            self.counts[cls.__name__] += 1
        text = _text(cls, args, kwargs)
        if name in self.made:
            raise ValueError(
                f"{name_of(self.owner)}: its compact method makes two Modules of the "
                f"name {name!r}: give each a name of its own"
            )
        self.made[name] = text
        is_gone = self.known.get(name) == text and not hasattr(self.owner, name)
        if self.is_first or is_gone:
            if hasattr(self.owner, name):
                raise ValueError(
                    f"{name_of(self.owner)}: the compact method makes {text} of the "
                    f"name {name!r}, which is taken: pass another, name=..."
                )
            new = _empty(cls)
            if cls.__init__ is object.__init__:
                setattr(self.owner, name, new)
            else:
                self.waiting[id(new)] = name
            return new
        if self.known.get(name) != text:
            before = self.known.get(name)
            raise ValueError(
                f"{name_of(self.owner)}: the compact method makes {text} now, as "
                f"{name!r}, where its first call made {before or 'nothing'}. It must "
                "make the same Modules at every call: make what depends on the inputs "
                "under names of their own, or in __init__"
            )
        return getattr(self.owner, name)

    def construct(
        self,
        obj: Any,
        init: Callable[..., None],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> None:
        """Runs the constructor of a new instance, and none of one that was found."""
        name = self.waiting.pop(id(obj), None)
        if name is None and isinstance(obj, Module):
            return
        if "name" not in _parameters(type(obj)):
            kwargs.pop("name", None)
        if name is not None and "rngs" in _parameters(type(obj)):
            if "rngs" not in kwargs:
                kwargs["rngs"] = self._rngs(obj)
        making.scope = None
        try:
            init(obj, *args, **kwargs)
        finally:
            making.scope = self
        if name is not None:
            setattr(self.owner, name, obj)

    def _rngs(self, obj: Any) -> Rngs:
        scope: Any = self
        while scope is not None:
            for value in vars(scope.owner).values():
                if isinstance(value, Rngs):
                    self.drawn += [(s.count, s.count.value) for _, s in value.items()]
                    return value
            scope = scope.around
        raise TypeError(
            f"{name_of(self.owner)}: its compact method makes a {type(obj).__name__}, "
            "which needs random keys, but the object holds no Rngs: set `self.rngs = "
            "rngs` in __init__, or pass rngs="
        )

    def undo(self) -> None:
        """After an error: takes away what the first call has made."""
        for inner in self.inner:
            inner.undo()
        if self.is_first:
            for name in self.made:
                if name in vars(self.owner):
                    delattr(self.owner, name)
            if self.kept is None and hasattr(self.owner, _KEPT):
                delattr(self.owner, _KEPT)
            elif self.kept is not None:
                setattr(self.owner, _KEPT, self.kept)
            for variable, value in reversed(self.drawn):
                variable.value = value

    def finish(self) -> None:
        """Remembers what the first call has made."""
        if self.around is not None:
            self.around.inner.append(self)
        if self.is_first and self.made:
            new = [(self.method, name, text) for name, text in self.made.items()]
            setattr(self.owner, _KEPT, (*getattr(self.owner, _KEPT, ()), *new))


@functools.cache
def _parameters(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)


def _text(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A call of a class as text; data and functions by what they are."""

    def shown(value: Any) -> str:
        if is_data(value) or isinstance(value, Pytree):
            return type(value).__name__
        if callable(value):  # whose repr may tell an address
            return getattr(value, "__qualname__", type(value).__name__)
        return repr(value)

    parts = [shown(x) for x in args]
    parts += [f"{k}={shown(x)}" for k, x in kwargs.items() if k not in ("name", "rngs")]
    return f"{cls.__name__}({', '.join(parts)})"
