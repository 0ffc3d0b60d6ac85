"""TrainState: model, optimizer and step as one value, for purely functional loops."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from ..core.graph import GraphDef
from ..core.splitting import call


@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree of a split model and its optimizer; subclasses may add fields.

    A subclass is a frozen dataclass too; fields with `metadata={"static": True}` are
    static.

    Attributes:
      graphdef: the structure of the model; static.
      params: its parameters.
      opt_state: the state of `tx`.
      step: the number of updates, an int32 array.
      tx: the optax transformation; static.

    Example:
      >>> import jax, jax.numpy as jnp, nnxlite as nnx, optax
      >>> graphdef, params = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> state = nnx.TrainState.create(graphdef, params=params, tx=optax.sgd(0.1))
      >>> def loss(params):
      ...     y, _ = state.graphdef.apply(params)(jnp.ones(2))
      ...     return y.sum()
      >>> state = state.apply_gradients(jax.grad(loss)(state.params))
      >>> state.step.item(), state.apply('params')(jnp.ones(2))[0].shape
      (1, (3,))
    """

    graphdef: GraphDef = dataclasses.field(metadata={"static": True})
    params: Any
    opt_state: Any
    step: jax.Array
    tx: optax.GradientTransformation = dataclasses.field(metadata={"static": True})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _register(cls)

    @classmethod
    def create(
        cls,
        graphdef: GraphDef,
        *,
        params: Any,
        tx: optax.GradientTransformation,
        step: int = 0,
        **fields: Any,
    ) -> Self:
        """Makes a state with a fresh optimizer state; `fields` are a subclass's own."""
        return cls(
            graphdef=graphdef,
            params=params,
            opt_state=tx.init(params),
            step=jnp.asarray(step, jnp.int32),
            tx=tx,
            **fields,
        )

    def apply(self, state: Any, *states: Any) -> Any:
        """Calls the model: `state.apply('params', rest).method(x)`; see `nnx.call`.

        Args:
          state: a State, or the name of a field that holds one.
          *states: likewise; together they hold all leaves of the model.
        """
        parts = [
            getattr(self, s) if isinstance(s, str) else s for s in (state, *states)
        ]
        return call((self.graphdef, *parts))

    def apply_gradients(self, grads: Any, **fields: Any) -> Self:
        """The state after one update; `fields` are replaced too."""
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        return dataclasses.replace(
            self,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            step=self.step + 1,
            **fields,
        )


def _register(cls: Any) -> None:
    """Registers a class with JAX; its fields are known only when it is first used."""

    def names(is_static: bool) -> list[str]:
        fields = dataclasses.fields(cls)
        return [f.name for f in fields if bool(f.metadata.get("static")) is is_static]

    def flatten(state: Any) -> tuple[list[Any], tuple[Any, ...]]:
        children = [
            (jax.tree_util.GetAttrKey(n), getattr(state, n)) for n in names(False)
        ]
        return children, tuple(getattr(state, n) for n in names(True))

    def unflatten(statics: Any, children: Any) -> Any:
        dynamic = zip(names(False), children, strict=True)
        return cls(**dict(dynamic), **dict(zip(names(True), statics, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)


_register(TrainState)
