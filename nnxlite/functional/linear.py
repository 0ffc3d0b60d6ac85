"""Linear maps: contraction with a weight, and lookup in a table of embeddings."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from numpy.lib.array_utils import normalize_axis_tuple

from .dtypes import PromoteDtype, promote_dtype
from .kernels import compiled, given


@compiled(arrays=3)
def linear(
    x: Array,
    kernel: Array,
    bias: Array | None,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    dot_general: Callable[..., Array] = lax.dot_general,
    promote_dtype: PromoteDtype = promote_dtype,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Array:
    """`x @ kernel + bias`.

    Args:
        x: `(..., in_features)`.
        kernel: `(in_features, out_features)`.
        bias: `(out_features,)`, or None.
        dot_general: used in place of `jax.lax.dot_general`.

    Returns:
        `(..., out_features)`.

    Raises:
        ValueError: if the last axis of `x` has another size.

    Example:
        >>> linear(jnp.array([[1.0, 2.0]]), jnp.ones((2, 3)), jnp.arange(3.0))
        Array([[3., 4., 5.]], dtype=float32)
    """
    options = given(
        preferred_element_type=preferred_element_type, out_sharding=out_sharding
    )
    x, kernel, bias = promote_dtype((x, kernel, bias), dtype=dtype)
    product = partial(dot_general, precision=precision, **options)
    return _contracted(x, kernel, bias, (-1,), (), product)


@compiled(arrays=3)
def linear_general(
    x: Array,
    kernel: Array,
    bias: Array | None,
    axis: int | tuple[int, ...] = (-1,),
    batch_axes: tuple[int, ...] = (),
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    dot_general: Callable[..., Array] = lax.dot_general,
    promote_dtype: PromoteDtype = promote_dtype,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Array:
    """`x` contracted with `kernel` over some axes, plus `bias`.

    Args:
        x: has `axis` and `batch_axes` anywhere.
        kernel: `(*batch, *in_features, *out_features)`, with the in_features of `axis`
            in ascending order.
        bias: `(*batch, *out_features)`, or None.
        axis: the axis or axes of `x` to contract.
        batch_axes: axes of `x` along which each position has a weight of its own.
        dot_general: used in place of `jax.lax.dot_general`.

    Returns:
        `(*batch, ..., *out_features)`, where `...` are the other axes of `x`.

    Raises:
        ValueError: if `x` lacks an axis, or `x` and `kernel` differ in size along one.

    Example:
        >>> linear_general(jnp.ones((2, 3, 4)), jnp.ones((3, 4, 5)), None, (1, 2)).shape
        (2, 5)
    """
    options = given(
        preferred_element_type=preferred_element_type, out_sharding=out_sharding
    )
    x, kernel, bias = promote_dtype((x, kernel, bias), dtype=dtype)
    product = partial(dot_general, precision=precision, **options)
    return _contracted(x, kernel, bias, axis, batch_axes, product)


def _contracted(
    x: Array,
    kernel: Array,
    bias: Array | None,
    axis: Any,
    batch_axes: Any,
    product: Any,
) -> Array:
    batch = normalize_axis_tuple(batch_axes, x.ndim, "batch_axes")
    axis = tuple(sorted(normalize_axis_tuple(axis, x.ndim, "axis")))
    shared, n = batch + axis, len(batch)
    got, wanted = tuple(x.shape[a] for a in shared), kernel.shape[: len(shared)]
    if got != wanted:
        sizes = got[n:] if len(got[n:]) > 1 else got[n]
        advice = f"Reshape x, or make the layer with in_features={sizes}."
        if kernel.ndim > len(got) + 1 and kernel.shape[1 : len(got) + 1] == got:
            advice += " If the model is stacked, call it under nnx.vmap."
        raise ValueError(
            f"A kernel of shape {kernel.shape} wants x to have sizes {wanted} along "
            f"its axes {shared}; got {got} in x of shape {x.shape}. {advice}"
        )
    dimensions = (axis, tuple(range(n, len(shared)))), (batch, tuple(range(n)))
    y = product(x, kernel, dimensions)
    if bias is None:
        return y
    others = (1,) * (x.ndim - len(shared))
    return y + bias.reshape(bias.shape[:n] + others + bias.shape[n:])


@compiled(arrays=3)
def einsum(
    x: Array,
    kernel: Array,
    bias: Array | None,
    equation: str,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    einsum_op: Callable[..., Array] = jnp.einsum,
    promote_dtype: PromoteDtype = promote_dtype,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Array:
    """`jnp.einsum(equation, x, kernel) + bias`.

    Args:
        x: the first operand.
        kernel: the second operand.
        bias: one entry for each position along those axes of the result that come from
            the kernel, in their order; or None.
        equation: such as 'nta,hab->nthb', with an arrow, and `...` if need be.
        einsum_op: used in place of `jax.numpy.einsum`.

    Returns:
        What the equation says.

    Raises:
        ValueError: if the equation is not of two operands and a result, or a shape
            does not fit it.

    Example:
        >>> einsum(jnp.ones((2, 3)), jnp.ones((3, 4)), None, "ab,bc->ac").shape
        (2, 4)
    """
    left, right, result = operands(equation)
    x, kernel, bias = promote_dtype((x, kernel, bias), dtype=dtype)
    y = einsum_op(
        f"{left},{right}->{result}",
        x,
        kernel,
        precision=precision,
        **given(
            preferred_element_type=preferred_element_type, out_sharding=out_sharding
        ),
    )
    if bias is None:
        return y
    sizes = dict(zip(_letters(right, kernel.ndim), kernel.shape, strict=True))
    return y + bias.reshape([sizes.get(i, 1) for i in _letters(result, y.ndim)])


def operands(equation: str) -> tuple[str, str, str]:
    """The two operands and the result of an einsum equation, without spaces.

    Raises:
        ValueError: if there are not two operands and a result.

    Example:
        >>> operands("ab, bc -> ac")
        ('ab', 'bc', 'ac')
    """
    parts = re.fullmatch(r"([\w.]*),([\w.]*)->([\w.]*)", equation.replace(" ", ""))
    if parts is None:
        raise ValueError(
            f"`einsum_str` equation must be of two operands, such as 'ab,bc->ac', with "
            f"one comma and an arrow; got {equation!r}."
        )
    return parts[1], parts[2], parts[3]


def _letters(part: str, rank: int) -> list[Any]:
    """The letter of each axis; the axes of an ellipsis have numbers, from the right."""
    if "..." not in part:
        return list(part)
    before, after = part.split("...")
    hidden = rank - len(before) - len(after)
    return [*before, *range(-hidden, 0), *after]


@compiled(arrays=2)
def embed(
    indices: Array,
    embedding: Array,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    out_sharding: Any = None,
) -> Array:
    """The rows of `embedding`, `(num_embeddings, features)`, at integer `indices`.

    Returns:
        `(*indices.shape, features)`. Negative indices count from the end; a row out of
        range is nan (in an integer type its extreme value).

    Raises:
        ValueError: if the indices are not integers.

    Example:
        >>> embed(jnp.array([2, -1]), jnp.array([[1.0], [2.0], [3.0]]))[:, 0]
        Array([3., 3.], dtype=float32)
    """
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            "Input type must be an integer or unsigned integer: embed looks up rows by "
            f"number, got {indices.dtype.name}. Cast with indices.astype('int32')."
        )
    if indices.dtype.itemsize < 4:  # too small for the number of rows, perhaps
        indices = indices.astype(jnp.int32)
    (embedding,) = promote_dtype((embedding,), dtype=dtype, inexact=False)
    return embedding.at[indices].get(mode="fill", out_sharding=out_sharding)


@compiled(arrays=2)
def attend(
    query: Array,
    embedding: Array,
    dtype: DTypeLike | None = None,
    promote_dtype: PromoteDtype = promote_dtype,
    out_sharding: Any = None,
) -> Array:
    """Inner products of `query`, `(..., features)`, with all rows of `embedding`.

    Returns:
        `(..., num_embeddings)`: logits (https://arxiv.org/abs/1608.05859).

    Raises:
        ValueError: if the numbers of features differ.

    Example:
        >>> attend(jnp.array([1.0, 2.0]), jnp.eye(3, 2))
        Array([1., 2., 0.], dtype=float32)
    """
    query, embedding = promote_dtype((query, embedding), dtype=dtype)
    if query.shape[-1:] != embedding.shape[-1:]:
        raise ValueError(
            f"attend: an embedding of shape {embedding.shape} wants a query of shape "
            f"(..., {embedding.shape[-1]}); got {query.shape}. Project it to that size."
        )
    return jnp.dot(query, embedding.T, out_sharding=out_sharding)
