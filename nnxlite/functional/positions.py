"""Positions: how attention is told where in a sequence an entry stands."""

import jax.numpy as jnp
from jax import Array

from .kernels import compiled


@compiled(arrays=1)
def _sinusoids(positions: Array, features: int, base: float) -> Array:
    angles = _angles(positions, features, base)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*angles.shape[:-1], -1)[..., :features]


def sinusoidal_positions(
    positions: int | Array, features: int, base: float = 10_000.0
) -> Array:
    """Sines and cosines of positions, to be added to embeddings.

    The paper is https://arxiv.org/abs/1706.03762, section 3.5.

    Args:
        positions: numbers of any shape, or how many, from 0 on.
        features: how many entries a position gets: sine and cosine in turn.
        base: ratio of the longest and the shortest wavelength.

    Returns:
        `(*positions, features)`, float32.

    Example:
        >>> sinusoidal_positions(2, 4).round(1)
        Array([[0. , 1. , 0. , 1. ],
               [0.8, 0.5, 0. , 1. ]], dtype=float32)
    """
    if isinstance(positions, int):
        positions = jnp.arange(positions)
    return _sinusoids(positions, features, base)


@compiled(arrays=2)
def rotary_embedding(
    x: Array,
    positions: Array | None = None,
    base: float = 10_000.0,
    interleaved: bool = False,
) -> Array:
    """Rotates queries or keys by their positions (https://arxiv.org/abs/2104.09864).

    The product of a rotated query and a rotated key depends on their distance only.

    Args:
        x: `(*batch, length, heads, features)`, with an even number of features.
        positions: `(length,)` or `(*batch, length)`; None counts from 0.
        base: ratio of the longest and the shortest wavelength.
        interleaved: whether neighbouring features are rotated together, as in the
            paper, instead of those of the two halves, as in Llama and GPT-NeoX.

    Returns:
        An array like `x`; angles are computed in float32.

    Raises:
        ValueError: if `x` has too few axes or an odd number of features, or the
            positions another shape.

    Example:
        >>> x = jnp.ones((2, 1, 2))
        >>> rotary_embedding(x, jnp.array([0, 1]))[:, 0].round(1)
        Array([[ 1. ,  1. ],
               [-0.3,  1.4]], dtype=float32)
    """
    x = jnp.asarray(x)
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ValueError(
            "rotary_embedding wants (*batch, length, heads, features) with an even "
            f"number of features; got {x.shape}."
        )
    if positions is None:
        positions = jnp.arange(x.shape[-3])
    positions = jnp.asarray(positions)
    if positions.shape not in (x.shape[-3:-2], x.shape[:-2]):
        raise ValueError(
            f"rotary_embedding: x of shape {x.shape} wants positions of shape "
            f"{x.shape[-3:-2]} or {x.shape[:-2]}; got {positions.shape}."
        )
    angles = _angles(positions, x.shape[-1], base)[..., None, :]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    if interleaved:
        one, other = x[..., 0::2], x[..., 1::2]
    else:
        one, other = jnp.split(x, 2, axis=-1)
    rotated = one * cosine - other * sine, other * cosine + one * sine
    join = jnp.stack if interleaved else jnp.concatenate
    return join(rotated, axis=-1).reshape(x.shape).astype(x.dtype)


def _angles(positions: Array, features: int, base: float) -> Array:
    """Positions in units of each wavelength: `(*positions, features / 2)`."""
    exponents = jnp.arange(0, features, 2, dtype=jnp.float32) / features
    return jnp.asarray(positions, jnp.float32)[..., None] / base**exponents
