"""`Module.sow` and `Module.perturb`: what happens inside, kept as Variables."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .errors import name_of
from .kinds import Perturbation, variable_type_from_name
from .operators import value_of
from .variable import Variable


def _appended(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    return (*values, value)


def sow(
    module: Any,
    variable_type: type[Variable[Any]] | str,
    name: str,
    value: Any,
    reduce_fn: Callable[[Any, Any], Any] = _appended,
    init_fn: Callable[[], Any] = tuple,
) -> bool:
    """Keeps a value of a call in a Variable of the module.

    By default the Variable holds a tuple with one entry for each call since it was
    made. `nnx.pop(model, nnx.Intermediate)` takes it out again, which a compiled
    function should do before it returns: it is compiled anew for each length of the
    tuple. Slices of a `vmap` or `scan` keep what they sow if the module is mapped; of
    one that all slices share, pop what was sown and return it.

    Args:
      module: the Module whose method this is.
      variable_type: the kind of the Variable, such as `nnx.Intermediate`, or its
        collection name; an unknown name makes a kind.
      name: the attribute.
      value: an array, or a pytree of arrays.
      reduce_fn: given what is held and the value, what is held next.
      init_fn: gives what is held at first.

    Returns:
      True.

    Raises:
      ValueError: if the attribute holds something else.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> class Net(nnx.Module):
      ...     def __call__(self, x):
      ...         self.sow(nnx.Intermediate, 'inputs', x)
      ...         return 2 * x
      >>> net = Net()
      >>> y = net(jnp.ones(2))
      >>> nnx.pop(net, nnx.Intermediate).inputs.value
      (Array([1., 1.], dtype=float32),)
    """
    kind = _kind(variable_type)
    value = jax.tree.map(
        value_of, value, is_leaf=lambda leaf: isinstance(leaf, Variable)
    )
    held = _held(module, name, kind, "sow")
    if held is None:
        setattr(module, name, kind(reduce_fn(init_fn(), value)))
    else:
        held.raw_value = reduce_fn(held.raw_value, value)
    return True


def perturb(
    module: Any,
    name: str,
    value: Any,
    variable_type: type[Variable[Any]] | str = Perturbation,
) -> Any:
    """Adds a Variable of zeros to a value, for the value's gradient.

    The gradient with respect to the Variable is that with respect to the value. The
    first call makes it, so call the model once before `nnx.grad`. A Perturbation is an
    Intermediate, and is taken out with them.

    Args:
      module: the Module whose method this is.
      name: the attribute that holds the Variable.
      value: a float array; go on with what is returned.
      variable_type: the kind of the Variable, or its collection name.

    Returns:
      an array equal to the value.

    Raises:
      ValueError: if the attribute holds something else, or another shape.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> class Net(nnx.Module):
      ...     def __call__(self, x):
      ...         return 3 * self.perturb('hidden', x ** 2)
      >>> net = Net()
      >>> y = net(jnp.array(2.0))
      >>> only = nnx.DiffState(0, nnx.Perturbation)
      >>> grads = nnx.grad(lambda net: net(jnp.array(2.0)), argnums=only)(net)
      >>> grads.hidden.item()
      3.0
    """
    kind = _kind(variable_type)
    value = value_of(value)
    held = _held(module, name, kind, "perturb")
    if held is None:
        held = kind(jnp.zeros_like(value))
        setattr(module, name, held)
    if jnp.shape(held.raw_value) != jnp.shape(value):
        raise ValueError(
            f"{name_of(held)} perturbs a value of shape {jnp.shape(value)}, but was "
            f"made for {jnp.shape(held.raw_value)}: take it out with "
            f"nnx.pop(model, nnx.{kind.__name__}) before inputs of another shape"
        )
    return value + held.raw_value


def _kind(variable_type: type[Variable[Any]] | str) -> type[Variable[Any]]:
    if isinstance(variable_type, str):
        return variable_type_from_name(variable_type, allow_register=True)
    return variable_type


def _held(
    module: Any, name: str, kind: type[Variable[Any]], verb: str
) -> Variable[Any] | None:
    held = getattr(module, name, None)
    if held is None or type(held) is kind:
        return held
    raise ValueError(
        f"{type(module).__name__}.{verb} cannot keep its {kind.__name__} in {name!r}, "
        f"which holds a {type(held).__name__}: choose another name"
    )
