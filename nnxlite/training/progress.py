"""Progress bars with live values that do not make the device wait."""

import collections
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..core.arrays import is_array
from ..core.variable import Variable

T = TypeVar("T")


def progress(
    iterable: Iterable[T],
    metrics: Mapping[str, Any] | Callable[[], Any] | Any = None,
    *,
    every: float = 0.1,
    **options: Any,
) -> Iterator[T]:
    """Iterates with a progress bar, in terminals and notebooks.

    The values shown are those of the last step that the device has finished: nothing
    waits for a step that is under way, until the end.

    Args:
      iterable: what to iterate over.
      metrics: what to show beside the bar: a mapping of names to scalars (arrays,
        Variables, numbers), which may be written meanwhile; a function that gives one;
        or a metric such as `nnx.MultiMetric`, whose `compute()` is shown.
      every: how many seconds lie between two looks at the metrics at least.
      **options: for `tqdm.tqdm`, such as `total` or `desc`.

    Raises:
      ImportError: if the package tqdm is missing.
      TypeError: if `metrics` is something else.

    Example:
      >>> import nnxlite as nnx
      >>> seen = {}
      >>> for step in nnx.progress(range(3), seen, disable=True):
      ...     seen['loss'] = 1.0 / (step + 1)
      >>> step
      2
    """
    try:
        with warnings.catch_warnings():  # a notebook without widgets gets text
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            "nnx.progress needs the package tqdm: pip install 'nnxlite[demo]'"
        ) from None
    return _steps(tqdm(iterable, **options), _reader(metrics), every)


def _reader(metrics: Any) -> Callable[[], Mapping[str, Any]]:
    if metrics is None:
        return dict
    if isinstance(metrics, Mapping):
        return lambda: metrics
    if hasattr(metrics, "compute"):
        return lambda: _named(metrics.compute())
    if callable(metrics):
        return lambda: _named(metrics())
    raise TypeError(
        "nnx.progress: metrics must be a mapping, a function that gives one, or a "
        f"metric with compute(), not a {type(metrics).__name__}"
    )


def _named(values: Any) -> Mapping[str, Any]:
    return values if isinstance(values, Mapping) else {"value": values}


def _steps(
    bar: Any, read: Callable[[], Mapping[str, Any]], every: float
) -> Iterator[Any]:
    waiting: collections.deque[dict[str, Any]] = collections.deque(maxlen=64)
    last = 0.0
    with bar:
        for item in bar.iterable:  # iterating over the bar would close it at the end
            yield item
            bar.update()
            now = time.monotonic()
            if now - last < every or bar.disable:
                continue
            last = now
            waiting.append(_taken(read()))
            done = None
            while waiting and _is_ready(waiting[0]):
                done = waiting.popleft()
            if done is not None:
                bar.set_postfix(_texts(done))
        if not bar.disable:
            bar.set_postfix(_texts(_taken(read())))


def _taken(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they are now; those of Variables change with the next step."""
    return {k: x.value if isinstance(x, Variable) else x for k, x in values.items()}


def _is_ready(values: Mapping[str, Any]) -> bool:
    arrays: list[Any] = [x for x in values.values() if isinstance(x, jax.Array)]
    return all(x.is_ready() for x in arrays)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    def text(value: Any) -> str:
        if not is_array(value) and not isinstance(value, (int, float)):
            return str(value)
        return f"{float(jnp.asarray(value)):.4g}"

    return {name: text(value) for name, value in values.items()}
