"""`custom_vjp`: a function of objects with a gradient rule of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

import jax

from ..core.errors import title_of
from ..core.graph import Putting, taken
from ..core.variable import MISSING
from .autodiff import Primals
from .boundary import Packing, Parting, Visit, apply, numbers_as_arrays
from .labels import bound
from .linearization import is_float
from .prefixes import DiffState

P = ParamSpec("P")
R = TypeVar("R")


class CustomVjp(Generic[P, R]):
    """A function with a gradient rule; see `custom_vjp`."""

    def __init__(self, function: Callable[P, R], nondiff: Sequence[Any]):
        self.function = function
        functools.update_wrapper(self, function, updated=())
        self._constant = [n for n in nondiff if not isinstance(n, DiffState)]
        self._filters = {
            n.argnum: n.filter for n in nondiff if isinstance(n, DiffState)
        }
        self._rules: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """Sets the rule.

        Args:
          fwd: given the arguments, returns the result and residuals: any pytree of
            arrays and objects. It must do to objects what the function does.
          bwd: given the arguments of `nondiff_argnums`, the residuals, and the
            cotangent of the result, returns a tuple with a cotangent for each other
            argument: for an array an array, for an object a State, a nested dict or
            an object; None, or what is left out, is zero. Objects among the residuals
            are copies with the values of then.
        """
        self._rules = fwd, bwd

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function."""
        if self._rules is None:
            title = title_of("nnx.custom_vjp", self.function)
            raise ValueError(f"{title} has no rule yet: call its defvjp(fwd, bwd)")
        return self._differentiable(*self._rules, *bound(self.function, args, kwargs))

    def _differentiable(
        self, fwd: Any, bwd: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        function: Callable[..., Any] = self.function
        title = title_of("nnx.custom_vjp", function)
        count = len(args)
        constant = [number % count for number in self._constant]
        numbers = [number for number in range(count) if number not in constant]
        wanted = [DiffState(n, self._filters.get(n, is_float)) for n in numbers]
        primals = Primals(args, kwargs, wanted, allow_int=True)
        left: list[tuple[Parting, Packing]] = []
        kept: list[tuple[Any, Packing]] = []

        def packed(visit: Visit, result: Any) -> list[Any]:
            parting = visit.part(numbers_as_arrays(result))
            left.append((parting, Packing([parting.values, parting.leaves])))
            return left[-1][1].arrays

        def run(values: Any) -> list[Any]:
            with Visit(title, plain=primals.plain) as visit:
                inside = primals.show(visit, values)
                return packed(visit, function(*inside, **kwargs))

        def forward(values: Any) -> tuple[list[Any], list[Any]]:
            with Visit(f"the forward rule of {title}", plain=primals.plain) as visit:
                pair = fwd(*primals.show(visit, values), **kwargs)
                wanted = "a pair, the result and residuals for the backward rule"
                _check_count(f"the forward rule of {title}", wanted, pair, 2)
                result, residuals = pair
                walk = taken(residuals)
                kept.append((walk.records, Packing(walk.values)))
                return packed(visit, result), kept[-1][1].arrays

        def backward(residuals: list[Any], cotangents: list[Any]) -> tuple[Any]:
            (parting, packing), (records, residual_packing) = left[-1], kept[-1]
            _, leaves = packing.unpacked(cotangents)
            assert parting.record.walk is not None
            cotangent = _put(parting.record.walk, leaves)
            residual = _put(records, residual_packing.unpacked(residuals))
            given = [args[n] for n in constant]
            tangents = _with_contract(bwd, *given, residual, cotangent)
            count = len(numbers)
            wanted = f"a tuple with a cotangent for each of {count} arguments"
            _check_count(f"the backward rule of {title}", wanted, tangents, count)
            names = [f"the cotangent of args[{n}]" for n in numbers]
            return (primals.tangents(tangents, names),)

        pure = jax.custom_vjp(run)
        pure.defvjp(forward, backward)
        arrays = pure(primals.values)
        parting, parting.record.packing = left[-1]
        return apply((parting.record, [], arrays), plain=primals.plain)


def _with_contract(bwd: Callable[..., Any], *args: Any) -> Any:
    """Calls a backward rule; its errors say with what, as rules for Flax fail here."""
    try:
        return bwd(*args)
    except (TypeError, ValueError) as error:
        error.add_note(
            "nnx.custom_vjp calls bwd(residuals, g) as jax.custom_vjp does: g is the "
            "cotangent of the result alone, without updates of the arguments"
        )
        raise


def _check_count(rule: str, wanted: str, value: Any, count: int) -> None:
    if isinstance(value, tuple) and len(value) == count:
        return
    is_tuple = isinstance(value, tuple)
    found = f"one of {len(value)}" if is_tuple else f"a {type(value).__name__}"
    raise TypeError(f"{rule} must return {wanted}, not {found}")


def _put(records: Any, leaves: Sequence[Any]) -> Any:
    rest = iter(leaves)
    return Putting(records, lambda _: next(rest)).put()


@overload
def custom_vjp(fun: Callable[P, R], /, **options: Any) -> CustomVjp[P, R]: ...
@overload
def custom_vjp(**options: Any) -> Callable[[Callable[P, R]], CustomVjp[P, R]]: ...
def custom_vjp(  # pyright: ignore[reportInconsistentOverload]
    fun: Any = MISSING, *, nondiff_argnums: Sequence[Any] = ()
) -> Any:
    """A function whose gradient is what its own rule says; see `jax.custom_vjp`.

    Call `defvjp(fwd, bwd)` on the result. The contract is JAX's, with objects allowed
    everywhere: a cotangent of an object is a State (or nested dict) of its float
    Variables.

    Args:
      fun: the function; without it, returns a decorator.
      nondiff_argnums: positions of arguments that are constants, which `bwd` gets
        first; or a `DiffState` that says what of an argument is differentiated.

    Raises:
      ValueError: at the call, if no rule was set, or if a cotangent does not fit.
      TypeError: if `bwd` returns no tuple with a cotangent for each argument.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> @nnx.custom_vjp
      ... def scaled(model, x):
      ...     return model.scale * x
      >>> def forward(model, x):
      ...     return scaled(model, x), (model, x)
      >>> def backward(residuals, g):
      ...     model, x = residuals
      ...     return {'scale': 100 * g * x}, model.scale * g
      >>> scaled.defvjp(forward, backward)
      >>> model = nnx.Module()
      >>> model.scale = nnx.Param(jnp.array(2.0))
      >>> nnx.grad(scaled)(model, 3.0).scale.value.item()
      300.0
    """
    if fun is MISSING:
        return functools.partial(custom_vjp, nondiff_argnums=nondiff_argnums)
    return CustomVjp(fun, nondiff_argnums)
