"""Dot-product attention for Modules: with dropout, and weights that can be sown."""

from jax import Array, lax
from jax.typing import DTypeLike

from ..core.kinds import Intermediate
from ..core.module import Module
from ..functional.attention import attention, attention_weights, weighted_sum
from ..functional.dtypes import PromoteDtype, promote_dtype


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    module: Module | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    is_causal: bool = False,
    implementation: str | None = None,
) -> Array:
    """Sums of values, weighted by how well keys fit a query.

    Without dropout and `module` it is `jax.nn.dot_product_attention`.

    Args:
        query: `(*batch, queries, heads, features)`.
        key: `(*batch, keys, kv_heads, features)`, where kv_heads divides heads.
        value: like `key`.
        bias: added to the logits, broadcasts to `(*batch, heads, queries, keys)`.
        mask: False where a query shall not see a key, broadcasts likewise.
        broadcast_dropout: whether all batches and heads share one dropout pattern.
        dropout_rng: the key of the dropout of weights.
        dropout_rate: the probability of a weight to become 0.
        deterministic: True turns dropout off.
        dtype: in which to compute; None promotes the arrays together.
        precision: of the products, where JAX's function is not used.
        module: sows the weights as the Intermediate `attention_weights`.
        promote_dtype: see `nnxlite.layers`.
        is_causal: whether each query sees only keys up to its own position.
        implementation: 'xla', 'cudnn' (flash attention on a GPU), or None to let JAX
            choose.

    Returns:
        `(*batch, queries, heads, features)`.

    Raises:
        ValueError: if shapes do not fit, or dropout is wanted without a key.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> x = jnp.ones((2, 5, 4, 8))
        >>> nnx.dot_product_attention(x, x, x, is_causal=True).shape
        (2, 5, 4, 8)
    """
    drops = dropout_rate > 0 and not deterministic
    if not drops and module is None:
        return attention(
            query,
            key,
            value,
            bias,
            mask,
            dtype=dtype,
            promote_dtype=promote_dtype,
            is_causal=is_causal,
            implementation=implementation,
        )
    if drops and dropout_rng is None:
        raise ValueError(
            "dot_product_attention: dropout of the weights needs a key: pass "
            "dropout_rng=, or deterministic=True"
        )
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    weights, kept = attention_weights(
        query,
        key,
        bias,
        mask,
        dropout_rng if drops else None,
        dropout_rate=dropout_rate,
        broadcast_dropout=broadcast_dropout,
        precision=precision,
        is_causal=is_causal,
    )
    if module is not None:
        module.sow(Intermediate, "attention_weights", weights)
    return weighted_sum(kept, value, precision=precision)
