"""Pooling: reductions over a window that slides along the spatial axes."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .kernels import Pads, Sizes, compiled, frozen, padding_pairs, per_axis

Ints = Sequence[int]


def pool(
    inputs: Array,
    init: float,
    reduce_fn: Callable[..., Array],
    window_shape: Ints,
    strides: Sizes,
    padding: Pads,
) -> Array:
    """Reduce each window with `reduce_fn`; see `jax.lax.reduce_window`.

    Args:
        inputs: `(*batch, *spatial, channels)` with any number of batch axes or none.
        init: where `reduce_fn` starts, and what the input is padded with; clipped to
            the range of an integer type.
        reduce_fn: an associative function of two arrays, such as `jax.lax.max`.
        window_shape: a size for each spatial axis; it tells how many there are.
        strides: a step for each spatial axis or all; None is 1, *not* the window size.
        padding: 'SAME', 'VALID', or an int or (low, high) for each spatial axis or all.

    Returns:
        `(*batch, *windows, channels)`, in the type of the inputs.

    Raises:
        ValueError: if the inputs have too few axes, or an argument has a wrong length.

    Example:
        >>> pool(jnp.array([[3.0], [2.0], [5.0]]), 1, lax.mul, (2,), None, 0)[:, 0]
        Array([ 6., 10.], dtype=float32)
    """
    x, window, rank = jnp.asarray(inputs), tuple(window_shape), len(window_shape)
    batch = x.ndim - rank - 1
    if batch < 0:
        raise ValueError(
            f"A window of shape {window} wants inputs of shape (*batch, *spatial, "
            f"channels) with {rank} spatial axes; got {x.shape}. Add a missing axis, as"
            " in x[..., None]."
        )
    if jnp.issubdtype(x.dtype, jnp.integer):
        init = min(max(init, jnp.iinfo(x.dtype).min), jnp.iinfo(x.dtype).max)
    pairs = padding_pairs(padding, rank)
    return lax.reduce_window(
        x,
        # Not a tracer: by it JAX recognizes max, min and add, which have gradients.
        np.asarray(init, x.dtype),
        reduce_fn,
        (1,) * batch + window + (1,),
        (1,) * batch + per_axis(strides, rank, "strides") + (1,),
        pairs if isinstance(pairs, str) else ((0, 0),) * batch + pairs + ((0, 0),),
    )


_pool = compiled(arrays=1)(pool)


def max_pool(
    inputs: Array, window_shape: Ints, strides: Sizes = None, padding: Pads = "VALID"
) -> Array:
    """The maximum of each window; see `pool`.

    Example:
        >>> max_pool(jnp.array([[3.0], [2.0], [5.0]]), (2,))[:, 0]
        Array([3., 5.], dtype=float32)
    """
    window = frozen((window_shape, strides, padding))
    return _pool(inputs, -math.inf, lax.max, *window)


def min_pool(
    inputs: Array, window_shape: Ints, strides: Sizes = None, padding: Pads = "VALID"
) -> Array:
    """The minimum of each window; see `pool`.

    Example:
        >>> min_pool(jnp.array([[3.0], [2.0], [5.0]]), (2,))[:, 0]
        Array([2., 2.], dtype=float32)
    """
    window = frozen((window_shape, strides, padding))
    return _pool(inputs, math.inf, lax.min, *window)


def avg_pool(
    inputs: Array,
    window_shape: Ints,
    strides: Sizes = None,
    padding: Pads = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """The mean of each window, whose padded zeros may count; see `pool`.

    Example:
        >>> avg_pool(jnp.array([[3.0], [2.0], [5.0]]), (2,))[:, 0]
        Array([2.5, 3.5], dtype=float32)
    """
    window = frozen((window_shape, strides, padding))
    return _avg_pool(inputs, window, count_include_pad)


@compiled(arrays=1)
def _avg_pool(inputs: Array, window: tuple, count_include_pad: bool) -> Array:
    counted = math.prod(window[0])
    if not count_include_pad:
        counted = pool(jnp.ones_like(inputs), 0, lax.add, *window)
    return pool(inputs, 0, lax.add, *window) / counted


@compiled(arrays=1)
def adaptive_avg_pool(
    inputs: Array, output_shape: int | tuple[int | None, ...]
) -> Array:
    """The means of as many windows as wanted, which cover the inputs evenly.

    Of `n` entries, window `i` of `m` takes those from `floor(i n / m)` up to
    `ceil((i + 1) n / m)`, as PyTorch does; windows overlap where `m` does not divide n.

    Args:
        inputs: `(*batch, *spatial, channels)`.
        output_shape: how many windows along each spatial axis; None keeps the axis.

    Returns:
        `(*batch, *output_shape, channels)`.

    Raises:
        ValueError: if the inputs have too few axes.

    Example:
        >>> adaptive_avg_pool(jnp.array([[1.0], [2.0], [6.0]]), 2)[:, 0]
        Array([1.5, 4. ], dtype=float32)
    """
    x = jnp.asarray(inputs)
    sizes = (output_shape,) if isinstance(output_shape, int) else output_shape
    batch = x.ndim - len(sizes) - 1
    if batch < 0:
        raise ValueError(
            f"output_shape={sizes} wants inputs of shape (*batch, *spatial, channels) "
            f"with {len(sizes)} spatial axes; got {x.shape}."
        )
    for axis, wanted in enumerate(sizes, batch):
        if wanted is not None:
            means = jnp.asarray(_window_means(x.shape[axis], wanted), x.dtype)
            y = jnp.tensordot(means, x, (1, axis), precision="highest")
            x = jnp.moveaxis(y, 0, axis)
    return x


def _window_means(size: int, wanted: int) -> np.ndarray:
    """A matrix that takes the mean of each window: `(wanted, size)`."""
    matrix = np.zeros((wanted, size))
    for row in range(wanted):
        low, high = row * size // wanted, -(-(row + 1) * size // wanted)
        matrix[row, low:high] = 1 / (high - low)
    return matrix
