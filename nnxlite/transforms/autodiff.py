"""`grad` and `value_and_grad` with respect to the Variables of objects.

The differentiated Variables get tangents in the frame of the loss; everything else is
read from around it. What the loss writes on the way (statistics, counters, new
attributes) comes out as auxiliary output and is applied, as plain values.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, overload

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import is_array, is_dynamic
from ..core.errors import title_of
from ..core.filters import to_predicate
from ..core.graph import Taking, taken
from ..core.interception import current
from ..core.kinds import Param
from ..core.module import Pytree, is_data, key_of
from ..core.operators import value_of
from ..core.paths import Path, format_path
from ..core.state import State, flat_pairs
from ..core.uninferred import Uninferred, UninferredError
from ..core.variable import MISSING, Variable
from .boundary import Departure, Holder, Visit, apply
from .captures import positional_parameters, unbound
from .leaves import (
    DYNAMIC,
    NODE,
    VARIABLE,
    flatten,
    flatten_with_path,
    kind_of,
    plain_objects,
)
from .prefixes import DiffState

P = ParamSpec("P")


class _Differentiated(NamedTuple):
    """One leaf of a differentiated argument, with what of it is differentiated.

    `variables` are (path, Variable) below an object; `holders` are places of bare
    arrays in it; an array argument has neither.
    """

    leaf: Any
    variables: list[tuple[Path, Variable[Any]]]
    holders: list[tuple[Path, Holder]]

    @property
    def values(self) -> list[Any]:
        values = [variable.raw_value for _, variable in self.variables]
        for _, holder in self.holders:
            values += holder.arrays()
        return values if values or kind_of(self.leaf) != DYNAMIC else [self.leaf]

    def gradient(self, tangents: list[Any]) -> Any:
        """The gradient in the form of the leaf: State, Variable or array."""
        if kind_of(self.leaf) == DYNAMIC:
            return tangents[0]
        rest = iter(tangents)
        pairs: list[tuple[Path, Any]] = [
            (path, type(v).from_metadata(next(rest), v._metadata))
            for path, v in self.variables
        ]
        pairs += [(path, next(rest)) for path, _ in self.holders]
        if isinstance(self.leaf, Variable):
            return pairs[0][1] if pairs else State({})
        return State.from_pairs(pairs)

    def tangents(self, given: Any, name: str) -> list[Any]:
        """The reverse of `gradient`: arrays for a State, nested dict, object or array.

        Raises:
          ValueError: for an entry that the leaf does not have, or of another shape.
        """
        values = self.values
        if kind_of(self.leaf) == DYNAMIC:
            return [_zero(values[0]) if given is None else given]
        places = [path for path, _ in (*self.variables, *self.holders)]
        if isinstance(self.leaf, Variable):
            entries = {(): given}
        elif isinstance(given, Pytree):
            entries = dict(zip(*_paths_and_leaves(given), strict=True))
        elif given is None or isinstance(given, Mapping):
            entries = dict(flat_pairs(given or {}))
        else:
            raise TypeError(
                f"{name} must be a State, a nested dict or an object like its "
                f"{type(self.leaf).__name__}, and is a {type(given).__name__}"
            )
        unknown = [path for path in entries if path not in places]
        if unknown and not isinstance(given, Pytree):
            raise ValueError(
                f"{name} has an entry {format_path(unknown[0])!r}, which is no "
                f"differentiated part of its {type(self.leaf).__name__}: there are "
                f"{[format_path(path) for path in places]}"
            )
        found = [value_of(entries.get(path)) for path in places]
        for path, value, tangent in zip(places, values, found, strict=True):
            shapes = [jax.tree.map(jnp.shape, x) for x in (tangent, value)]
            if tangent is not None and shapes[0] != shapes[1]:
                raise ValueError(
                    f"{name} has the shape {shapes[0]} at {format_path(path)!r}, but "
                    f"the value there has {shapes[1]}"
                )
        return [
            jax.tree.map(_zero, x)
            if t is None
            else jax.tree.map(lambda t, x: jnp.asarray(t, x.dtype), t, x)
            for x, t in zip(values, found, strict=True)
        ]


class Primals:
    """The arguments of a function, some of them differentiated.

    Args:
      args: the positional arguments.
      kwargs: the keyword arguments.
      wanted: which arguments, and what of them, each argument once.
      allow_int: whether a Variable may hold integers.

    Raises:
      ValueError: if a Variable is both differentiated and not.
      TypeError: for a Variable that is no float.

    Attributes:
      values: for each wanted argument, the differentiated arrays.
      plain: the plain objects among the arguments.
    """

    def __init__(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        wanted: Sequence[DiffState],
        allow_int: bool,
    ):
        self.args = args
        self.plain: list[Any] = plain_objects([*args, *kwargs.values()])
        self.wanted = wanted
        self._found: list[list[_Differentiated]] = []
        self._treedefs: list[Any] = []
        differentiated: dict[int, Path] = {}
        for diff in wanted:
            argument = args[diff.argnum]
            _, treedef = flatten(argument)
            matches = to_predicate(diff.filter)
            parts: list[_Differentiated] = []
            for keys, leaf in flatten_with_path(argument):
                start = (diff.argnum, *map(key_of, keys))
                parts.append(_part(leaf, start, matches, differentiated, allow_int))
            self._found.append(parts)
            self._treedefs.append(treedef)
        if differentiated:
            chosen = {diff.argnum for diff in wanted}
            rest = {n: x for n, x in enumerate(args) if n not in chosen}
            _check_aliasing({**rest, **kwargs}, differentiated)
        self.values: list[list[Any]] = [
            [part.values for part in parts] for parts in self._found
        ]

    def show(self, visit: Visit, values: Sequence[Any]) -> list[Any]:
        """Shows the values inside; returns the positional arguments."""
        inside = list(self.args)
        for diff, parts, part_values, treedef in zip(
            self.wanted, self._found, values, self._treedefs, strict=True
        ):
            inside[diff.argnum] = treedef.unflatten(
                [
                    _shown(visit, part, shown)
                    for part, shown in zip(parts, part_values, strict=True)
                ]
            )
        return inside

    def gradients(self, tangents: Sequence[Any]) -> tuple[Any, ...]:
        """What the user gets for arrays in the structure of `values`."""
        return tuple(
            treedef.unflatten(
                [x.gradient(ts) for x, ts in zip(parts, part_tangents, strict=True)]
            )
            for parts, part_tangents, treedef in zip(
                self._found, tangents, self._treedefs, strict=True
            )
        )

    def tangents(self, given: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """Arrays in the structure of `values` for what the user gives.

        Args:
          given: for each wanted argument the same container of arrays, States, nested
            dicts or objects; what a State leaves out, or None, has the tangent zero.
          names: what to call them.
        """
        tangents = []
        for parts, treedef, one, name in zip(
            self._found, self._treedefs, given, names, strict=True
        ):
            try:
                leaves = (
                    [None] * len(parts) if one is None else treedef.flatten_up_to(one)
                )
            except ValueError as error:
                raise ValueError(
                    f"{name} must have the structure of its argument: {error}"
                ) from None
            tangents.append(
                [x.tangents(t, name) for x, t in zip(parts, leaves, strict=True)]
            )
        return tangents


def _check_aliasing(others: Mapping[Any, Any], differentiated: dict[int, Path]) -> None:
    walk = Taking()
    for number, arg in others.items():
        walk.take(arg, (number,))
    for path, variable in walk.pairs:
        if id(variable) in differentiated:
            first = differentiated[id(variable)]
            raise ValueError(
                f"Inconsistent aliasing detected: the {type(variable).__name__} at "
                f"{_in_arguments(first)} is differentiated, but it is also at "
                f"{_in_arguments(path)}, which is not. Pass the object once, or name "
                "both arguments in argnums"
            )


def _in_arguments(path: Path) -> str:
    root = f"args[{path[0]}]" if isinstance(path[0], int) else str(path[0])
    return format_path(path[1:], root=root)


def _part(
    leaf: Any,
    start: Path,
    matches: Callable[[Path, Any], bool],
    differentiated: dict[int, Path],
    allow_int: bool,
) -> _Differentiated:
    part = _Differentiated(leaf, [], [])
    if kind_of(leaf) not in (NODE, VARIABLE):
        return part
    walk = Taking()
    walk.take(leaf)
    for path, value in walk.pairs:
        place = (*start, *path)
        if not matches(place[1:], value) or id(value) in differentiated:
            continue
        if isinstance(value, Variable):
            if value._metadata.is_frozen:
                continue
            if not allow_int:
                _check_is_float(value.raw_value, place)
            differentiated[id(value)] = place
            part.variables.append((path, value))
        elif is_array(value):
            part.holders.append((path, _holder(leaf, path)))
    return part


def _zero(value: Any) -> Any:
    """The zero tangent of an array; integers have tangents of the type float0."""
    dtype = jnp.result_type(value)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.zeros(jnp.shape(value), dtype)
    return np.zeros(jnp.shape(value), jax.dtypes.float0)


def _paths_and_leaves(node: Any) -> tuple[list[Path], list[Any]]:
    walk = taken(node)
    return walk.paths, walk.leaves


def _holder(node: Any, path: Path) -> Holder:
    """The place of the bare array at a path below a node."""
    key, inner = path[0], path[1:]
    leaves = jax.tree.leaves_with_path(node._nnx_items()[key], is_leaf=is_data)
    for position, (keys, leaf) in enumerate(leaves):
        below = tuple(map(key_of, keys))
        if below == inner:
            return Holder(node, key, position if inner else None)
        if isinstance(leaf, Pytree) and inner[: len(below)] == below:
            return _holder(leaf, inner[len(below) :])
    raise AssertionError(f"there is no array at {format_path(path)}")


def _check_is_float(value: Any, place: Path) -> None:
    if isinstance(value, Uninferred):
        raise UninferredError(
            f"cannot differentiate with respect to {_in_arguments(place)}: it has no "
            "value before the first inputs have told its size. Call "
            "nnx.lazy_init(model, *inputs) first"
        )
    for leaf in jax.tree.leaves(value):
        dtype = jnp.result_type(leaf) if is_dynamic(leaf) else type(leaf).__name__
        if not is_dynamic(leaf) or not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"cannot differentiate with respect to {_in_arguments(place)}: its "
                f"dtype is {dtype}, and gradients need a float. Select other "
                "Variables with nnx.DiffState(argnum, filter), or pass allow_int=True"
            )


def _as_diff_states(argnums: Any) -> tuple[list[DiffState], bool]:
    is_single = not isinstance(argnums, (tuple, list))
    wanted = [
        a if isinstance(a, DiffState) else DiffState(a, Param)
        for a in ([argnums] if is_single else argnums)
    ]
    _check_different(wanted)
    return wanted, is_single


def _check_different(diffs: Sequence[DiffState]) -> None:
    numbers = [diff.argnum for diff in diffs]
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            f"argnums names an argument twice: {numbers}; combine the filters of one "
            "argument in a single nnx.DiffState"
        )


@overload
def value_and_grad(f: Callable[P, Any], /, **options: Any) -> Callable[P, Any]: ...
@overload
def value_and_grad(
    **options: Any,
) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
def value_and_grad(  # pyright: ignore[reportInconsistentOverload]
    f: Any = MISSING,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any:
    """A function that gives the value and the gradient of a loss; see `grad`.

    Returns:
      `(value, gradient)`; with `has_aux`, `((value, aux), gradient)`.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> w = nnx.Param(jnp.array(3.0))
      >>> value, grad = nnx.value_and_grad(lambda w: w ** 2)(w)
      >>> value.item(), grad.item()
      (9.0, 6.0)
    """
    if f is MISSING:
        given = {k: v for k, v in locals().items() if k != "f"}
        return lambda f: value_and_grad(f, **given)
    if reduce_axes:
        raise ValueError("reduce_axes is not supported by JAX any more: leave it out")
    if not callable(f):
        raise TypeError(f"nnx.value_and_grad needs a callable, got {f!r}")
    wanted, is_single = _as_diff_states(argnums)
    function, own_args, own_kwargs = unbound(f)
    title = title_of("nnx.grad", f)
    parameters = positional_parameters(function)

    def differentiate(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = own_args + args, {**own_kwargs, **kwargs}
        diffs = [_counted(d, len(own_args), len(args)) for d in wanted]
        _check_different(diffs)
        needed = max(d.argnum for d in diffs)
        while len(args) <= needed < len(parameters):
            if parameters[len(args)] not in kwargs:
                break
            args = (*args, kwargs.pop(parameters[len(args)]))
        if needed >= len(args) or min(d.argnum for d in diffs) < 0:
            raise TypeError(
                f"{title} differentiates argument {max(d.argnum for d in wanted)}, but "
                f"the call has {len(args) - len(own_args)} positional arguments"
            )
        primals = Primals(args, kwargs, diffs, allow_int)

        def run(values: Any) -> tuple[Any, Departure]:
            with Visit(title, plain=primals.plain) as visit:
                result = current(function)(*primals.show(visit, values), **kwargs)
                pair = _value_and_aux(result, title, has_aux)
                return value_of(pair[0]), visit.depart(pair[1])

        transformed = jax.value_and_grad(
            run, has_aux=True, holomorphic=holomorphic, allow_int=allow_int
        )
        (value, departure), tangents = transformed(primals.values)
        aux = apply(departure, plain=primals.plain)
        gradients = primals.gradients(tangents)
        gradient = gradients[0] if is_single else gradients
        return ((value, aux) if has_aux else value), gradient

    return functools.update_wrapper(differentiate, f, updated=())


def _counted(diff: DiffState, offset: int, count: int) -> DiffState:
    """The same, with the position among all arguments, of which `offset` are bound."""
    start = offset if diff.argnum >= 0 else count
    return DiffState(diff.argnum + start, diff.filter)


def _shown(visit: Visit, part: _Differentiated, values: list[Any]) -> Any:
    """Shows one leaf's tracers inside; returns what the function receives."""
    if kind_of(part.leaf) == DYNAMIC:
        return values[0]
    count = len(part.variables)
    visit.show([variable for _, variable in part.variables], values[:count])
    visit.show_arrays([holder for _, holder in part.holders], values[count:])
    return part.leaf


def _value_and_aux(result: Any, title: str, has_aux: bool) -> tuple[Any, Any]:
    if not has_aux:
        if isinstance(result, tuple):
            raise TypeError(
                f"{title} needs a scalar-output function, but it returned a tuple of "
                f"{len(result)}: a loss beside other results wants has_aux=True"
            )
        return result, None
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"{title} with has_aux=True needs a function that returns (value, aux), "
            f"but it returned {type(result).__name__}"
        )
    return result


@overload
def grad(f: Callable[P, Any], /, **options: Any) -> Callable[P, Any]: ...
@overload
def grad(**options: Any) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
def grad(  # pyright: ignore[reportInconsistentOverload]
    f: Any = MISSING,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any:
    """A function that gives the gradient of a scalar loss.

    The gradient of an object is a State of the Variables that the filter selects,
    `Param`s by default, holding gradients; of a Variable a Variable; of an array an
    array; of a container the container of these. Frozen Variables have none. A Variable
    that is reached twice has one entry, with the sum. What the loss changes on the way
    is applied once.

    Args:
      f: the loss; without it, returns a decorator.
      argnums: position of the argument to differentiate, or a `DiffState` that also
        says which of its Variables, or a sequence of these.
      has_aux: whether `f` returns `(value, aux)`.
      holomorphic: see `jax.grad`.
      allow_int: see `jax.grad`.
      reduce_axes: must be empty.

    Returns:
      the gradient; with `has_aux`, `(gradient, aux)`. A tuple of gradients if argnums
      is a sequence.

    Raises:
      TypeError: for a Variable that is no float, or a loss that is no scalar.
      ValueError: if an object is both differentiated and not.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> grads = nnx.grad(lambda model: model(jnp.ones(2)).sum())(model)
      >>> grads.bias.value
      Array([1., 1., 1.], dtype=float32)
    """
    given = {k: v for k, v in locals().items() if k != "f"}
    if f is MISSING:
        return lambda f: grad(f, **given)
    both = value_and_grad(f, **given)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return functools.update_wrapper(gradient, f, updated=())
