"""Recurrent networks: a cell called along a sequence, in one direction or in both."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from ..core.changes import update
from ..core.errors import name_of
from ..core.filters import All, Filter
from ..core.module import Module
from ..core.pure_dicts import to_pure_dict
from ..core.rngs import Rngs, RngState, RngStream
from ..core.splitting import state as state_of
from ..functional.recurrent import flip_sequences
from ..transforms.loops import scan
from ..transforms.prefixes import Carry, StateAxes
from .cells import RNNCellBase
from .lazy import lazily, lazy_init

Random = Rngs | RngStream | bool


def _stream(rngs: Random) -> RngStream | None:
    """A random stream of a layer's own, for the carries of its cells."""
    if isinstance(rngs, bool):
        return RngStream(0, tag="carry") if rngs else None
    if isinstance(rngs, Rngs):
        return RngStream(rngs.carry(), tag="carry")
    if isinstance(rngs, RngStream):
        return rngs.fork()
    raise TypeError(
        "rngs must be an nnx.Rngs, an nnx.RngStream or a bool; got "
        f"{type(rngs).__name__}."
    )


@functools.lru_cache(typed=True)
def _over_time(
    axes: StateAxes, time_axis: int, unroll: int | bool
) -> Callable[..., Any]:
    """The loop over time; one function for equal options, so that it traces once."""

    def step(
        carries: Any, cell: Any, x: Any, number: Any, lengths: Any, streams: Any
    ) -> Any:
        carry, last = carries
        if streams is not None:
            update(cell, streams)
        carry, y = cell(carry, x)
        if lengths is not None:
            ends = number == lengths - 1
            last = jax.tree.map(
                lambda new, old: jnp.where(_along(ends, new), new, old), carry, last
            )
        return (carry, last), y

    return scan(
        step,
        in_axes=(Carry, axes, time_axis, 0, None, None),
        out_axes=(Carry, time_axis),
        unroll=unroll,
    )


def _along(flags: Array, x: Array) -> Array:
    """One flag for each sequence, shaped to broadcast to the batch axes of `x`."""
    return flags.reshape(flags.shape + (1,) * (x.ndim - flags.ndim))


class RNN(Module):
    """Calls a cell for each step of a sequence, by one `scan`.

    Args:
        cell: an `RNNCellBase`.
        time_major: whether time is the first axis of inputs and outputs; else it comes
            after the batch axes.
        return_carry: whether a call also returns the last carry, in the first place.
        reverse: whether to go from the last step to the first.
        keep_order: whether the outputs are then put in the order of the inputs again.
        unroll: how many steps to compile at a time; see `jax.lax.scan`.
        state_axes: axes of the cell's Variables along time, by filter; see `StateAxes`.
            By default each step sees what the one before has left.
        broadcast_rngs: a filter of random streams that give the same numbers in each
            step, as dropout in a recurrence should (https://arxiv.org/abs/1512.05287).
        rngs: keys for initial carries: a random stream of the layer's own, which an
            Rngs or RngStream starts; or True for seed 0, or False for none.

    Raises:
        TypeError: if the cell is no RNNCellBase, or `rngs` something else.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> model = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
        >>> model(jnp.ones((2, 10, 3))).shape
        (2, 10, 4)
        >>> carry, y = model(jnp.ones((2, 10, 3)), return_carry=True)
        >>> bool((carry == y[:, -1]).all())
        True
    """

    def __init__(
        self,
        cell: RNNCellBase,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        state_axes: Mapping[Any, Any] | None = None,
        broadcast_rngs: Filter | None = None,
        rngs: Random = True,
    ):
        if not isinstance(cell, RNNCellBase):
            raise TypeError(
                "nnx.RNN needs a cell, such as nnx.GRUCell(3, 4, rngs=rngs) or one "
                f"derived from nnx.RNNCellBase; got {type(cell).__name__}."
            )
        self.cell = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll
        self.state_axes: StateAxes = StateAxes(
            {...: Carry} if state_axes is None else state_axes
        )
        self.broadcast_rngs = broadcast_rngs
        self.rngs: RngStream | None = _stream(rngs)

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Any = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Rngs | RngStream | None = None,
    ) -> Any:
        """Calls the cell for each step.

        Arguments not described here are in place of the attributes, if not None.

        Args:
            inputs: `(*batch, time, *features)`, or `(time, *batch, *features)`.
            initial_carry: by default `cell.initialize_carry`.
            seq_lengths: `(*batch,)`, how many steps of each sequence count, 0 to
                `time`: the carry returned is the one after so many, and only they are
                reversed. Outputs beyond mean nothing.
            rngs: keys for the initial carry, in place of the layer's own stream.

        Returns:
            The outputs, `(*batch, time, *outputs)` or with time first; or the last
            carry and the outputs.

        Raises:
            ValueError: if the inputs lack an axis, or a length is out of range (under
                `jit` the carry is nan then).
        """
        time_major = self.time_major if time_major is None else time_major
        returns_carry = self.return_carry if return_carry is None else return_carry
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        inputs = jnp.asarray(inputs)
        axis = _time_axis(self, inputs, time_major)
        first = inputs.ndim - self.cell.num_feature_axes
        batch, features = inputs.shape[:first], inputs.shape[first:]
        batch = batch[:axis] + batch[axis + 1 :]
        time = inputs.shape[axis]
        if seq_lengths is not None:
            seq_lengths = self._checked_lengths(seq_lengths, batch, time)
        if initial_carry is None:
            source = self.rngs if rngs is None else rngs
            initial_carry = self.cell.initialize_carry(batch + features, source)
            if getattr(self.cell, "dtype", None) is None:
                initial_carry = _promoted(initial_carry, inputs.dtype)
        if reverse:
            inputs = flip_sequences(inputs, seq_lengths, axis)
        lengths = seq_lengths if returns_carry else None
        loop = _over_time(self.state_axes, axis, self.unroll)
        arguments = (
            (initial_carry, None if lengths is None else initial_carry),
            self.cell,
            inputs,
            jnp.arange(time),
            lengths,
            self._broadcast_streams(),
        )
        step = jax.ShapeDtypeStruct(batch + features, inputs.dtype)
        (carry, last), outputs = lazily(
            lambda: loop(*arguments),
            lambda: lazy_init(self.cell, initial_carry, step),
        )
        if reverse and keep_order:
            outputs = flip_sequences(outputs, seq_lengths, axis)
        if lengths is not None:
            carry = _nan_where_wrong(last, lengths, time)
        return (carry, outputs) if returns_carry else outputs

    def _checked_lengths(
        self, lengths: Any, batch: tuple[int, ...], time: int
    ) -> Array:
        lengths = jnp.asarray(lengths)
        if lengths.shape != batch or not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise ValueError(
                f"{name_of(self)}: seq_lengths must be integers of shape {batch}, one "
                "for each "
                f"sequence; got {lengths.dtype.name} of shape {lengths.shape}."
            )
        lengths = lengths.astype(jnp.int32)  # an int8 cannot be compared with 300
        if not isinstance(lengths, Tracer) and ((lengths < 0) | (lengths > time)).any():
            raise ValueError(
                f"{name_of(self)}: seq_lengths must be from 0 to {time}, the size of "
                "the time axis; "
                f"got {lengths.min()} to {lengths.max()}."
            )
        return lengths

    def _broadcast_streams(self) -> Any:
        """The random state with which each step begins; None if steps go on in it."""
        if self.broadcast_rngs is None:
            return None
        return to_pure_dict(state_of(self.cell, All(RngState, self.broadcast_rngs)))


def _time_axis(layer: RNN, inputs: Any, time_major: bool) -> int:
    shape, features = jnp.shape(inputs), layer.cell.num_feature_axes
    if len(shape) <= features:
        raise ValueError(
            f"{name_of(layer)}: inputs of shape {shape} lack an axis: one of time and "
            f"{features} of "
            "features are wanted. Add one with inputs[None]."
        )
    return 0 if time_major else len(shape) - features - 1


def _promoted(carry: Any, dtype: Any) -> Any:
    """A first carry of the type that the cell makes of it and its inputs."""

    def promoted(x: Array) -> Array:
        if not jnp.issubdtype(dtype, jnp.inexact):
            return x
        return x.astype(jnp.promote_types(x.dtype, dtype))

    return jax.tree.map(promoted, carry)


def _nan_where_wrong(carry: Any, lengths: Array, time: int) -> Any:
    """The carry after so many steps, as far as there were so many."""
    if not isinstance(lengths, Tracer):
        return carry
    exists = (lengths >= 0) & (lengths <= time)

    def checked(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where(_along(exists, x), x, jnp.nan)

    return jax.tree.map(checked, carry)


def _concatenate(forward: Array, backward: Array) -> Array:
    return jnp.concatenate([forward, backward], axis=-1)


class Bidirectional(Module):
    """Two `RNN`, one from the first step to the last, one from the last to the first.

    Args:
        forward_rnn: goes from the first step to the last.
        backward_rnn: goes back; its own `reverse` does not matter.
        merge_fn: makes one of the two outputs, by default side by side.
        time_major: whether time is the first axis of inputs and outputs.
        return_carry: whether a call also returns both last carries, in the first place.
        rngs: keys for initial carries; see `RNN`.

    Raises:
        TypeError: if `rngs` is something else.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> rngs = nnx.Rngs(0)
        >>> one, other = (nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs)) for _ in range(2))
        >>> nnx.Bidirectional(one, other)(jnp.ones((2, 10, 3))).shape
        (2, 10, 8)
    """

    def __init__(
        self,
        forward_rnn: RNN,
        backward_rnn: RNN,
        *,
        merge_fn: Callable[[Array, Array], Array] = _concatenate,
        time_major: bool = False,
        return_carry: bool = False,
        rngs: Random = True,
    ):
        self.forward_rnn = forward_rnn
        self.backward_rnn = backward_rnn
        self.merge_fn = merge_fn
        self.time_major = time_major
        self.return_carry = return_carry
        self.rngs: RngStream | None = _stream(rngs)

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: tuple[Any, Any] | None = None,
        rngs: Rngs | RngStream | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Calls both; see `RNN`.

        Args:
            inputs: `(*batch, time, *features)`, or `(time, *batch, *features)`.
            initial_carry: that of the forward and that of the backward RNN.
            reverse: exchanges the directions: the forward RNN starts at the last step,
                and the outputs come in its order.
            keep_order: whether they are then put in the order of the inputs again.

        Returns:
            The outputs, or both carries and the outputs.
        """
        time_major = self.time_major if time_major is None else time_major
        returns_carry = self.return_carry if return_carry is None else return_carry
        one, other = (None, None) if initial_carry is None else initial_carry
        reverse = bool(reverse)
        common = {
            "seq_lengths": seq_lengths,
            "return_carry": True,
            "time_major": time_major,
            "keep_order": True,
            "rngs": self.rngs if rngs is None else rngs,
        }
        one, forward = self.forward_rnn(
            inputs, initial_carry=one, reverse=reverse, **common
        )
        other, backward = self.backward_rnn(
            inputs, initial_carry=other, reverse=not reverse, **common
        )
        outputs = self.merge_fn(forward, backward)
        if reverse and not keep_order:
            axis = _time_axis(self.forward_rnn, inputs, time_major)
            outputs = flip_sequences(outputs, seq_lengths, axis)
        return ((one, other), outputs) if returns_carry else outputs
