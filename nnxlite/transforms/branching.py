"""`cond` and `switch`: one of several functions, chosen by a value.

Each branch is traced once, by itself. What any of them writes comes out of all of
them: a branch that leaves a Variable alone gives its value from before. Everything
else that a branch does (structure, metadata, what it returns) must be the same in all,
since it is known before the choice is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import jaxpr_as_fun

from ..core.arrays import is_dynamic
from ..core.errors import name_of
from ..core.module import Pytree
from ..core.operators import value_of
from ..core.variable import Variable
from .boundary import (
    Packing,
    Parting,
    Visit,
    apply,
    difference,
    numbers_as_arrays,
)
from .compilation import compiled_at_top
from .leaves import flatten, plain_objects


class _Branch:
    """One branch, traced: what it did, and a function that does it again.

    Args:
      transform: what error messages call the choice.
      name: what they call this branch.
      function: the branch.
      operands: its arguments.
      also: nodes that it takes for changed; see `Visit.part`.
    """

    def __init__(
        self,
        transform: str,
        name: str,
        function: Callable[..., Any],
        operands: Sequence[Any],
        also: Sequence[Any],
    ):
        self.name = name
        plain = plain_objects(operands)
        left: list[tuple[Parting, Packing]] = []

        def run() -> list[Any]:
            with Visit(f"{name} of {transform}", plain=plain) as visit:
                result = numbers_as_arrays(function(*operands))
                parting = visit.part(result, also=also)
            left.append((parting, Packing([parting.values, parting.leaves])))
            return left[-1][1].arrays

        jaxpr = jax.make_jaxpr(run)()
        self.compute = jaxpr_as_fun(jaxpr)
        self.types = jaxpr.out_avals
        self.parting, self.packing = left[-1]

    def outcome(self, before: dict[Variable[Any], Any], arrays: Any) -> Packing:
        """All values that come out of this branch, given those that it computes."""
        values, leaves = self.packing.unpacked(arrays)
        after = {**before, **dict(zip(self.parting.variables, values, strict=True))}
        return Packing([[*after.values()], leaves], _crosses)


def _crosses(value: Any) -> bool:
    return is_dynamic(value) or isinstance(value, ShapedArray)


def _traced(
    transform: str,
    names: Sequence[str],
    functions: Sequence[Any],
    operands: Sequence[Any],
) -> list[_Branch]:
    """The branches. A bare array that one of them replaces comes out of all of them."""
    for name, function in zip(names, functions, strict=True):
        if not callable(function):
            raise TypeError(
                f"{name} of {transform} must be a function of the operands, not a "
                f"{type(function).__name__}: give lambda: ... to compute it there"
            )
    also: list[Any] = []
    while True:
        branches = [
            _Branch(transform, name, function, operands, also)
            for name, function in zip(names, functions, strict=True)
        ]
        changes = [change for b in branches for change in b.parting.changes]
        owners = [{id(x.owner) for x in b.parting.changes} for b in branches]
        partly = {
            id(x.owner): x.owner
            for x in changes
            if x.is_of_arrays and not all(id(x.owner) in own for own in owners)
        }
        new = [owner for owner in partly.values() if isinstance(owner, Pytree)]
        if not new:
            return branches
        also += new


def _choose(
    transform: str,
    select: Callable[..., Any],
    names: Sequence[str],
    functions: Sequence[Callable[..., Any]],
    operands: Sequence[Any],
) -> Any:
    """Traces the branches, lets `select` choose among them, and applies the choice."""
    branches = _traced(transform, names, functions, operands)
    first = branches[0]
    for other in branches[1:]:
        shown = difference(first.parting, other.parting)
        if shown is not None:
            where, here, there = shown
            raise TypeError(
                f"the branches of {transform} must do the same but for values, and "
                f"{where} differs: {here} in {first.name}, {there} in {other.name}. "
                "Both must set, delete and return the same; only values may differ"
            )
    written = list(dict.fromkeys(v for b in branches for v in b.parting.variables))
    before = {variable: variable.raw_value for variable in written}
    types = {v: _types_of(value) for v, value in before.items()}
    outcomes = [branch.outcome(types, branch.types) for branch in branches]
    dtypes = _agreed(transform, written, branches, outcomes)

    def finish(branch: _Branch) -> list[Any]:
        computed = [jnp.asarray(x) for x in branch.compute()]  # JAX gives literals too
        arrays = map(jnp.asarray, branch.outcome(before, computed).arrays)
        return [
            x if x.dtype == dtype else x.astype(dtype)
            for x, dtype in zip(arrays, dtypes, strict=True)
        ]

    results = select([functools.partial(finish, branch) for branch in branches])
    record = first.parting.record
    record.written, record.packing = written, outcomes[0]
    return apply((record, [], results))


def _types_of(value: Any) -> Any:
    packing = Packing([value])
    return packing.unpacked(map(jax.typeof, packing.arrays))[0]


def _agreed(
    transform: str,
    written: Sequence[Variable[Any]],
    branches: Sequence[_Branch],
    outcomes: Sequence[Packing],
) -> list[Any]:
    """The dtype of each array that comes out; plain numbers follow other branches.

    Raises:
      TypeError: if two branches give a Variable or result other types.
    """
    first = outcomes[0]
    values, leaves = first.unpacked(range(len(first.arrays)))
    parting = branches[0].parting
    names = [
        *written,
        *[parting.where(root, tuple(path)) for root, *path in parting.paths],
    ]

    def name(number: int) -> str:
        numbers = [flatten(x)[0] for x in (*values, *leaves)]
        found = next(n for n, own in zip(names, numbers, strict=True) if number in own)
        return found if isinstance(found, str) else name_of(found)

    for branch, other in zip(branches, outcomes, strict=True):
        if (other.treedef, other.statics) != (first.treedef, first.statics):
            what = " or ".join(name_of(v) for v in written)
            raise TypeError(
                f"the branches of {transform} give {what} values of different "
                f"structure: {_shown(first)} in {branches[0].name}, {_shown(other)} in "
                f"{branch.name}. Give it the same containers and static values in each"
            )
    dtypes: list[Any] = []
    for number, types in enumerate(zip(*(x.arrays for x in outcomes), strict=True)):
        strong = [x.dtype for x in types if not x.weak_type]
        dtype = types[0].dtype
        if any(x.dtype != dtype for x in types):
            kinds = [x.dtype.type(0).item() if x.weak_type else x.dtype for x in types]
            dtype = jnp.result_type(*kinds)
        fits = all(x == dtype for x in strong)
        if not fits or any(x.shape != types[0].shape for x in types):
            shown = ", ".join(
                f"{x.dtype}{list(x.shape)} in {branch.name}"
                for x, branch in zip(types, branches, strict=True)
            )
            raise TypeError(
                f"the branches of {transform} give {name(number)} different types: "
                f"{shown}. All must have one shape and dtype: cast with astype, or "
                "reshape"
            )
        dtypes.append(dtype)
    return dtypes


def _shown(packing: Packing) -> Any:
    return packing.unpacked(packing.arrays)[0]


@compiled_at_top("nnx.cond")
def cond(
    pred: Any,
    true_fun: Callable[..., Any],
    false_fun: Callable[..., Any],
    *operands: Any,
) -> Any:
    """`true_fun(*operands)` if `pred` else `false_fun(*operands)`, under `jit` too.

    The branches may read and write whatever they see, passed or not. What only one of
    them writes is written if it is chosen. Values apart, both must do the same:
    attributes, metadata and the structure of the result are settled before the choice.

    Args:
      pred: a bool, or an array or Variable of one.
      true_fun: the branch for True.
      false_fun: the branch for False.
      *operands: arguments of both: arrays, objects, or pytrees of them.

    Raises:
      TypeError: if the branches differ in structure, or in the type of a value.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> count = nnx.Variable(jnp.array(0))
      >>> def up(count): count += 1
      >>> def stay(count): pass
      >>> nnx.cond(True, up, stay, count)
      >>> count.value.item()
      1
    """
    names = "true_fun", "false_fun"
    return _choose(
        "nnx.cond",
        lambda branches: jax.lax.cond(value_of(pred), *branches),
        names,
        (true_fun, false_fun),
        operands,
    )


@compiled_at_top("nnx.switch")
def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """`branches[index](*operands)`, with the index clamped into range; see `cond`.

    Args:
      index: an int, or an array or Variable of one.
      branches: at least one function.
      *operands: arguments of all of them.

    Raises:
      ValueError: without branches.
      TypeError: if the branches differ in structure, or in the type of a value.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> scale = nnx.Param(jnp.array(3.0))
      >>> print(nnx.switch(1, [lambda s: s * 1, lambda s: s * 2], scale))
      6.0
    """
    if not isinstance(branches, (tuple, list)):
        raise TypeError(
            "nnx.switch(index, branches, ...) takes a list of functions, and got a "
            f"{type(branches).__name__} for them"
        )
    if not branches:
        raise ValueError("nnx.switch needs at least one branch")
    names = [f"branches[{number}]" for number in range(len(branches))]
    return _choose(
        "nnx.switch",
        lambda made: jax.lax.switch(value_of(index), made),
        names,
        branches,
        operands,
    )
