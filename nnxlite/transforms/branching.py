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
from jax.extend.core import jaxpr_as_fun

from ..core.errors import name_of
from ..core.operators import value_of
from ..core.variable import Variable
from .boundary import Packing, Parting, Visit, apply, difference, numbers_as_arrays
from .compilation import compiled_at_top


class _Branch:
    """One branch, traced: what it did, and a function that does it again."""

    def __init__(
        self, name: str, function: Callable[..., Any], operands: Sequence[Any]
    ):
        self.name = name
        left: list[tuple[Parting, Packing]] = []

        def run() -> list[Any]:
            with Visit(name) as visit:
                parting = visit.part(numbers_as_arrays(function(*operands)))
            left.append((parting, Packing([parting.values, parting.leaves])))
            return left[-1][1].arrays

        self.compute = jaxpr_as_fun(jax.make_jaxpr(run)())
        self.parting, self.packing = left[-1]

    def values_and_leaves(self) -> Any:
        """Computes the branch."""
        return self.packing.unpacked(self.compute())


def _choose(
    transform: str,
    select: Callable[..., Any],
    names: Sequence[str],
    functions: Sequence[Callable[..., Any]],
    operands: Sequence[Any],
) -> Any:
    """Traces the branches, lets `select` choose among them, and applies the choice."""
    branches = [
        _Branch(f"{transform}, {name}", function, operands)
        for name, function in zip(names, functions, strict=True)
    ]
    first = branches[0]
    for other in branches[1:]:
        shown = difference(first.parting, other.parting)
        if shown is not None:
            where, here, there = shown
            raise TypeError(
                f"the branches of {transform} must do the same but for values, and "
                f"{where} differs: {here} in {names[0]}, {there} in "
                f"{names[branches.index(other)]}"
            )
    written = list(dict.fromkeys(v for b in branches for v in b.parting.variables))
    before = {variable: variable.raw_value for variable in written}
    packings: list[Packing] = []

    def finish(branch: _Branch) -> list[Any]:
        values, leaves = branch.values_and_leaves()
        after = {**before, **dict(zip(branch.parting.variables, values, strict=True))}
        packing = Packing([list(after.values()), leaves])
        packings.append(packing)
        _check_same(transform, written, packings[0], packing)
        return packing.arrays

    results = select([functools.partial(finish, branch) for branch in branches])
    record = first.parting.record
    record.written, record.packing = written, packings[0]
    return apply((record, [], results))


def _check_same(
    transform: str, written: Sequence[Variable[Any]], one: Packing, other: Packing
) -> None:
    """Raises TypeError if two branches give a Variable or result other types."""
    if (one.treedef, one.statics) != (other.treedef, other.statics):
        raise TypeError(
            f"the branches of {transform} leave values of different structure: "
            f"{one.treedef} and {other.treedef}"
        )
    kinds = [
        [(x.shape, x.dtype) for x in map(jax.typeof, p.arrays)] for p in (one, other)
    ]
    for index, (here, there) in enumerate(zip(*kinds, strict=True)):
        if here == there:
            continue
        weak = [jax.typeof(p.arrays[index]).weak_type for p in (one, other)]
        if here[0] == there[0] and any(weak):
            continue
        owner = one.treedef.unflatten(range(len(one.statics)))
        what = next(
            (
                name_of(v)
                for v, tree in zip(written, owner[0], strict=True)
                if index in jax.tree.leaves(tree)
            ),
            "a result",
        )
        raise TypeError(
            f"the branches of {transform} give {what} different types: "
            f"{here[1]}{list(here[0])} and {there[1]}{list(there[0])}. Both must have "
            "one shape and dtype: cast with astype, or reshape"
        )


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
