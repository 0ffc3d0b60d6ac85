"""Pure dicts: States without Variables, as files and other libraries take them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from .paths import Key, Path, format_path, set_in
from .state import State, flat_pairs
from .variable import Variable


def to_pure_dict(
    state: Mapping[Key, Any], extract_fn: Callable[[Any], Any] | None = None
) -> dict[Key, Any]:
    """Nested plain dicts, with values in place of Variables.

    Args:
      state: a State or nested mapping.
      extract_fn: what to take of a leaf; by default a Variable's `get_value()`.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.to_pure_dict(nnx.State({'a': nnx.Param(1)}))
      {'a': 1}
    """

    def extract(leaf: Any) -> Any:
        return leaf.get_value() if isinstance(leaf, Variable) else leaf

    pick = extract_fn or extract
    pure: dict[Key, Any] = {}
    for path, leaf in flat_pairs(state):
        set_in(pure, path, pick(leaf))
    return pure


def replace_by_pure_dict(
    state: State,
    pure_dict: Mapping[Key, Any],
    replace_fn: Callable[[Any, Any], Any] | None = None,
) -> None:
    """Puts the values of nested dicts into a State, making new Variables.

    Integer keys may have become strings (as checkpoints do). A partial dict is fine.

    Args:
      state: changed in place.
      pure_dict: as `to_pure_dict` gives it.
      replace_fn: `(leaf, value) -> leaf`; by default a copy that shows the value.

    Raises:
      ValueError: naming all paths that the State does not have; nothing is changed.

    Example:
      >>> import nnxlite as nnx
      >>> state = nnx.State({0: nnx.Param(1)})
      >>> nnx.replace_by_pure_dict(state, {'0': 5})
      >>> state[0].value
      5
    """

    def replaced(leaf: Any, value: Any) -> Any:
        if not isinstance(leaf, Variable):
            return value
        if type(leaf).set_value is Variable.set_value:
            return leaf.replace(value)
        new = leaf.copy()  # of a kind that stores something else than it shows
        new.value = value
        return new

    replace = replace_fn or replaced
    known = {tuple(map(str, path)): path for path, _ in flat_pairs(state)}
    found: list[tuple[Path, Any]] = []
    unknown: list[Path] = []

    def visit(value: Any, path: Path) -> None:
        own = known.get(tuple(map(str, path)))
        if own is not None:
            found.append((own, value))
        elif isinstance(value, Mapping):
            for key in value:
                visit(value[key], (*path, key))
        else:
            unknown.append(path)

    visit(pure_dict, ())
    if unknown:
        raise ValueError(
            f"the State has nothing at {', '.join(map(format_path, unknown))}; it has "
            f"{', '.join(format_path(p) for p in list(known.values())[:8])}"
        )
    for path, value in found:
        level: Any = state._mapping
        for key in path[:-1]:
            level = level[key]
        level[path[-1]] = replace(level[path[-1]], value)


def restore_int_paths(pure_dict: Mapping[Key, Any]) -> dict[Key, Any]:
    """Turns keys that are digit strings back into ints, on every level.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.restore_int_paths({'layers': {'0': 1}})
      {'layers': {0: 1}}
    """
    return {
        int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key: (
            restore_int_paths(value) if isinstance(value, Mapping) else value
        )
        for key, value in pure_dict.items()
    }


def as_pure(tree: Any) -> Any:
    """A pytree with the values of Variables in their place.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.as_pure({'a': nnx.Param(1)})
      {'a': 1}
    """

    def is_variable(x: Any) -> bool:
        return isinstance(x, Variable)

    return jax.tree.map(
        lambda x: x.get_value() if is_variable(x) else x, tree, is_leaf=is_variable
    )
