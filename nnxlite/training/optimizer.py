"""Optimizer: an optax transformation bound to the Variables of a model.

optax sees plain nested dicts of arrays (or one array, for a bare Variable), never
Variables, so that every transformation works. The optimizer's own state is kept as
Variables in the structure that optax gave it, under `opt_state`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.arrays import is_array, is_dynamic
from ..core.filters import Filter, filters_to_predicates
from ..core.graph import taken, variables_of
from ..core.kinds import Param
from ..core.module import Module, Pytree, children_of, is_leaf, key_of
from ..core.paths import Path, format_path, set_in
from ..core.state import State, map_state
from ..core.uninferred import check_inferred
from ..core.variable import Variable
from ..transforms.boundary import Visit


class OptState(Variable[Any]):
    """Base class of the Variables of an optimizer.

    Example:
      >>> import nnxlite as nnx, optax
      >>> opt = nnx.Optimizer(nnx.Param(1.0), optax.adam(0.1))
      >>> len(nnx.to_flat_state(nnx.state(opt, nnx.OptState)))
      4
    """


class OptArray(OptState):
    """Optimizer state that belongs to no parameter, such as a count.

    Example:
      >>> import nnxlite as nnx, optax
      >>> opt = nnx.Optimizer(nnx.Param(1.0), optax.adam(0.1))
      >>> opt.opt_state[0].count
      OptArray(value=Array(0, dtype=int32))
    """


class OptVariable(OptState):
    """Optimizer state of one parameter, such as a moment; has its metadata.

    Example:
      >>> import nnxlite as nnx, optax
      >>> opt = nnx.Optimizer(nnx.Param(1.0, group='a'), optax.adam(0.1))
      >>> opt.opt_state[0].mu.group
      'a'
    """


class Optimizer(Pytree):
    """Binds an optax transformation to the Variables of a model.

    Args:
      model: a Module, a single Variable, or a list or dict of these. Of a plain list or
        dict the optimizer keeps the Variables that are in it now: to exchange entries
        later, use an `nnx.List` or `nnx.Dict`.
      tx: an optax transformation; or a mapping from filters to transformations, for
        which the first filter that matches a Variable decides, None freezes.
      wrt: which Variables of the model to optimise; the others, and frozen ones, are
        neither tracked nor changed.

    The model is a part of the optimizer: compiled functions need only be given the
    optimizer, and `nnx.state(optimizer)` holds the values of both. Its own ones alone
    are `nnx.state(optimizer, nnx.OptState)`.

    Attributes:
      model: what is optimised.
      step: the number of updates, an `OptState` of dtype uint32.
      opt_state: the state of `tx`, with Variables for arrays.

    Raises:
      ValueError: if no Variable of the model matches `wrt`.
      TypeError: naming parameters that are no floats.
      UninferredError: naming parameters that have no value yet.

    Example:
      >>> import nnxlite as nnx, optax
      >>> w = nnx.Param(3.0)
      >>> optimizer = nnx.Optimizer(w, optax.sgd(0.25))
      >>> for _ in range(2):
      ...     _ = optimizer.update(nnx.grad(lambda w: w ** 2)(w))
      >>> w.item(), optimizer.step.item()
      (0.75, 2)
    """

    opt_state: Any
    takes_state: bool

    _nnx_names_parts = False  # errors name parameters by paths in the model

    def __init__(
        self,
        model: Any,
        tx: optax.GradientTransformation | Mapping[Filter, Any],
        *,
        wrt: Filter = Param,
    ):
        if is_array(model):
            raise TypeError(
                "an array has no Variables to optimise: make it one, nnx.Param(array)"
            )
        if isinstance(model, optax.GradientTransformation):
            raise TypeError("the model comes first: nnx.Optimizer(model, tx)")
        self.model = model
        self.wrt = wrt
        found = _selected(self.model, wrt)
        if not found:
            raise ValueError(
                f"no Variable of {type(model).__name__} matches wrt={wrt!r} and is not "
                "frozen, so there is nothing to optimise: pass another filter, "
                "wrt=..., or nnx.unfreeze(model, ...). A model with nnx.compact "
                "methods makes its parameters when it is first called"
            )
        check_inferred(found, "nnx.Optimizer")
        for path, variable in found:
            value = _differentiable(path, variable.raw_value)
            if value is not variable.raw_value:
                variable.raw_value = value
        if isinstance(tx, Mapping):
            tx = _partitioned(tx, found)
        if not hasattr(tx, "init") or not hasattr(tx, "update"):
            raise TypeError(
                f"tx must be an optax transformation, such as optax.adam(1e-3), not "
                f"{tx!r}"
            )
        self.paths: tuple[Path, ...] = tuple(path for path, _ in found)
        self.shapes: tuple[Any, ...] = tuple(_shapes(v.raw_value) for _, v in found)
        self.tx = tx
        self.step: OptState = OptState(jnp.zeros((), jnp.uint32))
        parameters = {path: v.raw_value for path, v in found}
        self.takes_state, state = _initial(tx, parameters)
        self.opt_state = _as_variables(state, dict(found))

    def update(self, *model_and_grads: Any, **kwargs: Any) -> Any:
        """Changes the parameters in place: `update(grads)` or `update(model, grads)`.

        In eager code the whole update is one compiled call.

        Args:
          *model_and_grads: gradients as `nnx.grad` gives them, optionally after the
            model to change, if that is another than the one bound.
          **kwargs: what `tx.update` takes besides; gradients among them are converted,
            and `value_fn` is called with the model.

        Returns:
          what was added to the parameters: a State of arrays, or an array.

        Raises:
          TypeError: for a wrong number of arguments.
          ValueError: naming the paths at which the gradients do not fit; nothing is
            changed then.
        """
        if len(model_and_grads) not in (1, 2):
            raise TypeError(
                "use optimizer.update(grads) or optimizer.update(model, grads), not "
                f"{len(model_and_grads)} arguments"
            )
        model, grads = (self.model, *model_and_grads)[-2:]
        if isinstance(grads, Module) and isinstance(model, State):
            raise TypeError(
                f"optimizer.update got a State, then a {type(grads).__name__}: the "
                "order is optimizer.update(model, grads)"
            )
        found = _selected(model, self.wrt)
        parameters = {path: variable.raw_value for path, variable in found}
        self._check_unchanged(parameters)
        fitted = _fitted(grads, parameters, model)
        for name, value in kwargs.items():
            if name == "value_fn":
                kwargs[name] = self._value_fn(value, model, [v for _, v in found])
            elif any(map(_is_variable, jax.tree.leaves(value, is_leaf=_is_variable))):
                kwargs[name] = self._tree(_fitted(value, parameters, model))
        advance = _advance
        if all(is_dynamic(x) for x in jax.tree.leaves(kwargs)):
            advance = _advance_compiled
        updates, new_parameters, new_state = advance(
            self.tx,
            self._tree(fitted),
            _values(self.opt_state),
            self._tree(parameters),
            kwargs,
        )
        flat_updates = self._flat(updates, parameters)
        flat_parameters = self._flat(new_parameters, parameters)
        for path, variable in found:
            variable.raw_value = flat_parameters[path]
        if not _write(self.opt_state, new_state):
            self.opt_state = _as_variables(new_state, dict(found))
        self.step.value = self.step.value + 1
        if list(flat_updates) == [()]:
            return flat_updates[()]
        return State.from_pairs(flat_updates.items())

    def _check_unchanged(self, parameters: Mapping[Path, Any]) -> None:
        """The state of `tx` was made for the parameters that there were then."""
        new = [format_path(path) for path in parameters if path not in self.paths]
        gone = [format_path(path) for path in self.paths if path not in parameters]
        if new or gone:
            raise ValueError(
                "the model has other parameters than when the optimizer was made: new "
                f"are {', '.join(new[:8]) or 'none'}, gone are "
                f"{', '.join(gone[:8]) or 'none'}. Make a new nnx.Optimizer for it, "
                "also after nnx.freeze or nnx.unfreeze"
            )
        for path, shape in zip(self.paths, self.shapes, strict=True):
            if (now := _shapes(parameters[path])) != shape:
                raise ValueError(
                    f"{format_path(path)!r} had the shape {shape} when the optimizer "
                    f"was made, and has {now}: make a new nnx.Optimizer for the model"
                )

    @property
    def learning_rate(self) -> Any:
        """The learning rate, if `tx` was made by `optax.inject_hyperparams`.

        Assigning changes it without compiling anything again.
        """
        return self._learning_rate().value

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._learning_rate()[...] = value

    def _learning_rate(self) -> Variable[Any]:
        for path, leaf in taken(self.opt_state).pairs:
            if path[-2:] == ("hyperparams", "learning_rate"):
                return leaf
        raise AttributeError(
            "the optimizer holds no learning rate: make the transformation with "
            "optax.inject_hyperparams, such as "
            "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)"
        )

    def _tree(self, flat: Mapping[Path, Any]) -> Any:
        return _tree(flat, self.takes_state)

    def _flat(self, tree: Any, like: Mapping[Path, Any]) -> dict[Path, Any]:
        """The inverse of `_tree`."""
        if list(like) == [()]:
            return {(): tree}
        flat = {}
        for path in like:
            value = tree
            for key in path:
                value = value[key]
            flat[path] = value.raw_value if isinstance(value, Variable) else value
        return flat

    def _value_fn(
        self, function: Callable[..., Any], model: Any, variables: Sequence[Any]
    ) -> Callable[..., Any]:
        """A loss of the model as a loss of arrays; its side effects are dropped."""

        def value_fn(tree: Any, *args: Any, **kwargs: Any) -> Any:
            paths = {path: None for path, _ in _selected(model, self.wrt)}
            values = self._flat(tree, paths).values()
            with Visit("value_fn of nnx.Optimizer") as visit:
                visit.show(variables, values)
                return function(model)

        return value_fn


ModelAndOptimizer = Optimizer


def _advance(tx: Any, grads: Any, state: Any, parameters: Any, kwargs: Any) -> Any:
    updates, state = tx.update(grads, state, parameters, **kwargs)
    return updates, optax.apply_updates(parameters, updates), state


# Eager optax would dispatch a dozen operations for each parameter.
_advance_compiled = jax.jit(_advance, static_argnums=0, inline=True)


def _selected(model: Any, wrt: Filter) -> list[tuple[Path, Variable[Any]]]:
    found = variables_of(model, wrt)
    return [(path, v) for path, v in found if not v._metadata.is_frozen]


def _shapes(value: Any) -> Any:
    if is_dynamic(value):
        return jnp.shape(value)
    return tuple(map(jnp.shape, jax.tree.leaves(value)))


def _differentiable(path: Path, value: Any) -> Any:
    """The value of a parameter, strongly typed: steps must not change its type."""

    def strong(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{format_path(path)!r} has the dtype {dtype}, which has no gradient: "
                "make it of floats, such as nnx.Param(1.0), or leave it out by wrt=..."
            )
        is_strong = is_array(x) and not getattr(x, "weak_type", False)
        return x if is_strong else jax.lax.convert_element_type(x, dtype)

    leaves, treedef = jax.tree.flatten(value)
    news = [strong(x) for x in leaves]
    is_same = all(new is x for new, x in zip(news, leaves, strict=True))
    return value if is_same else treedef.unflatten(news)


def _partitioned(
    rules: Mapping[Filter, Any], found: Sequence[tuple[Path, Variable[Any]]]
) -> optax.GradientTransformation:
    """One transformation for each filter; what no filter matches is an error."""
    predicates = filters_to_predicates(rules)
    labels: dict[Path, str] = {}
    for path, variable in found:
        for number, predicate in enumerate(predicates):
            if predicate(path, variable):
                labels[path] = str(number)
                break
        else:
            raise ValueError(
                f"no filter of the optimizer's mapping matches {format_path(path)!r}: "
                "add `...: tx` as the last entry, or `...: None` to freeze the rest"
            )
    transformations: dict[Any, Any] = {
        str(number): optax.set_to_zero() if tx is None else tx
        for number, tx in enumerate(rules.values())
    }
    return optax.partition(transformations, _tree(labels, False))


def _tree(flat: Mapping[Path, Any], as_state: bool) -> Any:
    """Leaves by path as what optax sees: nested dicts, or one value."""
    if list(flat) == [()]:
        return flat[()]
    if as_state:
        return State.from_pairs((path, Param(value)) for path, value in flat.items())
    nested: dict[Any, Any] = {}
    for path, value in flat.items():
        set_in(nested, path, value)
    return nested


def _initial(tx: Any, parameters: Mapping[Path, Any]) -> tuple[bool, Any]:
    """The first state of `tx`, and whether it wants to see a State.

    A tree of labels or masks that was made from `nnx.state(model)` fits only a State.
    """
    try:
        return False, tx.init(_tree(parameters, False))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        try:
            return True, tx.init(_tree(parameters, True))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise error from None


def _as_variables(state: Any, parameters: Mapping[Path, Variable[Any]]) -> Any:
    """optax state with Variables for arrays; those of a parameter get its metadata."""

    def wrap(keys: tuple[Any, ...], leaf: Any) -> Any:
        value = leaf.raw_value if isinstance(leaf, Variable) else leaf
        if not is_array(value):
            return leaf
        path = tuple(key_of(key) for key in keys)
        for start in range(len(path) + 1):
            owner = parameters.get(path[start:])
            if owner is not None and _is_like(value, owner.raw_value):
                metadata = dict(owner._metadata)
                if "optimizer_sharding" in metadata:
                    metadata["out_sharding"] = metadata.pop("optimizer_sharding")
                return OptVariable.from_metadata(value, metadata)
        return OptArray(value)

    return jax.tree_util.tree_map_with_path(wrap, state, is_leaf=_is_variable)


def _is_like(state: Any, parameter: Any) -> bool:
    """True for a moment, say, and False for a counter of a scalar parameter."""
    is_float = jnp.issubdtype(state.dtype, jnp.inexact)
    return is_float and jnp.shape(parameter) == state.shape


def _is_variable(value: Any) -> bool:
    return isinstance(value, Variable)


def _values(state: Any) -> Any:
    """What optax sees of its own state: arrays for Variables, plain containers."""
    if isinstance(state, Variable):
        return state.raw_value
    if isinstance(state, State):
        return map_state(lambda path, leaf: _as_param(leaf), state)
    if isinstance(state, dict):
        return {key: _values(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_values(value) for value in state]
    if is_leaf(state):
        return state
    return jax.tree.map(_values, state, is_leaf=lambda x: x is not state)


def _as_param(leaf: Any) -> Any:
    """A Variable of a State as optax knew it; what masks others stays as it is."""
    return Param(leaf.raw_value) if isinstance(leaf, Variable) else leaf


def _write(state: Any, new: Any) -> bool:
    """Writes new optax state into the Variables; False if the structure differs."""
    if isinstance(state, Variable):
        state.raw_value = new.raw_value if isinstance(new, Variable) else new
        return True
    if is_leaf(state):
        return state is new or (not is_array(new) and bool(state == new))
    olds, news = children_of(state), children_of(new)
    if isinstance(state, State):
        olds, news = dict(state), dict(new)
    return olds.keys() == news.keys() and all(
        [_write(olds[key], news[key]) for key in olds]
    )


def _fitted(grads: Any, parameters: Mapping[Path, Any], model: Any) -> dict[Path, Any]:
    """Gradients by path, exactly those of the parameters.

    Raises:
      ValueError: if one is missing, has another shape, or belongs to nothing.
    """
    if grads is None or type(grads) is tuple and type(model) is not tuple:
        raise ValueError(
            f"expected gradients, got {'None' if grads is None else 'a tuple'}: pass "
            "what nnx.grad gives, or the second part of what nnx.value_and_grad gives"
        )
    if is_dynamic(grads) and not isinstance(model, Variable):
        raise ValueError(
            "expected gradients, got an array: is that the loss? nnx.value_and_grad "
            "gives the loss first, then the gradients"
        )
    walk = taken(grads)
    given = dict(zip(walk.paths, walk.values, strict=True))
    if not given:
        raise ValueError(
            "the gradients are empty: nnx.grad differentiates with respect to Params "
            "that are not frozen; of another kind use nnx.DiffState, such as "
            "nnx.grad(f, argnums=nnx.DiffState(0, nnx.Variable))"
        )
    problems = [f"missing {format_path(p)}" for p in parameters if p not in given]
    for path in given.keys() & parameters.keys():
        wanted, got = (jax.tree.map(jnp.shape, x[path]) for x in (parameters, given))
        if wanted != got:
            problems.append(f"{format_path(path)} has shape {got}, wants {wanted}")
    unknown = given.keys() - parameters.keys()
    if unknown:  # the gradient may cover more of the model than is optimised
        unknown -= set(taken(model).paths)
        problems += [f"unknown {format_path(p)}" for p in sorted(unknown, key=repr)]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"the gradients do not fit the parameters of {type(model).__name__}: "
            f"{'; '.join(problems[:8])}{more}. Pass the gradient of this model with "
            "respect to the Variables that `wrt` selects, as nnx.grad gives it"
        )
    return {path: given[path] for path in parameters}
