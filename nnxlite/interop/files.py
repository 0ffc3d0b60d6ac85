"""One file for one model: safetensors, with the paths of the Variables as names.

Any program that reads safetensors reads the arrays. What the format has no word for is
in the file's metadata: random keys, which are stored as their data, values that are no
arrays, as JSON. A file says what a model holds, not what it is: loading needs a model,
or its shapes, to load into.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import is_array
from ..core.filters import All, Filter
from ..core.graph import Putting, taken
from ..core.module import Pytree
from ..core.paths import Path, format_path
from ..core.state import State
from ..core.variable import Variable
from ..surgery.paths import as_path, dotted
from ..surgery.states import fitted, leaves_of

_HELD = frozenset(
    "bool bfloat16 float16 float32 float64 complex64 int8 int16 int32 int64".split()
    + "uint8 uint16 uint32 uint64".split()
)


def save(file: str | os.PathLike[str], model: Any, only: Filter = ...) -> None:
    """Saves the values of a model in one file.

    Variables with the metadata `persistent=False` are left out, and of parametrized
    ones (see `parametrize`) the file has what they store. It is written
    under another name first, so that a file that was there stays whole.

    Args:
      file: its name; it is a safetensors file, whatever its ending.
      model: a Module, a State, an Optimizer, or a pytree of them.
      only: which Variables.

    Raises:
      ImportError: if the package safetensors is missing.
      TypeError: naming a value that is neither array nor JSON, or a path that files
        cannot hold.

    Example:
      >>> import os, tempfile, nnxlite as nnx
      >>> file = os.path.join(tempfile.mkdtemp(), 'model.nnx')
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> nnx.save(file, model)
      >>> other = nnx.load(file, like=nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
      >>> bool((other.kernel == model.kernel).all())
      True
    """
    _check_is_file(file, "nnx.save(file, model)")
    tensors: dict[str, Any] = {}
    notes: dict[str, str] = {}
    is_meant = All(only, _is_kept)
    for path, leaf in leaves_of(model).items():
        if not is_meant(path, leaf):
            continue
        name = _name(path)
        if name in notes or name in tensors:
            raise TypeError(f"a file cannot have two values at {name!r}")
        value = leaf.raw_value if isinstance(leaf, Variable) else leaf
        parts, treedef = jax.tree.flatten(value)
        names = [name]
        if not parts or not jax.tree_util.treedef_is_leaf(treedef):
            names = [f"{name}/{number}" for number in range(len(parts))]
            notes[name] = json.dumps({"leaves": len(parts)})
        for part_name, part in zip(names, parts, strict=True):
            note = {"value": part}
            if is_array(part):
                tensors[part_name], note = _plain(part, path)
            if note:
                notes[part_name] = _json(note, path)
    name = os.fspath(file)
    _safetensors().numpy.save_file(tensors, f"{name}.part", notes)
    os.replace(f"{name}.part", name)


def load(file: str | os.PathLike[str], like: Any, *, strict: bool = True) -> Any:
    """Loads a file that `save` has written.

    Args:
      file: its name.
      like: a model of the structure that was saved, also one of `nnx.eval_shape`;
        values get its dtypes and shardings. What a model shares with an optimizer stays
        shared if both are in one file: `model, optimizer = nnx.load(file, like=[model,
        optimizer])`.
      strict: whether the file must have everything that the model has, and nothing
        else. Variables with `persistent=False` stay as they are in any case.

    Returns:
      a new model: `like` with the values of the file.

    Raises:
      ImportError: if the package safetensors is missing.
      ValueError: with everything that does not fit.

    Example:
      >>> import os, tempfile, nnxlite as nnx
      >>> file = os.path.join(tempfile.mkdtemp(), 'count.nnx')
      >>> nnx.save(file, nnx.Dict(count=nnx.Variable(3)))
      >>> nnx.load(file, like=nnx.Dict(count=nnx.Variable(0))).count.value
      3
    """
    _check_is_file(file, "nnx.load(file, like=model)")
    with _safetensors().safe_open(file, framework="flax") as opened:
        notes = {k: json.loads(x) for k, x in (opened.metadata() or {}).items()}
        parts = {name: opened.get_tensor(name) for name in opened.keys()}
    for name, note in notes.items():
        if "key" in note:
            parts[name] = jax.random.wrap_key_data(parts[name], impl=note["key"])
        elif "dtype" in note:
            array = np.asarray(parts[name]).view(note["dtype"])
            parts[name] = array.reshape(note["shape"])
        elif "value" in note:
            parts[name] = note["value"]
    wanted = leaves_of(like)
    paths = {_name(path): path for path in wanted}
    for name, note in notes.items():
        if "leaves" in note:
            values = [parts.pop(f"{name}/{n}") for n in range(note["leaves"])]
            leaf = wanted.get(paths.get(name, ()))
            treedef = jax.tree.structure(getattr(leaf, "raw_value", leaf))
            fits = treedef.num_leaves == len(values)
            parts[name] = treedef.unflatten(values) if fits else values
    # In Variables, so that a dict is no level of the State.
    found = {paths.get(name, as_path(name)): Variable(x) for name, x in parts.items()}
    for path, leaf in wanted.items():
        if not _is_kept(path, leaf):
            found.setdefault(path, leaf)
    _, news = fitted(like, wanted, found, strict)
    leaves = [
        (path, leaf.copy(news.get(path, leaf.raw_value)))
        if isinstance(leaf, Variable)
        else (path, news.get(path, leaf))
        for path, leaf in wanted.items()
    ]
    if isinstance(like, Mapping) and not isinstance(like, Pytree):
        return State.from_pairs(leaves)
    rest = iter([leaf for _, leaf in leaves])
    return Putting(taken(like).records, lambda _: next(rest)).put()


def _check_is_file(file: Any, form: str) -> None:
    if not isinstance(file, (str, os.PathLike)):
        raise TypeError(f"the file comes first, {form}; got a {type(file).__name__}")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "nnx.save and nnx.load need the package safetensors: "
            "pip install 'nnxlite[checkpoint]'"
        ) from None
    return safetensors


def _is_kept(path: Path, leaf: Any) -> bool:
    return not isinstance(leaf, Variable) or leaf.get_metadata("persistent", True)


def _name(path: Path) -> str:
    if any(isinstance(key, str) and set(key) & set(".[]/") for key in path):
        raise TypeError(
            f"a file cannot have {format_path(path)!r}: its keys must have no dots, "
            "brackets or slashes"
        )
    return dotted(path) or "value"


def _plain(array: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """An array of a dtype that the format holds, and a note of what it stands for."""
    if isinstance(array, jax.ShapeDtypeStruct):
        raise TypeError(f"{format_path(path)!r} has a shape but no value to save")
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        note = {"key": str(jax.random.key_impl(array))}
        return np.asarray(jax.random.key_data(array)), note
    array = np.require(np.asarray(array), requirements="C")
    if str(array.dtype) in _HELD:
        return array, {}
    note = {"dtype": str(array.dtype), "shape": array.shape}
    return array.reshape(-1).view(np.uint8), note


def _json(note: Any, path: Path) -> str:
    try:
        return json.dumps(note)
    except TypeError:
        raise TypeError(
            f"{format_path(path)!r} holds what a file cannot, {note}: leave it out "
            "with the metadata persistent=False"
        ) from None
