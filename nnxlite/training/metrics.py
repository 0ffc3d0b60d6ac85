"""Metrics: objects that collect a quantity over many batches.

A metric holds Variables of kind `MetricState`; `update` adds one batch, `compute` gives
the quantity over all, `reset` starts anew. The arithmetic of an update is one compiled
function, which checks shapes and dtypes while it is traced, so once for each kind.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.filters import Filter
from ..core.graph import split
from ..core.module import Pytree
from ..core.variable import Variable


class MetricState(Variable[Any]):
    """What a metric has collected.

    Example:
      >>> import nnxlite as nnx
      >>> list(nnx.state(nnx.metrics.Average(), nnx.metrics.MetricState))
      ['count', 'total']
    """


class Metric(Pytree):
    """Base class: a subclass defines `update(**keywords)`, `compute()` and `reset()`.

    Attributes:
      argname: if there is one, the keyword that `update` finds in its `**kwargs`.

    Example:
      >>> import nnxlite as nnx
      >>> class Batches(nnx.Metric):
      ...     def __init__(self):
      ...         self.count = nnx.metrics.MetricState(0)
      ...     def update(self, *, values):
      ...         self.count += 1
      >>> batches = Batches()
      >>> batches.update(values=[1.0, 2.0])
      >>> batches.count.value
      1
    """

    def reset(self) -> None:
        """Forgets everything."""
        raise NotImplementedError(f"define {type(self).__name__}.reset")

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Adds a batch."""
        raise NotImplementedError(f"define {type(self).__name__}.update")

    def compute(self) -> Any:
        """Returns the quantity over all batches since the last reset."""
        raise NotImplementedError(f"define {type(self).__name__}.compute")

    def split(self, *filters: Filter) -> tuple[Any, ...]:
        """See `nnx.split`."""
        return split(self, *filters)

    def update_keywords(self) -> frozenset[str] | None:
        """The keywords that `update` takes; None: whatever there is.

        `**kwargs` beside named parameters is read as "the rest is ignored".
        """
        names, takes_more = _parameters(type(self).update)
        if takes_more and hasattr(self, "argname"):
            return names | {getattr(self, "argname")}  # noqa: B009
        return names if names or not takes_more else None


@functools.lru_cache(maxsize=1024)
def _parameters(method: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    _, *rest = inspect.signature(method).parameters.values()
    names = (p.name for p in rest if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return frozenset(names), any(p.kind is p.VAR_KEYWORD for p in rest)


class Average(Metric):
    """The mean of all values; nan if there are none.

    Args:
      argname: the keyword of `update` that brings the values.

    Attributes:
      total: their sum, float32.
      count: their number, int32; float32 after a mask of floats.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> average = nnx.metrics.Average('loss')
      >>> average.update(loss=1.0)
      >>> average.update(loss=jnp.array([3.0, 9.0]), mask=jnp.array([True, False]))
      >>> average.compute()
      Array(2., dtype=float32)
    """

    def __init__(self, argname: str = "values"):
        self.argname = argname
        self.total = MetricState(jnp.zeros((), jnp.float32))
        self.count = MetricState(jnp.zeros((), jnp.int32))

    def reset(self) -> None:
        _clear(self.total, self.count)

    def update(self, *, mask: Any = None, **kwargs: Any) -> None:
        """Adds a number or an array, given under the name `argname`.

        Args:
          mask: the entries that count, or their weights; broadcasts to the values.
          **kwargs: the values.

        Raises:
          TypeError: for a missing or unknown keyword, or complex values.
          ValueError: if the mask does not fit, or the value is a plain number.
        """
        _write(_averaged, (self.total, self.count), _values(self, mask, kwargs), mask)

    def compute(self) -> Any:
        return _quotient(self.total.value, self.count.value)


class Accuracy(Average):
    """The share of right predictions; nan if there are none.

    Args:
      threshold: None if `logits` (..., classes) should be largest at the class in
        `labels` (...); a float if `logits >= threshold` should be `labels > 0`, both
        of one shape.

    Raises:
      TypeError: for another threshold.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> accuracy = nnx.metrics.Accuracy(threshold=0.5)
      >>> accuracy.update(logits=jnp.array([0.2, 0.4]), labels=jnp.array([0, 1]))
      >>> accuracy.compute()
      Array(0.5, dtype=float32)
    """

    def __init__(self, threshold: float | None = None):
        super().__init__()
        if threshold is not None and not isinstance(threshold, (float, np.floating)):
            raise TypeError(
                f"threshold must be a float or None, not {threshold!r}: write "
                "Accuracy(threshold=0.5)"
            )
        self.threshold = None if threshold is None else float(threshold)

    def update(self, *, logits: Any, labels: Any, mask: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds predictions; labels are int32 and `mask` broadcasts to them.

        Raises:
          ValueError: if shapes or dtypes do not fit.
        """
        correct = _correct(logits, labels, self.threshold)
