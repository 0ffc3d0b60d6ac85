"""Dropout: noise in training that keeps a network from relying on single features."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..core.arrays import is_array
from ..core.errors import name_of
from ..core.module import Module
from ..core.rngs import Rngs, RngStream
from ..core.variable import Variable
from ..functional import alpha_dropout, dropout
from ..functional.kernels import frozen
from .shell import apply, mode


class Dropout(Module):
    """Sets a random part of its inputs to 0 and scales the rest so that the mean stays.

    The paper is https://jmlr.org/papers/v15/srivastava14a. `model.eval()` turns it off;
    off, or at rate 0, it returns the inputs themselves and needs no randomness.

    Args:
        rate: the probability of each entry to become 0, a Python number from 0 to 1.
            Each value of it compiles a program.
        broadcast_dims: axes along which all entries share their fate.
        deterministic: whether it is turned off; None leaves it to each call.
        rng_collection: name of the random stream.
        rngs: one key of its stream `rng_collection` (or `default`) starts a stream of
            the layer's own, with the tag `rng_collection`; a stream given is forked.
            Without, a call needs `rngs=`.

    Attributes:
        rngs: the layer's own RngStream, or None.

    Raises:
        TypeError: if `rngs` is none of Rngs, RngStream, None.
        ValueError: if `rate` is out of range.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer, x = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), jnp.ones(8)
        >>> sorted(set(layer(x).tolist())), layer(x, deterministic=True) is x
        ([0.0, 2.0], True)
    """

    _kernel = staticmethod(dropout)
    rngs: RngStream | None

    def __init__(
        self,
        rate: float,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Rngs | RngStream | None = None,
    ):
        if not 0 <= rate <= 1:
            raise ValueError(
                f"{type(self).__name__}: rate must be a probability from 0 to 1; got "
                f"{rate}."
            )
        self.rate = rate
        self.broadcast_dims: tuple[int, ...] = frozen(broadcast_dims)
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        self.rngs = self._own_stream(rngs)

    def __call__(
        self,
        inputs: Array,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | RngStream | Array | None = None,
    ) -> Array:
        """Returns an array like `inputs`, of any shape and a floating or complex type.

        Args:
            inputs: the activations.
            deterministic: in place of the attribute, if not None.
            rngs: where the key of the mask comes from, in place of the layer's own
                stream: an Rngs (its stream `rng_collection`), a stream, or a key.

        Raises:
            TypeError: if the inputs are integers, or `rngs` is something else.
            ValueError: if `deterministic` is None here and in the layer, or if a mask
                is wanted and there is no random stream.
        """
        if mode(self, "deterministic", deterministic) or self.rate == 0:
            return inputs
        key = None if self.rate == 1 else self._key(rngs)
        options = {"rate": self.rate, "broadcast_dims": self._shared_axes(inputs)}
        return apply(self, self._kernel, inputs, key, **options)

    def _shared_axes(self, inputs: Array) -> tuple[int, ...]:
        return self.broadcast_dims

    def set_view(
        self,
        deterministic: bool | None = None,
        rngs: Rngs | RngStream | None = None,
    ) -> None:
        """`deterministic`: whether it is turned off; `rngs`: starts another stream."""
        if deterministic is not None:
            self.deterministic = deterministic
        if rngs is not None:
            self.rngs = self._own_stream(rngs)

    def _own_stream(self, rngs: Any) -> RngStream | None:
        if isinstance(rngs, RngStream):
            return rngs.fork()
        stream = None if rngs is None else self._stream(rngs)
        if stream is None:
            return None
        return RngStream(stream(), tag=self.rng_collection)

    def _stream(self, rngs: Any) -> RngStream | None:
        """The stream of an Rngs that this layer uses; a stream is its own."""
        if isinstance(rngs, RngStream):
            return rngs
        if not isinstance(rngs, Rngs):
            raise TypeError(
                f"{name_of(self)}: rngs must be an nnx.Rngs or nnx.RngStream, in a "
                f"call also a key; got {type(rngs).__name__}. Pass nnx.Rngs("
                f"{self.rng_collection}=seed)."
            )
        if self.rng_collection in rngs or "default" in rngs:
            return rngs[self.rng_collection]
        return None

    def _key(self, rngs: Any) -> Any:
        rngs = self.rngs if rngs is None else rngs
        if is_array(rngs) or isinstance(rngs, Variable):
            return rngs
        stream = None if rngs is None else self._stream(rngs)
        if stream is None:
            name = self.rng_collection
            raise ValueError(
                f"{name_of(self)}: a mask is wanted, but there is no random stream "
                f"{name!r}. "
                f"Give it to the constructor, nnx.Dropout({self.rate}, rngs="
                f"nnx.Rngs({name}=seed)), or to the call, layer(x, rngs=nnx.Rngs("
                f"{name}=seed)), or turn the layer off with model.eval()."
            )
        return stream()


class AlphaDropout(Dropout):
    """Dropout for networks with `selu`: it keeps mean 0 and variance 1.

    The paper is https://arxiv.org/abs/1706.02515. Arguments as in `Dropout`.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.AlphaDropout(0.5, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 3))).shape
        (2, 3)
    """

    _kernel = staticmethod(alpha_dropout)


class DropPath(Dropout):
    """Stochastic depth: drops a whole example or keeps it (arXiv:1603.09382).

    It stands at the end of a residual branch, `x + drop_path(branch(x))`. Arguments as
    in `Dropout`; `broadcast_dims` are by default all axes but the first.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.DropPath(0.5, rngs=nnx.Rngs(0))
        >>> y = layer(jnp.ones((8, 3)))
        >>> sorted({tuple(row) for row in y.tolist()})
        [(0.0, 0.0, 0.0), (2.0, 2.0, 2.0)]
    """

    def _shared_axes(self, inputs: Array) -> tuple[int, ...]:
        return self.broadcast_dims or tuple(range(1, jnp.ndim(inputs)))
