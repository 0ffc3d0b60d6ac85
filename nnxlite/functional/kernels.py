"""Kernels: how the functions of this package are compiled and configured.

A *kernel* is a pure function of arrays, compiled as a whole: an eager call is one
dispatch (5 microseconds), not one for each operation. Under an outer `jit` it stays a
call, which JAX differentiates, batches and lowers once for all layers of a shape, and
which XLA inlines: a training step of 50 blocks traces in two thirds of the time that
`inline=True` takes, an eager gradient in three quarters, to the same program.

The first parameters of a kernel are *arrays*, or None where one is optional, the rest
*configuration*: hashable constants of the program. Shapes are checked while tracing,
at no later cost.

Some configuration means the same everywhere: `dtype`, `promote_dtype` (see `dtypes`),
`precision`, `preferred_element_type`, `out_sharding` (see `jax.lax.dot_general`; None
is JAX's default), `axis_name`, `axis_index_groups` (see `jax.lax.psum`). Functions must
be pure: what one reads from elsewhere is constant after the first call. Where one is
not, call what the kernel was made of: `inspect.unwrap(kernel)`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import jax

P = ParamSpec("P")
R = TypeVar("R")
Sizes = int | Sequence[int] | None
Pads = str | int | Sequence[int | tuple[int, int]]
_configurations: dict[Any, tuple[tuple[str, Any], ...]] = {}


def compiled(*, arrays: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a kernel of a function whose first `arrays` parameters are arrays.

    Example:
        >>> @compiled(arrays=1)
        ... def power(x, exponent):
        ...     return x**exponent
        >>> power(jax.numpy.arange(3), 2)
        Array([0, 1, 4], dtype=int32)
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        static = list(inspect.signature(function).parameters.values())[arrays:]
        names = [parameter.name for parameter in static]
        kernel = jax.jit(function, static_argnames=names)
        _configurations[kernel] = tuple((p.name, p.default) for p in static)
        return cast(Callable[P, R], kernel)

    return decorate


def configuration(kernel: Any) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of a kernel's configuration; none of what is no kernel.

    Example:
        >>> @compiled(arrays=1)
        ... def power(x, exponent=2):
        ...     return x**exponent
        >>> configuration(power)
        (('exponent', 2),)
    """
    return _configurations.get(kernel, ())


def frozen(value: Any) -> Any:
    """`value` with lists turned into tuples at every depth: fit to be configuration."""
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None: those that a callee must know."""
    return {name: value for name, value in options.items() if value is not None}


def per_axis(value: Any, rank: int, name: str) -> tuple[Any, ...]:
    """One entry for each of `rank` spatial axes; a single one is for all, None is 1."""
    value = 1 if value is None else value
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(entries) != rank:
        raise ValueError(
            f"{name} must have {rank} entries, one for each spatial axis, or be one for"
            f" all; got {entries}."
        )
    return entries


def padding_pairs(padding: Pads, rank: int) -> Any:
    """(low, high) for each of `rank` spatial axes; the name of a padding stays."""
    if isinstance(padding, str):
        return padding.upper()
    entries = per_axis(padding, rank, "padding")
    return tuple(tuple(p) if isinstance(p, Sequence) else (p, p) for p in entries)
