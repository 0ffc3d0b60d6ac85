"""Construction: who is told of new classes and instances of nodes.

The `__init__` of a class gets a wrapper when its first instance is made. So it does not
matter where it comes from: the class itself, a dataclass, a base that is no node.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any


class _Making(threading.local):
    """Whoever wants to know of new nodes of this thread: see `surgery.compact`."""

    scope: Any = None

    def __reduce__(self) -> str:
        return "making"  # by name: a pickled class of __main__ refers to it


making: _Making = _Making()


# Called with each new class of nodes.
class_watchers: list[Callable[[type], None]] = []


def _constructing(init: Callable[..., None]) -> Callable[..., None]:
    """The `__init__` of a class, followed by the check of what it has made."""

    @functools.wraps(init)
    def __init__(self: Any, /, *args: Any, **kwargs: Any) -> None:
        if type(self).__init__ is not __init__:  # by `super()`
            init(self, *args, **kwargs)
            return
        if making.scope is None:
            init(self, *args, **kwargs)
        else:
            making.scope.construct(self, init, args, kwargs)
        check = getattr(self, "__post_init_check__", None)
        if check is not None:
            check()

    setattr(__init__, "_nnx_constructs", True)  # noqa: B010
    return __init__


def made_to_construct(cls: Any) -> None:
    """Wraps the `__init__` of a class, if that is not done yet."""
    init = cls.__init__
    if init is not object.__init__ and not hasattr(init, "_nnx_constructs"):
        setattr(cls, "__init__", _constructing(init))  # noqa: B010
