"""What the Modules of a model are called with, and what their calls cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arrays import is_array, type_of
from ..core.interception import Call
from ..core.module import is_data
from ..core.reprs import static_repr
from ..core.variable import Variable
from ..transforms.autodiff import value_and_grad
from ..transforms.compilation import jit
from ..transforms.leaves import Constant, flatten, with_constants, without_constants
from ..transforms.tracing import eval_shape
from .interception import intercept


@dataclasses.dataclass
class FirstCall:
    """The first call of a Module, in shapes; of `__call__`, if that is called.

    Attributes:
      module: the Module.
      method: the method's name.
      inputs: the positional arguments and those by name.
      result: what it gave.
      count: how often the Module was called in all.
    """

    module: Any
    method: str
    inputs: tuple[Any, Any] = ((), {})
    result: Any = None
    count: int = 0

    def flops(self, with_gradients: bool = False) -> float:
        """The operations of the call, as XLA counts them in the compiled program.

        Args:
          with_gradients: whether the gradients of the Params and the inputs count too.
        """

        def total(*args: Any) -> Any:
            floats = [y for y in _call(*args) if jnp.issubdtype(y.dtype, jnp.inexact)]
            return sum((jnp.real(y).sum() for y in floats), jnp.zeros(()))

        grad = value_and_grad(total, argnums=(0, 2, 3), allow_int=True)
        program: Any = grad if with_gradients else _call
        lowered = jit(program).lower(self.module, self.method, *self.inputs)
        costs: Any = lowered.compile().cost_analysis()
        return float(costs.get("flops", 0.0)) if isinstance(costs, Mapping) else 0.0


def first_calls(model: Any, method: str, args: Any, kwargs: Any) -> list[FirstCall]:
    """The calls of a model's Modules in their order, when it is called with shapes.

    Raises:
      TypeError: if the model has no such method.
    """
    if not callable(getattr(model, method, None)):
        raise TypeError(f"a {type(model).__name__} has no method {method!r} to call")
    seen: dict[int, FirstCall] = {}

    def watch(next: Any, args: Any, kwargs: Any, call: Call) -> Any:
        name = call.method_name
        first = seen.setdefault(id(call.module), FirstCall(call.module, name))
        first.count += 1
        if first.count > 1 and (name != "__call__" or name == first.method):
            return next(*args, **kwargs)
        first.method, first.inputs = name, _shapes((args, kwargs))
        result = next(*args, **kwargs)
        first.result = _shapes(result)
        return result

    with intercept(watch):
        eval_shape(_call, model, method, *_without_flags((args, kwargs)))
    return list(seen.values())


def described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Inputs or results in a line, such as `float32[8,2], flip=True`."""

    def leaf(x: Any) -> str:
        return static_repr(x.value) if type(x) is Constant else type_of(x)

    def text(tree: Any) -> str:
        return "None" if tree is None else ", ".join(map(leaf, flatten(tree)[0]))

    named = [f"{name}={text(x)}" for name, x in kwargs.items() if x is not None]
    return ", ".join([*map(text, args), *named])


def _call(module: Any, method: str, args: Any, kwargs: Any) -> list[Any]:
    """The arrays of a method's result."""
    args, kwargs = without_constants((args, kwargs))
    result = getattr(module, method)(*args, **kwargs)
    return [x for x in jax.tree.leaves(result) if is_array(x)]


def _without_flags(tree: Any) -> Any:
    """A tree with all but its arrays and objects constant."""
    return with_constants(tree, lambda x: not is_data(x))


def _shapes(tree: Any) -> Any:
    """The same, with shapes for arrays and Variables."""
    leaves, treedef = flatten(_without_flags(tree))
    return treedef.unflatten(list(map(_shape, leaves)))


def _shape(value: Any) -> Any:
    value = value.value if isinstance(value, Variable) else value
    if not is_array(value):
        return value
    return jax.ShapeDtypeStruct(value.shape, value.dtype)
