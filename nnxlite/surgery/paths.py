"""Paths: what is where in a model, as tuples or as text such as `blocks[0].kernel`."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ..core.arrays import is_dynamic
from ..core.changes import misfit, set_child
from ..core.filters import Filter, to_predicate
from ..core.graph import variables_of
from ..core.iteration import iter_graph
from ..core.kinds import Param
from ..core.module import Pytree, children_of, iter_nodes
from ..core.paths import Key, Path, format_path
from ..core.variable import Variable


def as_path(path: str | Path) -> Path:
    """A path of keys; text has dots or brackets, and digits in it are positions."""
    if not isinstance(path, str):
        return tuple(path)
    parts = re.findall(r"[^.\[\]]+", path)
    return tuple(int(x) if x.isdecimal() else x.strip("'\"") for x in parts)


def dotted(path: Path) -> str:
    """A path as PyTorch writes it: `blocks.0.kernel`."""
    return ".".join(map(str, path))


def child(owner: Any, key: Key, root: Any, path: Path) -> Any:
    """One child of what is at a path's parent.

    Raises:
      ValueError: if there is none, with the path that is nearest.
    """
    children = {} if owner is None else children_of(owner)
    if key in children:
        return children[key]
    known = [format_path(p) for p, _ in iter_graph(root) if p]
    near = difflib.get_close_matches(format_path(path), known, n=3, cutoff=0.3)
    raise ValueError(
        f"{type(root).__name__} has nothing at {format_path(path)!r}: "
        f"{format_path(path[:-1])} is a {type(owner).__name__} with "
        f"{list(children)[:12]}"
        + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")
    )


def get_path(model: Any, path: str | Path) -> Any:
    """What is at a path: a Module, Variable, array or static value.

    Args:
      model: a Module or a pytree of them.
      path: a tuple of keys, or text: 'blocks[0].kernel' or 'blocks.0.kernel'.

    Raises:
      ValueError: if nothing is there, with the nearest path.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> nnx.get_path(model, 'layers.0.kernel').shape
      (2, 3)
    """
    found, keys = model, as_path(path)
    for number, key in enumerate(keys):
        found = child(found, key, model, keys[: number + 1])
    return found


def set_path(model: Any, path: str | Path, value: Any) -> None:
    """Writes what is at a path, in place.

    A Variable takes an array of its shape as its value, cast to its dtype; a Module or
    Variable takes the place of what is there.

    Raises:
      ValueError: if nothing is there, or the shape differs; nothing is changed then.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> nnx.set_path(model, 'layers[0].bias', jnp.ones(3))
      >>> model.layers[0].bias.value
      Array([1., 1., 1.], dtype=float32)
    """
    path = as_path(path)
    old = get_path(model, path)
    if isinstance(old, Variable) and not isinstance(value, (Variable, Pytree)):
        problem = misfit(old.get_value(), value)
        if problem is not None:
            raise ValueError(f"{format_path(path)!r} {problem}")
        old[...] = value
        return
    owner = get_path(model, path[:-1])
    if not path or not isinstance(owner, Pytree):
        raise ValueError(
            f"cannot put another object at {format_path(path)!r}, which a "
            f"{type(owner).__name__} holds: an attribute, List or Dict can change"
        )
    set_child(owner, path[-1], value)


def path_of(model: Any, obj: Any) -> Path:
    """The first path of an object in a model.

    Raises:
      ValueError: if it is not there.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> nnx.path_of(model, model.layers[0].kernel)
      ('layers', 0, 'kernel')
    """
    for path, value in iter_graph(model):
        if value is obj:
            return path
    raise ValueError(
        f"this {type(obj).__name__} is not in the {type(model).__name__}: it may be a "
        "copy; Modules and Variables are found by identity"
    )


def parents(model: Any) -> dict[Any, Any]:
    """For each Module and Variable below a model, the Module that holds it.

    Of one that is held several times, the holder that is met first.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> nnx.parents(model)[model.layers[0]] is model.layers
      True
    """
    found: dict[Any, Any] = {}

    def visit(value: Any, holder: Any) -> None:
        for inner in children_of(value).values():
            if isinstance(inner, (Variable, Pytree)):
                if inner in found or inner is model:
                    continue
                found[inner] = holder
                visit(inner, inner)
            elif not isinstance(inner, str):
                visit(inner, holder)

    visit(model, model)
    return found


def named_parameters(
    model: Any, only: Filter = Param
) -> Iterator[tuple[str, Variable[Any]]]:
    """Yields name and Variable of all parameters, as `('layers.0.kernel', Param)`.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> [name for name, parameter in nnx.named_parameters(model)]
      ['layers.0.bias', 'layers.0.kernel']
    """
    return ((dotted(path), variable) for path, variable in variables_of(model, only))


def named_modules(model: Any, only: Filter = ...) -> Iterator[tuple[str, Any]]:
    """Yields name and Module, children first; the model itself has the name ''.

    Example:
      >>> import nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> [name for name, module in nnx.named_modules(model)]
      ['layers.0', 'layers', '']
    """
    matches = to_predicate(only)
    return ((dotted(p), node) for p, node in iter_nodes(model) if matches(p, node))


def size_of(variable: Variable[Any]) -> int:
    """How many numbers a Variable holds."""
    leaves = jax.tree.leaves(variable.raw_value)
    return sum(int(np.size(x)) for x in leaves if is_dynamic(x))


def count_parameters(model: Any, only: Filter = Param) -> int:
    """How many numbers the parameters of a model hold; shared ones count once.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.count_parameters(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      9
    """
    return sum(size_of(parameter) for _, parameter in named_parameters(model, only))
