"""Recurrence: one step of each cell, given what its linear maps say, and reversal.

Gates are given before their nonlinearity, as the part from the inputs and the part from
the hidden state, each one array with the gates side by side along the last axis, or a
tuple with one array for each gate.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from .kernels import compiled

Gates = Array | tuple[Array, ...]
Function = Callable[..., Array]


def _parts(gates: Gates, count: int) -> list[Array]:
    if isinstance(gates, tuple):
        return list(gates)
    return jnp.split(gates, count, axis=-1)


@compiled(arrays=3)
def lstm(
    from_inputs: Gates,
    from_hidden: Gates,
    memory: Array,
    gate_fn: Function = jax.nn.sigmoid,
    activation_fn: Function = jnp.tanh,
) -> tuple[Array, Array]:
    """One step of long short-term memory (https://doi.org/10.1162/neco.1997.9.8.1735).

    Args:
        from_inputs: of the input, forget, cell and output gates, together
            `(..., 4 * hidden)`.
        from_hidden: likewise.
        memory: `(..., hidden)`.

    Returns:
        The new memory and the new hidden state, `(..., hidden)`.

    Example:
        >>> gates, memory = jnp.ones((2, 12)), jnp.ones((2, 3))
        >>> memory, hidden = lstm(gates, gates, memory)
        >>> memory.shape, hidden.shape
        ((2, 3), (2, 3))
    """
    both = zip(_parts(from_inputs, 4), _parts(from_hidden, 4), strict=True)
    i, f, g, o = (x + h for x, h in both)
    memory = gate_fn(f) * memory + gate_fn(i) * activation_fn(g)
    return memory, gate_fn(o) * activation_fn(memory)


@compiled(arrays=3)
def gru(
    from_inputs: Gates,
    from_hidden: Gates,
    hidden: Array,
    gate_fn: Function = jax.nn.sigmoid,
    activation_fn: Function = jnp.tanh,
) -> Array:
    """One step of a gated recurrent unit (https://arxiv.org/abs/1406.1078).

    Args:
        from_inputs: of the reset, update and new gates, together `(..., 3 * hidden)`.
        from_hidden: likewise; the reset gate scales its last part as a whole.
        hidden: `(..., hidden)`.

    Returns:
        The new hidden state.

    Example:
        >>> gru(jnp.ones((2, 9)), jnp.ones((2, 9)), jnp.ones((2, 3))).shape
        (2, 3)
    """
    (xr, xz, xn), (hr, hz, hn) = _parts(from_inputs, 3), _parts(from_hidden, 3)
    z = gate_fn(xz + hz)
    new = activation_fn(xn + gate_fn(xr + hr) * hn)
    return (1 - z) * new + z * hidden


@compiled(arrays=3)
def simple_rnn(
    from_inputs: Array,
    from_hidden: Array,
    hidden: Array,
    residual: bool = False,
    activation_fn: Function = jnp.tanh,
) -> Array:
    """One step of an Elman network (https://doi.org/10.1207/s15516709cog1402_1).

    Args:
        from_inputs: `(..., hidden)`.
        from_hidden: likewise.
        hidden: the hidden state.
        residual: whether it is added before the activation.

    Returns:
        The new hidden state.

    Example:
        >>> simple_rnn(jnp.zeros(2), jnp.zeros(2), jnp.ones(2))
        Array([0., 0.], dtype=float32)
    """
    total = from_inputs + from_hidden
    return activation_fn(total + hidden if residual else total)


@compiled(arrays=2)
def flip_sequences(x: Array, lengths: Array | None = None, time_axis: int = 0) -> Array:
    """The first `lengths` entries of each sequence reversed, the rest after them.

    Args:
        x: `(*batch, time, *features)`, or `(time, *batch, *features)`.
        lengths: `(*batch,)`, from 0 to `time`; None reverses all.
        time_axis: which axis is time: 0 if it is the first, or the number of `batch`.

    Returns:
        An array like `x`; what is beyond a length is reversed too.

    Example:
        >>> flip_sequences(jnp.arange(4)[None], jnp.array([3]), 1)
        Array([[2, 1, 0, 3]], dtype=int32)
    """
    x = jnp.asarray(x)
    if lengths is None:
        return jnp.flip(x, time_axis)
    lengths = jnp.asarray(lengths)
    size = x.shape[time_axis]
    at = 0 if time_axis == 0 else lengths.ndim
    steps = jnp.arange(size - 1, -1, -1)
    steps = steps.reshape((size,) + (1,) * (lengths.ndim - at))
    numbers = (steps + jnp.expand_dims(lengths, at)) % max(size, 1)
    numbers = numbers.reshape(numbers.shape + (1,) * (x.ndim - numbers.ndim))
    return jnp.take_along_axis(x, numbers, axis=time_axis)
