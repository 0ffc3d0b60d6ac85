"""`vjp`, `jvp` and `remat`: derivatives of functions of objects, piece by piece.

All float Variables and arrays of an argument are differentiated. Tangents of an
object are States, as gradients are; what one leaves out is zero.
"""

import contextlib
import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp

from ..core.arrays import NUMBER_TYPES, is_array, is_dynamic
from ..core.errors import HiddenError, title_of
from ..core.frames import is_outermost
from ..core.interception import current
from ..core.paths import Path
from ..core.variable import MISSING, Variable
from .autodiff import Primals
from .boundary import Departure, Visit, apply
from .captures import goes_stale, unbound
from .compilation import Jitted
from .leaves import flatten, plain_objects, with_constants, without_constants
from .prefixes import DiffState

P = ParamSpec("P")
R = TypeVar("R")


def is_float(_: Path, value: Any) -> bool:
    """The filter of what is differentiated where nothing else is said."""
    if isinstance(value, Variable):
        value = value.raw_value
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(
        (is_array(x) or is_dynamic(x))
        and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        for x in leaves
    )


def _primals(args: Sequence[Any]) -> Primals:
    wanted = [DiffState(number, is_float) for number in range(len(args))]
    return Primals(args, {}, wanted, allow_int=True)


class _Result:
    """Which leaves of a result are new Variables, as those of a gradient are."""

    def __init__(self) -> None:
        self.boxes: list[Variable[Any] | None] = []

    def opened(self, value: Any, made: Container[int]) -> Any:
        """The result with arrays for Variables."""
        leaves, treedef = flatten(value)
        self.boxes = [
            x if isinstance(x, Variable) and id(x) in made else None for x in leaves
        ]
        return treedef.unflatten(map(_array_of, leaves))

    def closed(self, arrays: Any) -> Any:
        """Arrays in the form of the result, in new Variables again."""
        leaves, treedef = flatten(arrays)
        return treedef.unflatten(
            x if box is None else type(box).from_metadata(x, box._metadata)
            for x, box in zip(leaves, self.boxes, strict=True)
        )


def _array_of(leaf: Any) -> Any:
    return leaf.raw_value if isinstance(leaf, Variable) else leaf


def _pure(
    transform: str,
    f: Callable[..., Any],
    primals: Primals,
    has_aux: bool,
    result: _Result,
) -> Callable[..., tuple[Any, Departure]]:
    """The function of arrays: its output, and what else it did, with the aux."""

    def run(*values: Any) -> tuple[Any, Departure]:
        with Visit(title_of(transform, f), plain=primals.plain) as visit:
            returned = current(f)(*primals.show(visit, values))
            value, aux = returned if has_aux else (returned, None)
            return result.opened(value, visit.frame.made), visit.depart(aux)

    return run


def vjp(f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """The value of a function, and a function that pulls cotangents back.

    Args:
      f: a function that returns a pytree of arrays, or of new Variables as `nnx.grad`
        does; with `has_aux`, a pair of it and anything else. What it changes on the way
        is applied once.
      *primals: its arguments: arrays, objects, or pytrees of them.
      has_aux: see above.

    Returns:
      `(value, pull_back)`, or `(value, pull_back, aux)`. Given a cotangent of the
      value, `pull_back` returns a tuple with a cotangent for each argument: for an
      object a State of its float Variables, for an array an array.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> y, pull_back = nnx.vjp(lambda model, x: model(x), model, jnp.ones(2))
      >>> grads, dx = pull_back(jnp.ones(3))
      >>> grads.bias.value, dx.shape
      (Array([1., 1., 1.], dtype=float32), (2,))
    """
    function, own, _ = unbound(f)
    opened, result = _primals((*own, *primals)), _Result()
    pure = _pure("nnx.vjp", function, opened, has_aux, result)
    value, pull, departure = jax.vjp(pure, *opened.values, has_aux=True)
    value, aux = result.closed(value), apply(departure, plain=opened.plain)

    def pull_back(cotangent: Any) -> tuple[Any, ...]:
        leaves, treedef = flatten(cotangent)
        cotangent = treedef.unflatten(map(_array_of, leaves))
        return opened.gradients(pull(cotangent))[len(own) :]

    return (value, pull_back, aux) if has_aux else (value, pull_back)


def jvp(
    f: Callable[..., Any],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    has_aux: bool = False,
) -> Any:
    """The value of a function, and its derivative in one direction.

    Args:
      f: see `vjp`.
      primals: the arguments of `f`.
      tangents: one for each: for an array an array; for an object a State, a nested
        dict or an object of its float Variables, where what is left out is zero.
      has_aux: see `vjp`.

    Returns:
      `(value, tangent)`, or `(value, tangent, aux)`.

    Raises:
      ValueError: if a tangent does not fit its argument.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> y, dy = nnx.jvp(lambda model: model(jnp.ones(2)), (model,),
      ...                 ({'bias': jnp.ones(3)},))
      >>> print(dy)
      [1. 1. 1.]
    """
    for name, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, (tuple, list)):
            raise TypeError(
                f"nnx.jvp takes {name} as a tuple, one for each argument, and got a "
                f"{type(given).__name__}: put it in one, ({name[:-1]},)"
            )
    if len(primals) != len(tangents):
        raise ValueError(
            f"nnx.jvp got {len(primals)} primals and {len(tangents)} tangents: give "
            "one tangent for each argument"
        )
    function, own, _ = unbound(f)
    opened = _primals((*own, *primals))
    names = [f"tangents[{n - len(own)}]" for n in range(len(own) + len(primals))]
    directions = opened.tangents((*[None] * len(own), *tangents), names)
    result = _Result()
    pure = _pure("nnx.jvp", function, opened, has_aux, result)
    value, tangent, departure = jax.jvp(pure, opened.values, directions, has_aux=True)
    value, tangent = result.closed(value), result.closed(tangent)
    aux = apply(departure, plain=opened.plain)
    return (value, tangent, aux) if has_aux else (value, tangent)


def _is_number(value: Any) -> bool:
    return type(value) in NUMBER_TYPES


@overload
def remat(f: Callable[P, R], /, **options: Any) -> Callable[P, R]: ...
@overload
def remat(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def remat(  # pyright: ignore[reportInconsistentOverload]
    f: Any = MISSING,
    *,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
) -> Any:
    """A function whose intermediate values are computed again for its gradient.

    It does what `f` does: values, counters and random draws once, not once more for
    the second computation, and keyword arguments as they are. Only memory and time of
    a gradient differ. Of a class, `remat` makes a subclass with another `__call__`.

    Args:
      f: a function, method, Module or Module class; without it, returns a decorator.
      prevent_cse: see `jax.checkpoint`, as is `policy`.
      static_argnums: not needed: numbers and flags stay what they are.
      policy: what may be kept, such as
        `jax.checkpoint_policies.dots_with_no_batch_dims_saveable`.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> grads = nnx.grad(nnx.remat(lambda model: model(jnp.ones(2)).sum()))(model)
      >>> grads.bias.value
      Array([1., 1., 1.], dtype=float32)
    """
    options: Mapping[str, Any] = {"prevent_cse": prevent_cse, "policy": policy}
    if f is MISSING:
        return functools.partial(remat, static_argnums=static_argnums, **options)
    if isinstance(f, type):
        call: Any = remat(f.__call__, **options)
        names = ("__module__", "__qualname__", "__doc__")
        return type(
            f.__name__, (f,), {n: getattr(f, n) for n in names} | {"__call__": call}
        )

    def called(args: Any, kwargs: Any) -> Any:
        args, kwargs = without_constants((args, kwargs))
        return f(*args, **kwargs)

    # Calls of equal structure, such as those of many layers, share one trace.
    title = title_of("nnx.remat", f)
    functools.update_wrapper(called, f, updated=())
    shared = Jitted(called, options, title=title, stage=jax.checkpoint)

    def rematerialized(*args: Any, **kwargs: Any) -> Any:
        plain = plain_objects([*args, *kwargs.values()])

        def run() -> Departure:
            with Visit(title, plain=plain) as visit:
                return visit.depart(f(*args, **kwargs))

        if is_outermost():
            return apply(run(), plain=plain)  # nothing is differentiated here
        if not goes_stale((f, args, kwargs)):
            with contextlib.suppress(HiddenError):
                return shared(*with_constants((args, kwargs), _is_number))
        return apply(jax.checkpoint(run, **options)(), plain=plain)

    return functools.update_wrapper(rematerialized, f, updated=())
