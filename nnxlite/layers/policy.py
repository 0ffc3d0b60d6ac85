"""Policy: in which types layers hold, compute and promote; one object for a model."""

import contextlib
import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..core.filters import to_predicate
from ..core.interception import POLICY, Interceptor, entered, seen
from ..core.module import Module
from ..functional.dtypes import PromoteDtype, promote_dtype


@dataclasses.dataclass(frozen=True)
class Policy:
    """The arguments that mean the same in every layer, as one value.

    A layer takes from its `policy` each of these arguments that it is not given, and
    keeps it in the attribute of that name.

    Attributes:
        dtype: in which to compute; None promotes inputs and parameters together.
        param_dtype: of the parameters.
        precision: of products, see `jax.lax.dot_general`.
        preferred_element_type: of the results of products, see `jax.lax.dot_general`.
        promote_dtype: a function `(arrays, *, dtype) -> arrays` that casts inputs and
            parameters; see `functional.promote_dtype`.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> half = nnx.Policy(dtype=jnp.bfloat16)
        >>> layer = nnx.Linear(2, 3, policy=half, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones(2)).dtype, layer.kernel.dtype
        (dtype(bfloat16), dtype('float32'))
    """

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: lax.PrecisionLike = None
    preferred_element_type: DTypeLike | None = None
    promote_dtype: PromoteDtype = promote_dtype


DEFAULT_POLICY = Policy()  # of layers that are given none: that of `dtype_policy`


def dtype_policy(
    policy: Policy | None = None,
    *,
    param: DTypeLike | None = None,
    compute: DTypeLike | None = None,
) -> contextlib.AbstractContextManager[None]:
    """A context in which layers are made with a policy that need not be handed down.

    A policy that a layer is given, and arguments of its own, come first.

    Args:
        policy: the policy, by default `Policy()`; of it these are changed:
        param: the dtype of parameters.
        compute: in which dtype to compute.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> with nnx.dtype_policy(compute=jnp.bfloat16):
        ...     layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones(2)).dtype, layer.kernel.dtype
        (dtype(bfloat16), dtype('float32'))
    """
    policy = policy or Policy()
    if param is not None:
        policy = dataclasses.replace(policy, param_dtype=param)
    if compute is not None:
        policy = dataclasses.replace(policy, dtype=compute)
    return entered(Interceptor(POLICY, policy, to_predicate(None)))


def settle(policy: Policy, layer: Any, **given: Any) -> None:
    """Sets attributes of a layer: what is given, or where that is None, the policy's.

    Raises:
        TypeError: if `policy` is no Policy.
    """
    if not isinstance(policy, Policy):
        raise TypeError(
            f"{type(layer).__name__}: policy must be an nnx.Policy, such as nnx.Policy("
            f"dtype=jnp.bfloat16); got {policy!r}."
        )
    if policy is DEFAULT_POLICY and (around := seen(POLICY)):
        policy = around[-1].function
    for name, value in given.items():
        setattr(layer, name, getattr(policy, name) if value is None else value)


class Layer(Module):
    """A Module whose attributes of these names a `Policy` has settled."""

    dtype: DTypeLike | None
    param_dtype: DTypeLike
    precision: lax.PrecisionLike
    preferred_element_type: DTypeLike | None
    promote_dtype: PromoteDtype
