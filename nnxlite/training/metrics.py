"""Metrics: objects that collect a quantity over many batches.

A metric holds Variables of kind `MetricState`; `update` adds one batch, `compute` gives
the quantity over all, `reset` starts anew. The arithmetic of an update is one compiled
function, which checks shapes and dtypes while it is traced, so once for each kind.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.filters import Filter
from ..core.module import Pytree
from ..core.splitting import split
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
      argname: the keyword that `update` looks for in its `**kwargs`, if it does.

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

    argname: str | None = None

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
        if takes_more and self.argname is not None:
            return names | {self.argname}
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
        self.argname: str | None = argname
        self.total: MetricState = MetricState(jnp.zeros((), jnp.float32))
        self.count: MetricState = MetricState(jnp.zeros((), jnp.int32))

    def reset(self) -> None:
        _write(_zeros, (self.total, self.count))

    def update(self, *, mask: Any = None, **kwargs: Any) -> None:
        """Adds a number or an array, given under the name `argname`.

        Args:
          mask: the entries that count, or their weights; broadcasts to the values.
          **kwargs: the values.

        Raises:
          TypeError: for a missing or unknown keyword, or complex values.
          ValueError: if the mask does not fit, or the value is a plain number.
        """
        values = _values(self, mask, kwargs)
        _write(_averaged, (self.total, self.count), values, mask)

    def compute(self) -> Any:
        return _quotient(self.total.value, self.count.value)


class Accuracy(Average):
    """The share of right predictions; nan if there are none.

    Args:
      threshold: None if `logits` (..., classes) should be largest at the class in
        `labels` (...); a float if `logits >= threshold` should be `labels > 0`.

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
        self.threshold: float | None = None if threshold is None else float(threshold)

    def update(self, *, logits: Any, labels: Any, mask: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds predictions; labels are int32, and `mask` broadcasts to them.

        Raises:
          ValueError: if shapes or dtypes do not fit.
        """
        given = (logits, labels, mask, self.threshold)
        _write(_judged, (self.total, self.count), *given)


class Statistics(NamedTuple):
    """What `Welford` computes.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.metrics.Statistics(1.0, 0.5, 2.0).standard_deviation
      2.0
    """

    mean: Any
    standard_error_of_mean: Any
    standard_deviation: Any


class Welford(Metric):
    """Mean and standard deviation in one numerically stable pass; nan without values.

    Batches are merged as in Chan, Golub, LeVeque, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances" (1979). Arguments as of `Average`.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> welford = nnx.metrics.Welford()
      >>> welford.update(values=jnp.array([1.0, 3.0]))
      >>> welford.compute().standard_deviation
      Array(1., dtype=float32)
    """

    def __init__(self, argname: str = "values"):
        self.argname: str | None = argname
        self.count: MetricState = MetricState(jnp.zeros((), jnp.int32))
        self.mean: MetricState = MetricState(jnp.zeros((), jnp.float32))
        self.m2: MetricState = MetricState(jnp.zeros((), jnp.float32))

    def reset(self) -> None:
        _write(_zeros, (self.count, self.mean, self.m2))

    def update(self, *, mask: Any = None, **kwargs: Any) -> None:
        """Adds values; see `Average.update`."""
        values = _values(self, mask, kwargs)
        _write(_merged, (self.count, self.mean, self.m2), values, mask)

    def compute(self) -> Statistics:
        return _statistics(self.count.value, self.mean.value, self.m2.value)


class MultiMetric(Metric):
    """Several metrics as one; each is an attribute.

    Args:
      **metrics: metrics by name.

    Raises:
      ValueError: for a name that MultiMetric uses itself.
      TypeError: for something that is no metric.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> metrics = nnx.MultiMetric(
      ...     accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average())
      >>> logits, labels = jnp.array([[0.0, 1.0]]), jnp.array([1])
      >>> metrics.update(values=0.5, logits=logits, labels=labels)
      >>> {name: value.item() for name, value in metrics.compute().items()}
      {'accuracy': 1.0, 'loss': 0.5}
    """

    def __init__(self, **metrics: Metric):
        for name, metric in metrics.items():
            if hasattr(self, name):
                raise ValueError(
                    f"MultiMetric uses the name {name!r} itself: choose another for "
                    f"the metric, such as {name.strip('_') + '_metric'!r}"
                )
            if not isinstance(metric, Metric):
                raise TypeError(
                    f"{name} is a {type(metric).__name__}, not a metric: derive its "
                    "class from nnx.Metric"
                )
            setattr(self, name, metric)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def _metrics(self) -> dict[str, Metric]:
        return {k: v for k, v in self._nnx_items().items() if isinstance(v, Metric)}

    def reset(self) -> None:
        for metric in self._metrics().values():
            metric.reset()

    def update(self, *, mask: Any = None, **updates: Any) -> None:
        """Sends each metric the keywords that it takes.

        Args:
          mask: for every metric that takes one; or a dict of masks by metric.
          **updates: the keywords of the metrics.

        Raises:
          TypeError: for a keyword or mask that no metric takes; nothing is changed.
        """
        metrics, sent = self._metrics(), {}
        masks = mask if isinstance(mask, Mapping) else dict.fromkeys(metrics, mask)
        for name, metric in metrics.items():
            own = masks.get(name)
            given = updates if own is None else {**updates, "mask": own}
            names = metric.update_keywords()
            sent[name] = {k: given[k] for k in given if names is None or k in names}
        used = {k for kwargs in sent.values() for k in kwargs}
        lost = updates.keys() - used
        if masks is mask:
            lost |= {f"mask[{k!r}]" for k in masks if "mask" not in sent.get(k, ())}
        elif mask is not None:
            lost |= {"mask"} - used
        if lost:
            raise TypeError(
                f"no metric takes {', '.join(sorted(lost))}: check the spelling, the "
                f"metrics take {sorted(self.update_keywords() or ())}"
            )
        for name, metric in metrics.items():
            metric.update(**sent[name])

    def update_keywords(self) -> frozenset[str] | None:
        parts = [metric.update_keywords() for metric in self._metrics().values()]
        known = frozenset(k for part in parts if part for k in part)
        return None if None in parts else known

    def compute(self) -> dict[str, Any]:
        return {name: metric.compute() for name, metric in self._metrics().items()}


# The arithmetic


def _write(kernel: Any, state: tuple[MetricState, ...], *args: Any) -> None:
    """Gives `state` the values that `kernel` makes of its values and `args`."""
    values = kernel(*[variable.value for variable in state], *args)
    for variable, value in zip(state, values, strict=True):
        variable.value = value


def _values(metric: Metric, mask: Any, kwargs: Mapping[str, Any]) -> Any:
    name = str(metric.argname)
    if list(kwargs) != [name]:
        raise TypeError(
            f"{type(metric).__name__}.update wants the keyword {name!r}, and takes "
            f"mask, but got {sorted(kwargs)}: write update({name}=...)"
        )
    if mask is not None and isinstance(kwargs[name], (int, float)):
        raise ValueError(
            f"a mask was given with one number, {name}={kwargs[name]!r}: pass an array "
            "of values, or skip the update"
        )
    return kwargs[name]


def _weighed(values: Any, mask: Any) -> tuple[jax.Array, Any, Any]:
    """Values of at least float32, the weight of each, and the sum of the weights."""
    values = jnp.asarray(values)
    if jnp.iscomplexobj(values):
        raise TypeError(f"values are {_shown(values)}: pass real ones, abs(values)")
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if mask is None:
        return values, 1, values.size
    mask = jnp.asarray(mask)
    try:
        weights = jnp.broadcast_to(mask, values.shape)
    except ValueError:
        raise ValueError(
            f"a mask {_shown(mask)} does not broadcast to values {_shown(values)}: a "
            "mask for the first axes needs axes of size 1 behind, mask[..., None]"
        ) from None
    is_floating = jnp.issubdtype(mask.dtype, jnp.floating)
    count = weights.sum(dtype=jnp.float32 if is_floating else jnp.int32)
    values = jnp.where(weights != 0, values, 0)  # what does not count may be nan
    return values, weights.astype(values.dtype), count


def _shown(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


_zeros = jax.jit(lambda *arrays: [jnp.zeros_like(x) for x in arrays])
_quotient = jax.jit(lambda total, count: total / count)


@jax.jit
def _averaged(total: Any, count: Any, values: Any, mask: Any) -> tuple[Any, Any]:
    values, weights, n = _weighed(values, mask)
    return total + (values * weights).sum().astype(total.dtype), count + n


@jax.jit
def _judged(
    total: Any, count: Any, logits: Any, labels: Any, mask: Any, threshold: Any
) -> tuple[Any, Any]:
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if labels.dtype not in (jnp.int32, jnp.int64):
        raise ValueError(
            f"labels must be int32, not {_shown(labels)}: labels.astype(jnp.int32)"
        )
    of_classes = threshold is None
    if labels.shape != (logits.shape[:-1] if of_classes else logits.shape):
        raise ValueError(
            f"labels {_shown(labels)} do not fit logits {_shown(logits)}: without a "
            "threshold they lack the last axis, the classes (for one-hot labels pass "
            "labels.argmax(-1)); with Accuracy(threshold=0.5) the shapes are the same"
        )
    guesses = logits.argmax(-1) if of_classes else logits >= threshold
    correct = guesses == (labels if of_classes else labels > 0)
    return _averaged(total, count, correct, mask)


@jax.jit
def _merged(count: Any, mean: Any, m2: Any, values: Any, mask: Any) -> tuple[Any, ...]:
    values, weights, n = _weighed(values, mask)
    all_n = count + n
    share = n / jnp.where(all_n > 0, all_n, 1)
    here = (values * weights).sum() / jnp.where(n > 0, n, 1)
    delta = here - mean
    spread = (weights * (values - here) ** 2).sum() + delta**2 * count * share
    return (
        all_n,
        (mean + delta * share).astype(mean.dtype),
        (m2 + spread).astype(m2.dtype),
    )


@jax.jit
def _statistics(count: Any, mean: Any, m2: Any) -> Statistics:
    deviation = jnp.sqrt(m2 / count)
    mean = jnp.where(count > 0, mean, jnp.nan)
    return Statistics(mean, deviation / jnp.sqrt(count), deviation)
