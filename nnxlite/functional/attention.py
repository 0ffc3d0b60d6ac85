"""Attention: sums of values, weighted by how well keys fit a query.

The paper is https://arxiv.org/abs/1706.03762. Arrays are `(*batch, length, heads,
features)`; masks and biases broadcast to `(*batch, heads, queries, keys)`. With fewer
heads of keys and values than of queries, each of them serves several neighbouring heads
of queries (https://arxiv.org/abs/2305.13245).
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from .dtypes import PromoteDtype, promote_dtype
from .kernels import compiled


@compiled(arrays=5)
def attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    is_causal: bool = False,
    implementation: Any = None,
) -> Array:
    """Attention by the fastest way that JAX has, `jax.nn.dot_product_attention`.

    Args:
        query: `(*batch, queries, heads, features)`.
        key: `(*batch, keys, kv_heads, features)`, where kv_heads divides heads.
        value: like `key`.
        bias: added to the logits, or None.
        mask: False where a query shall not see a key, or None.
        is_causal: whether each query sees only keys up to its own position.
        implementation: 'xla', 'cudnn' (flash attention on a GPU, in half precision), or
            None to let JAX choose.

    Returns:
        `(*batch, queries, heads, features)`. A query that sees no key gets a mean of
        all values.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> x = jnp.ones((2, 5, 4, 8))
        >>> attention(x, x, x, None, None).shape
        (2, 5, 4, 8)
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    _check_shapes(query, key, value)
    batch, shape = query.shape[:-3], _logits_shape(query, key)

    def flat(x: Array) -> Array:
        return x.reshape(math.prod(batch), *x.shape[-3:])

    def along_logits(x: Array | None, name: str) -> Array | None:
        if x is None:
            return None
        check_broadcasts(x, shape, name)
        x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
        return flat(jnp.broadcast_to(x, (*batch, *x.shape[-3:])))

    y = jax.nn.dot_product_attention(
        flat(query),
        flat(key),
        flat(value),
        bias=along_logits(bias, "bias"),
        mask=None if mask is None else along_logits(jnp.asarray(mask, bool), "mask"),
        is_causal=is_causal,
        implementation=implementation,
    )
    return y.reshape(query.shape[:-1] + value.shape[-1:])


@compiled(arrays=5)
def attention_weights(
    query: Array,
    key: Array,
    bias: Array | None,
    mask: Array | None,
    dropout_key: Array | None,
    dropout_rate: float = 0.0,
    broadcast_dropout: bool = True,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    promote_dtype: PromoteDtype = promote_dtype,
    is_causal: bool = False,
) -> tuple[Array, Array]:
    """The weights of attention, before and after dropout.

    Args:
        query: `(*batch, queries, heads, features)`.
        key: `(*batch, keys, kv_heads, features)`, where kv_heads divides heads.
        bias: added to the logits, or None.
        mask: False where a query shall not see a key, or None.
        dropout_key: for dropout of weights, or None for none.
        dropout_rate: the probability of a weight to become 0.
        broadcast_dropout: whether all batches and heads share one pattern.
        is_causal: whether each query sees only keys up to its own position.

    Returns:
        Two arrays `(*batch, heads, queries, keys)`; the first sums to 1 over keys.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> x = jnp.ones((2, 1, 4))
        >>> weights, _ = attention_weights(x, x, None, None, None, is_causal=True)
        >>> weights
        Array([[[1. , 0. ],
                [0.5, 0.5]]], dtype=float32)
    """
    query, key = promote_dtype((query, key), dtype=dtype)
    _check_shapes(query, key, key)
    shape = _logits_shape(query, key)
    query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
    key = _for_each_head(key, query.shape[-2])
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key, precision=precision)
    if bias is not None:
        check_broadcasts(bias, shape, "bias")
        logits = logits + bias
    seen = [jnp.asarray(mask, bool)] if mask is not None else []
    if is_causal:
        seen.append(jnp.tri(*shape[-2:], dtype=bool))
    for part in seen:
        check_broadcasts(part, shape, "mask")
        logits = jnp.where(part, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits).astype(query.dtype)
    if dropout_key is None or dropout_rate == 0:
        return weights, weights
    if dropout_rate == 1:
        return weights, jnp.zeros_like(weights)
    shared = (1,) * (len(shape) - 2) + shape[-2:] if broadcast_dropout else shape
    kept = jax.random.bernoulli(dropout_key, 1 - dropout_rate, shared)
    scale = kept.astype(weights.dtype) / jnp.asarray(1 - dropout_rate, weights.dtype)
    return weights, weights * scale


@compiled(arrays=2)
def weighted_sum(
    weights: Array, value: Array, precision: lax.PrecisionLike = None
) -> Array:
    """The values `(*batch, keys, kv_heads, features)`, weighted for each query.

    Args:
        weights: `(*batch, heads, queries, keys)`.
        value: the values.

    Returns:
        `(*batch, queries, heads, features)`.

    Example:
        >>> weighted_sum(jnp.ones((1, 2, 3)), jnp.ones((3, 1, 4))).shape
        (2, 1, 4)
    """
    value = _for_each_head(value, weights.shape[-3])
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, precision=precision)


def _for_each_head(x: Array, heads: int) -> Array:
    """Keys or values once for each head of the queries."""
    groups = heads // x.shape[-2]
    return jnp.repeat(x, groups, axis=-2) if groups > 1 else x


def _logits_shape(query: Array, key: Array) -> tuple[int, ...]:
    return (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])


def _check_shapes(query: Array, key: Array, value: Array) -> None:
    shapes = query.shape, key.shape, value.shape
    fits = (
        query.ndim == key.ndim == value.ndim >= 3
        and query.shape[:-3] == key.shape[:-3] == value.shape[:-3]
        and key.shape[-3:-1] == value.shape[-3:-1]
        and query.shape[-1] == key.shape[-1]
        and key.shape[-2] > 0
        and query.shape[-2] % key.shape[-2] == 0
    )
    if not fits:
        raise ValueError(
            "Attention wants query (*batch, queries, heads, features), key and value "
            "(*batch, keys, kv_heads, features) with a kv_heads that divides heads; "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )


def check_broadcasts(x: Array, shape: tuple[int, ...], name: str) -> None:
    """Raises a ValueError for a mask or bias that does not fit the weights' shape."""
    wanted = shape[len(shape) - x.ndim :]
    if x.ndim > len(shape) or any(
        n not in (1, m) for n, m in zip(x.shape, wanted, strict=True)
    ):
        raise ValueError(
            f"The {name} of attention has the shape {x.shape}, which does not "
            f"broadcast to (*batch, heads, queries, keys) = {shape}."
        )


def make_attention_mask(
    query_input: Array,
    key_input: Array,
    pairwise_fn: Callable[..., Any] = jnp.multiply,
    extra_batch_dims: int = 0,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """A mask of what is said of each pair of a query and a key.

    Args:
        query_input: `(*batch, queries)`, such as 1 where there is a token.
        key_input: `(*batch, keys)`.
        pairwise_fn: takes both, one with an axis for the keys, one for the queries.
        extra_batch_dims: how many axes to put in front.
        dtype: of the mask.

    Returns:
        `(*batch, 1, queries, keys)`, with an axis for the heads.

    Example:
        >>> make_attention_mask(jnp.array([1, 1]), jnp.array([1, 0, 1]))
        Array([[[1., 0., 1.],
                [1., 0., 1.]]], dtype=float32)
    """
    mask = pairwise_fn(
        jnp.expand_dims(query_input, axis=-1), jnp.expand_dims(key_input, axis=-2)
    )
    axes = (*range(extra_batch_dims), extra_batch_dims + mask.ndim - 2)
    return jnp.expand_dims(mask, axes).astype(dtype)


def make_causal_mask(
    x: Array, extra_batch_dims: int = 0, dtype: DTypeLike = jnp.float32
) -> Array:
    """A mask by which each position sees those up to itself.

    Args:
        x: `(*batch, length)`; only its shape matters.
        extra_batch_dims: how many axes to put in front.
        dtype: of the mask.

    Returns:
        `(*batch, 1, length, length)`.

    Example:
        >>> make_causal_mask(jnp.ones(2))
        Array([[[1., 0.],
                [1., 1.]]], dtype=float32)
    """
    x = jnp.asarray(x)
    positions = jnp.broadcast_to(jnp.arange(x.shape[-1]), x.shape)
    return make_attention_mask(
        positions, positions, jnp.greater_equal, extra_batch_dims, dtype
    )


def combine_masks(*masks: Array | None, dtype: DTypeLike = jnp.float32) -> Array | None:
    """The mask of what all masks allow; None stands for no mask.

    Raises:
        ValueError: if masks differ in their number of axes.

    Example:
        >>> combine_masks(jnp.array([1, 1, 0]), None, jnp.array([0, 1, 1]))
        Array([0., 1., 0.], dtype=float32)
    """
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    if len({jnp.ndim(mask) for mask in given}) > 1:
        raise ValueError(
            f"masks must have same rank: got {[jnp.shape(mask) for mask in given]}. "
            "Insert axes of size 1."
        )
    return reduce(jnp.logical_and, given[1:], jnp.asarray(given[0], bool)).astype(dtype)
