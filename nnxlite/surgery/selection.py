"""`at` and `select`: many places of a model at once, to read and to change.

A selection remembers paths. Whatever it does is checked for all of them first. An
object that is held in several places is one place for values, and is replaced in all.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from ..core.changes import change, misfit
from ..core.filters import Filter, to_predicate
from ..core.iteration import iter_graph
from ..core.module import Pytree, children_of, is_data
from ..core.paths import Path, format_path
from ..core.splitting import clone
from ..core.variable import Variable
from .paths import as_path, child, get_path

M = TypeVar("M")


class Selection(Generic[M]):
    """Places of a model, as `at` and `select` give them.

    Methods that change something return the model: the one given, or the copy.

    Attributes:
      paths: where the places are, each object once.
    """

    def __init__(
        self, model: M, paths: Sequence[Path], copy: bool, everywhere: bool = True
    ):
        self.paths: tuple[Path, ...] = tuple(paths)
        self._model = model
        self._copy = copy
        self._everywhere = everywhere  # replaces objects wherever they are held
        self._shares = False  # whether the Variables are another model's too

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[Path, Any]]:
        return ((path, get_path(self._model, path)) for path in self.paths)

    def __repr__(self) -> str:
        return f"Selection({', '.join(map(format_path, self.paths))})"

    def get(self) -> list[Any]:
        """What is at the places: Modules, Variables, arrays, static values."""
        return [value for _, value in self]

    def where(self, filter: Filter) -> "Selection[M]":
        """Those of the places that match a filter too."""
        matches = to_predicate(filter)
        paths = [path for path, value in self if matches(path, value)]
        return Selection(self._model, paths, self._copy, self._everywhere)

    def count(self, expected: int | None = None) -> int:
        """How many places there are.

        Raises:
          ValueError: if that is another number than expected.
        """
        if expected is not None and len(self) != expected:
            raise ValueError(
                f"selected {len(self)} places of {type(self._model).__name__}, not "
                f"{expected}: {', '.join(map(format_path, self.paths[:12])) or 'none'}"
            )
        return len(self)

    def set(self, value: Any) -> M:
        """Gives every place this value; a Variable takes an array as its value."""
        return self.apply(lambda _: value)

    def apply(self, function: Callable[[Any], Any]) -> M:
        """Gives every place what the function makes of its value.

        Raises:
          ValueError: naming the places at which the shape would change.
        """
        here = self._opened()
        values = [x.get_value() if isinstance(x, Variable) else x for x in here.get()]
        return here._write([function(value) for value in values])

    def set_each(self, values: Sequence[Any]) -> M:
        """Gives each place its own value, in the order of `paths`."""
        if len(values) != len(self):
            raise ValueError(f"{len(values)} values for {len(self)} places: {self!r}")
        return self._opened()._write(list(values))

    def replace(self, new: Any) -> M:
        """Puts another object, a Module, Variable or function, at every place."""
        return self.wrap(lambda _: new)

    def wrap(self, wrapper: Callable[[Any], Any]) -> M:
        """Puts `wrapper(object)` where each object was."""
        here = self._opened()
        return here._changed([wrapper(x) for x in here.get()])

    def remove(self) -> M:
        """Removes attributes, list elements and dict entries."""
        return self._opened()._changed([_REMOVED] * len(self))

    def _opened(self) -> "Selection[M]":
        """The same places in the model that is to be changed."""
        if not self.paths:
            raise ValueError(
                f"nothing in {type(self._model).__name__} was selected: look at "
                "nnx.named_modules(model) and nnx.named_parameters(model)"
            )
        if not self._copy:
            return self
        model = clone(self._model, variables=False)
        own = Selection(model, self.paths, False, self._everywhere)
        own._shares = True
        return own

    def _write(self, values: list[Any]) -> M:
        """Gives Variables values, and puts everything else at its place."""
        news: list[Any] = []
        writes: list[tuple[Variable[Any], Any]] = []
        problems: list[str] = []
        for (path, old), new in zip(self, values, strict=True):
            news.append(new)
            if not isinstance(old, Variable) or isinstance(new, (Variable, Pytree)):
                continue
            target = news[-1] = old.copy() if self._shares else old
            problem = misfit(old.get_value(), new) if np.ndim(new) else None
            if old._metadata.is_frozen and not self._shares:
                problem = "is frozen (nnx.unfreeze lets it be written)"
            try:
                writes += [] if problem else [(target, _fitted(old, new))]
            except (TypeError, ValueError) as error:
                problem = f"cannot be {new!r}: {error}"
            if problem:
                problems.append(f"{format_path(path)} {problem}")
        if problems:
            raise ValueError(f"nothing was set: {'; '.join(problems)}")
        return self._changed(news, writes)

    def _changed(
        self, news: Sequence[Any], writes: Sequence[tuple[Variable[Any], Any]] = ()
    ) -> M:
        """Puts objects at the places, and wherever else the old ones are held."""
        by_id, by_place = {}, {}
        for (path, old), new in zip(self, news, strict=True):
            if path == () and new is not old:
                raise ValueError(
                    f"this {type(old).__name__} is the whole model and cannot be "
                    "replaced in place: put it into an nnx.Dict or a Module, and "
                    "change it there"
                )
            is_written = type(old) is type(new) and isinstance(old, Variable)
            is_object = isinstance(old, (Variable, Pytree))
            if is_object and (self._everywhere or is_written and self._shares):
                by_id[id(old)] = (old, new)
            else:
                by_place[id(get_path(self._model, path[:-1])), path[-1]] = new
        changes = []
        for path, owner in iter_graph(self._model):
            items = children_of(owner)
            after = {
                key: by_place.get((id(owner), key), by_id.get(id(x), (x, x))[1])
                for key, x in items.items()
            }
            if all(after[key] is items[key] for key in items):
                continue
            if not isinstance(owner, Pytree):
                raise ValueError(
                    f"cannot change the {type(owner).__name__} at "
                    f"{format_path(path)!r}: hold its elements in an nnx.List or "
                    "nnx.Dict, or in an attribute of a Module"
                )
            changes.append((owner, _kept(owner, after)))
        for variable, value in writes:
            variable._write(value)
        for owner, after in changes:
            change(owner, after)
        return self._model


_REMOVED: Any = type("Removed", (), {})()


def _kept(owner: Pytree, items: dict[Any, Any]) -> dict[Any, Any]:
    """The items without those removed; the elements of a list move up."""
    if not isinstance(owner, list):
        return {key: x for key, x in items.items() if x is not _REMOVED}
    elements = [x for k, x in items.items() if isinstance(k, int) and x is not _REMOVED]
    rest = {k: x for k, x in items.items() if not isinstance(k, int)}
    return {**dict(enumerate(elements)), **rest}


def _fitted(variable: Variable[Any], value: Any) -> Any:
    """What `variable[...] = value` would store."""
    fitting = variable.copy(frozen=False)
    fitting[...] = value
    return fitting.raw_value


def select(
    model: M, filter: Filter = ..., *, static: bool = False, copy: bool = False
) -> Selection[M]:
    """Selects the Modules, Variables and arrays of a model that match a filter.

    What is held in several places is changed in all of them.

    Args:
      model: a Module or a pytree of them.
      filter: a class, `PathContains`, or any other filter; a str is a tag, no path.
      static: whether static values are selected too: `lambda path, x: x is nnx.relu`.
      copy: whether changes are made to a copy, which shares Variables that do not
        change.

    Raises:
      ValueError: when something is to be changed and nothing matches.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> make = lambda n, m: nnx.Linear(n, m, rngs=nnx.Rngs(0))
      >>> model = nnx.Sequential(make(2, 3), make(3, 4))
      >>> model = nnx.select(model, nnx.PathContains('bias')).apply(lambda x: x + 1)
      >>> model.layers[1].bias.value
      Array([1., 1., 1., 1.], dtype=float32)
      >>> wrapped = lambda layer: nnx.Sequential(layer, nnx.relu)
      >>> nnx.select(model, nnx.Linear).wrap(wrapped).layers[0].layers[1].__name__
      'relu'
      >>> nnx.select(model, nnx.Linear).count(2)
      2
    """
    matches = to_predicate(filter)
    paths = [
        path
        for path, x in iter_graph(model)
        if path and (static or is_data(x)) and matches(path, x)
    ]
    return Selection(model, paths, copy)


def at(model: M, where: Any, *, copy: bool = True) -> Selection[M]:
    """Selects places by name: `nnx.at(model, lambda m: m.head.kernel).set(w)`.

    Args:
      model: a Module or a pytree of them.
      where: a function that returns a place, or several in a tuple or list, of what it
        is given: something that stands for the model, with its attributes and items;
        or a path, or a list of paths.
      copy: whether changes are made to a copy, which shares Variables that do not
        change. To change one place of the model itself, assign to it.

    An object put at the place of a shared one takes only this place.

    Raises:
      ValueError: if a place does not exist, with the nearest path, or if there is none.
      TypeError: for a filter; `select` takes one.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> other = nnx.at(model, lambda m: m.layers[0].bias).set(jnp.ones(3))
      >>> other.layers[0].bias.value, model.layers[0].bias.value
      (Array([1., 1., 1.], dtype=float32), Array([0., 0., 0.], dtype=float32))
      >>> other.layers[0].kernel is model.layers[0].kernel
      True
    """
    if isinstance(where, type) or not (
        inspect.isroutine(where) or isinstance(where, (str, tuple, list))
    ):
        raise TypeError(
            f"nnx.at takes a function, `lambda m: m.head.kernel`, or a path, not "
            f"{where!r}; nnx.select takes filters"
        )
    if callable(where):
        chosen = where(_Place(model, ()))
        paths = []
        for place in chosen if isinstance(chosen, (list, tuple)) else [chosen]:
            if not isinstance(place, _Place):
                raise ValueError(
                    "nnx.at: the function must return places of the model, such as "
                    f"`lambda m: m.head.kernel`, not a {type(place).__name__}"
                )
            paths.append(place._nnx_path)
    else:
        paths = list(map(as_path, where if isinstance(where, list) else [where]))
    once: dict[Any, Path] = {}
    for path in paths:
        found = get_path(model, path)
        is_object = isinstance(found, (Variable, Pytree))
        once.setdefault(id(found) if is_object else path, path)
    if not once:
        raise ValueError(
            "nnx.at: no place was given. What the function gets stands for the model "
            "and is of another class; nnx.select finds places by class"
        )
    return Selection(model, list(once.values()), copy, everywhere=False)


class _Place:
    """Stands for a part of the model in the function that `at` is given."""

    __slots__ = ("_nnx_model", "_nnx_path")

    def __init__(self, model: Any, path: Path):
        self._nnx_model = model
        self._nnx_path = path

    def __getattr__(self, name: str) -> "_Place":
        return self._below(name)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self._below(number) for number in range(len(self))[key]]
        is_from_end = isinstance(key, int) and key < 0
        return self._below(key + len(self) if is_from_end else key)

    def __len__(self) -> int:
        return len(get_path(self._nnx_model, self._nnx_path))

    def __iter__(self) -> Iterator[Any]:
        value = get_path(self._nnx_model, self._nnx_path)
        keys = iter(value) if isinstance(value, dict) else None
        return keys or iter([self._below(number) for number in range(len(value))])

    def _below(self, key: Any) -> "_Place":
        model, path = self._nnx_model, self._nnx_path
        owner = get_path(model, path)
        if isinstance(owner, Variable) and key in ("value", ...):
            return self
        child(owner, key, model, (*path, key))
        return _Place(model, (*path, key))
