"""What the Modules of a model are called with, and what their calls cost."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arrays import is_array, type_of
from ..core.interception import Call
from ..core.module import Pytree
from ..core.reprs import static_repr
from ..core.variable import Variable
from ..transforms.autodiff import value_and_grad
from ..transforms.compilation import jit
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
        first.method, first.inputs = name, _mapped(_shape, (args, kwargs))
        result = next(*args, **kwargs)
        first.result = _mapped(_shape, result)
        return result

    with intercept(watch):
        eval_shape(_call, model, method, *_mapped(lambda x: x, (args, kwargs)))
    return list(seen.values())


def described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Inputs or results in a line, such as `float32[8,2], flip=True`."""

    def text(tree: Any) -> str:
        leaves = jax.tree.leaves(
            _Static(tree) if tree is None else tree, is_leaf=_is_object
        )
        return ", ".join(repr(x) if type(x) is _Static else type_of(x) for x in leaves)

    named = [f"{name}={text(x)}" for name, x in kwargs.items() if x is not None]
    return ", ".join([*map(text, args), *named])


@dataclasses.dataclass(frozen=True)
class _Static:
    """A flag or number among inputs; `jit` traces no object of this class."""

    value: Any

    def __repr__(self) -> str:
        return static_repr(self.value)


def _call(module: Any, method: str, args: Any, kwargs: Any) -> list[Any]:
    """The arrays of a method's result."""

    def bare(x: Any) -> Any:
        return x.value if isinstance(x, _Static) else x

    args, kwargs = jax.tree.map(bare, (args, kwargs), is_leaf=_is_object)
    result = getattr(module, method)(*args, **kwargs)
    return [x for x in jax.tree.leaves(result) if is_array(x)]


def _mapped(f: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with `f` of its arrays and objects, and the rest hidden from tracing."""

    def new(x: Any) -> Any:
        return f(x) if is_array(x) or _is_object(x) else _Static(x)

    return jax.tree.map(new, tree, is_leaf=_is_object)


def _shape(value: Any) -> Any:
    value = value.value if isinstance(value, Variable) else value
    is_data = is_array(value)
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if is_data else value


def _is_object(value: Any) -> bool:
    return isinstance(value, (Variable, Pytree))
