"""Whole states: renaming, checking and strict loading."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import is_array
from ..core.changes import misfit, set_child
from ..core.filters import Filter, to_predicate
from ..core.graph import taken
from ..core.module import Pytree
from ..core.paths import Path, format_path
from ..core.rngs import RngState
from ..core.state import State, flat_pairs
from ..core.variable import Variable
from .paths import as_path, get_path

Renaming = Mapping[Any, Any] | Callable[[Path], Any]


def rename(state: Mapping[Any, Any], names: Renaming) -> State:
    """A State with other paths.

    Args:
      state: a State or nested mapping.
      names: old and new beginnings of paths, as text or tuples, such as
        `{'old.dense': 'dense'}` (the longest that fits wins, '' is the root); or a
        function of the path. None instead of a new path leaves the leaf out.

    Raises:
      ValueError: if two leaves get one path, or no path begins so.

    Example:
      >>> import nnxlite as nnx
      >>> state = nnx.State({'dense': {'kernel': 1}})
      >>> nnx.to_flat_state(nnx.rename(state, {'dense': 'encoder.dense'})).paths
      (('encoder', 'dense', 'kernel'),)
      >>> nnx.to_flat_state(nnx.rename(state, lambda path: ('enc', *path))).paths
      (('enc', 'dense', 'kernel'),)
    """
    return State.from_pairs(_renamed(flat_pairs(state), names).items())


def _renamed(pairs: Iterable[tuple[Path, Any]], names: Renaming) -> dict[Path, Any]:
    pairs = list(pairs)
    used: set[Path] = set()
    prefixes: dict[Path, Path | None] = {}
    if isinstance(names, Mapping):
        prefixes = {as_path(old): _new_path(new) for old, new in names.items()}

    def renamed(path: Path) -> Path | None:
        if not isinstance(names, Mapping):
            return _new_path(names(path))
        fitting = [old for old in prefixes if path[: len(old)] == old]
        if not fitting:
            return path
        old = max(fitting, key=len)
        used.add(old)
        new = prefixes[old]
        return None if new is None else new + path[len(old) :]

    origin: dict[Path, Path] = {}
    for path, _ in pairs:
        new = renamed(path)
        if new is None:
            continue
        if new in origin:
            raise ValueError(
                f"nnx.rename: {format_path(origin[new])!r} and {format_path(path)!r} "
                f"would both be {format_path(new)!r}"
            )
        origin[new] = path
    for new in origin:
        for above in (new[:size] for size in range(len(new))):
            if above in origin:
                raise ValueError(
                    f"nnx.rename: {format_path(above)!r} would be a leaf and hold "
                    f"{format_path(new)!r}"
                )
    if unused := [format_path(old) for old in prefixes if old not in used]:
        shown = ", ".join(format_path(path) for path, _ in pairs[:8])
        raise ValueError(
            f"nnx.rename: no path begins with {', '.join(unused)}; there are {shown}"
        )
    leaves = dict(pairs)
    return {new: leaves[old] for new, old in origin.items()}


def _new_path(path: Any) -> Path | None:
    return None if path is None else as_path(path)


class Report(NamedTuple):
    """How a State compares with a model; see `check`.

    Attributes:
      missing: paths of the model that the State lacks.
      unexpected: paths of the State that the model lacks.
      mismatched: what differs in shape or dtype, as text.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __bool__(self) -> bool:
        return not any(self)

    def __str__(self) -> str:
        texts = [
            f"{name}: {', '.join(paths)}"
            for name, paths in zip(self._fields, self, strict=True)
            if paths
        ]
        return "; ".join(texts) or "no difference"


def check(state: Any, like: Any, *, strict: bool = True) -> Report:
    """Compares paths, shapes and dtypes of a State with those of a model.

    Args:
      state: a State, nested mapping or model.
      like: a model or State; of `nnx.eval_shape` it costs no memory.
      strict: whether a difference is an error.

    Returns:
      the report, which is true if nothing differs.

    Raises:
      ValueError: with the whole report, if `strict`.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> like = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> print(nnx.check({'bias': jnp.ones(4)}, like, strict=False))
      missing: kernel; mismatched: bias wants float32[3], got float32[4]
    """
    given, wanted = leaves_of(state), leaves_of(like)
    report = _report(wanted, given, _difference)
    if strict and not report:
        raise ValueError(f"the State does not fit {type(like).__name__}: {report}")
    return report


def leaves_of(value: Any) -> dict[Path, Any]:
    """By path the leaves of a model, State or nested mapping."""
    if isinstance(value, Mapping) and not isinstance(value, Pytree):
        return dict(flat_pairs(value))
    return dict(taken(value).pairs)


def _report(
    wanted: Mapping[Path, Any],
    given: Mapping[Path, Any],
    problem_of: Callable[[Any, Any], str | None],
) -> Report:
    problems = {
        path: problem_of(_raw(wanted[path]), _raw(x))
        for path, x in given.items()
        if path in wanted
    }
    return Report(
        tuple(format_path(path) for path in wanted if path not in given),
        tuple(format_path(path) for path in given if path not in wanted),
        tuple(f"{format_path(path)} {x}" for path, x in problems.items() if x),
    )


def _raw(leaf: Any) -> Any:
    return leaf.raw_value if isinstance(leaf, Variable) else leaf


def _difference(wanted: Any, given: Any) -> str | None:
    problem = misfit(wanted, given)
    if problem is None and is_array(wanted) and jnp.result_type(given) != wanted.dtype:
        return f"wants {wanted.dtype}, got {jnp.result_type(given)}"
    return problem


def load_state(
    model: Any,
    state: Mapping[Any, Any],
    *,
    strict: bool = True,
    only: Filter = ...,
    rename: Renaming | None = None,
    transform: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Report:
    """Loads arrays into a model, in place.

    Values are cast to the dtypes of the model. Frozen Variables are loaded too. Of
    parametrized ones (see `parametrize`) it loads what they store.

    Args:
      model: a Module.
      state: a State, nested mapping, or flat mapping of dotted names, as PyTorch's
        `state_dict()`; its tensors are taken too.
      strict: whether everything must be there and nothing else; wrong shapes are
        errors in any case.
      only: which Variables of the model are loaded, such as `nnx.Param`; the others
        need not be there.
      rename: see `rename`; done first. A function gets paths with ints for numbers.
      transform: by the last key of the new path, functions of arrays, such as
        `{'kernel': jnp.transpose}`.

    Returns:
      what was missing and unexpected.

    Raises:
      ValueError: with everything that does not fit; nothing is changed then.

    Example:
      >>> import numpy as np, nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> loaded = {'0.weight': np.ones((3, 2)), '0.bias': np.ones(3)}
      >>> nnx.load_state(
      ...     model,
      ...     loaded,
      ...     rename={'0': 'layers.0', '0.weight': 'layers.0.kernel'},
      ...     transform={'kernel': np.transpose},
      ... )
      Report(missing=(), unexpected=(), mismatched=())
    """
    given = {_split(path): _array_of(x) for path, x in flat_pairs(state)}
    if rename is not None:
        given = _renamed(given.items(), rename)
    matches = to_predicate(only)
    wanted = {path: x for path, x in leaves_of(model).items() if matches(path, x)}
    report, news = fitted(model, wanted, given, strict, transform)
    owners = {path: get_path(model, path[:-1]) for path in news if path}
    for path, owner in owners.items():
        if not isinstance(wanted[path], Variable) and not isinstance(owner, Pytree):
            raise ValueError(
                f"cannot load {format_path(path)!r} in place: a {type(owner).__name__} "
                "holds it; nnx.load makes a new model"
            )
    for path, new in news.items():
        if isinstance(wanted[path], Variable):
            wanted[path]._write(new)
        else:
            set_child(owners[path], path[-1], new)
    return report


def fitted(
    model: Any,
    wanted: Mapping[Path, Any],
    given: Mapping[Path, Any],
    strict: bool,
    transform: Mapping[str, Callable[[Any], Any]] | None = None,
) -> tuple[Report, dict[Path, Any]]:
    """The report of `load_state`, and by path the values for a model's leaves."""
    transform = transform or {}
    known = {tuple(map(str, path)): path for path in wanted}
    first = {id(x): path for path, x in wanted.items() if isinstance(x, Variable)}
    leaves: dict[Path, Any] = {}
    for path, value in given.items():
        path = known.get(tuple(map(str, path)), path)
        if path not in wanted:  # another path of a Variable that several Modules share
            path = first.get(id(_at(model, path)), path)
        function = transform.get(str(path[-1])) if path else None
        leaves[path] = value if function is None else function(_raw(value))
    unused = set(transform) - {str(path[-1]) for path in leaves if path}
    if unused:
        raise ValueError(
            f"transform has {', '.join(sorted(unused))}, but no path ends so; there "
            f"are {', '.join(format_path(path) for path in list(leaves)[:8])}"
        )
    report = _report(wanted, leaves, misfit)
    if report.mismatched or strict and not report:
        text = f"cannot load into {type(model).__name__}: {report}"
        if not report.mismatched:
            text += "; strict=False loads what there is"
        missing = [x for path, x in wanted.items() if path not in leaves]
        if missing and all(isinstance(x, RngState) for x in missing):
            text += ", only=nnx.Not(nnx.RngState) leaves random streams as they are"
        raise ValueError(text)
    return report, {
        path: _cast(wanted[path], x) for path, x in leaves.items() if path in wanted
    }


def _array_of(leaf: Any) -> Any:
    """A leaf, as a NumPy array if it is an array of another library."""
    is_foreign = not (isinstance(leaf, Variable) or is_array(leaf))
    return np.asarray(leaf) if is_foreign and hasattr(leaf, "__array__") else leaf


def _at(model: Any, path: Path) -> Any:
    try:
        return get_path(model, path)
    except ValueError:
        return None


def _split(path: Path) -> Path:
    """A dotted name is a path."""
    return as_path(path[0]) if len(path) == 1 and isinstance(path[0], str) else path


def _cast(wanted: Any, value: Any) -> Any:
    """A value in the dtype and sharding of another."""
    old, new = _raw(wanted), _raw(value)
    if not is_array(old):
        return new
    if getattr(new, "dtype", None) != old.dtype:
        new = jnp.asarray(new, old.dtype)
    sharding = getattr(old, "sharding", None)
    return new if sharding is None else jax.device_put(new, sharding)
