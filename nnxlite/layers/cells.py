"""Recurrent cells: what happens in one step of a sequence; `RNN` calls them.

A cell maps a carry and the inputs of one step to the next carry and the outputs. Its
linear maps are layers of their own, so that each may be replaced.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ..core.errors import name_of
from ..core.metadata import NO_METADATA
from ..core.rngs import Rngs, RngStream
from ..functional import initializers
from ..functional.dtypes import PromoteDtype
from ..functional.kernels import frozen
from ..functional.recurrent import gru, lstm, simple_rnn
from .convolution import Conv
from .linear import Linear
from .policy import DEFAULT_POLICY, Layer, Policy, settle
from .shell import apply, check_given

Function = Callable[..., Any]


class RNNCellBase(Layer):
    """What `RNN` needs of a cell; a cell of your own derives from it.

    A subclass defines `__call__(carry, inputs) -> (carry, outputs)`, and either sets
    the attributes below or defines `initialize_carry` and `num_feature_axes`, too.

    Attributes:
        hidden_features: size of the last axis of the carry.
        carry_init: an initializer of carries, or None for zeros.
        rngs: an RngStream of its keys, or None.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> class Sum(nnx.RNNCellBase):
        ...     hidden_features = 2
        ...     def __call__(self, carry, inputs):
        ...         return carry + inputs, carry + inputs
        >>> nnx.RNN(Sum())(jnp.ones((1, 3, 2)))[0, :, 0]
        Array([1., 2., 3.], dtype=float32)
    """

    _carries: ClassVar[int] = 1  # how many arrays a carry has
    hidden_features: int
    param_dtype: DTypeLike = jnp.float32
    carry_init: Function | None = None
    rngs: RngStream | None = None

    @property
    def _carry_dtype(self) -> DTypeLike:
        return self.param_dtype

    @property
    def num_feature_axes(self) -> int:
        """How many axes at the end of the inputs are not batch axes."""
        return 1

    def __call__(self, carry: Any, inputs: Array) -> tuple[Any, Array]:
        """Makes one step; returns the next carry and the outputs."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a method __call__(self, carry, inputs) that "
            "returns the next carry and the outputs"
        )

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: Rngs | RngStream | None = None,
        carry_init: Function | None = None,
    ) -> Any:
        """The carry before the first step; zeros need no random keys.

        Args:
            input_shape: of the inputs of one step, with all batch axes.
            rngs: gives the keys, from its stream `carry`; by default the cell's own.
            carry_init: in place of the attribute.

        Returns:
            An array `(*batch, hidden_features)` of the type of the parameters (of a
            SimpleCell, of `dtype`), or a tuple. `RNN` promotes it with the inputs.

        Raises:
            ValueError: if keys are wanted and there are none.
        """
        init = carry_init or self.carry_init
        shape = (*input_shape[:-1], self.hidden_features)
        if init is None:
            zeros = jnp.zeros(shape, self._carry_dtype)
            return (zeros,) * self._carries if self._carries > 1 else zeros
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError(
                f"{name_of(self)}: carry_init needs random keys: pass rngs="
                "nnx.Rngs(carry=seed) to initialize_carry, or make the cell with "
                "keep_rngs=True."
            )
        stream = rngs.carry if isinstance(rngs, Rngs) else rngs
        parts = [init(stream(), shape, self._carry_dtype) for _ in range(self._carries)]
        return tuple(parts) if self._carries > 1 else parts[0]


def _begin(
    self: Any,
    *,
    in_features: int | None,
    hidden_features: int,
    kernel_init: Function,
    recurrent_kernel_init: Function,
    bias_init: Function,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike | None,
    promote_dtype: PromoteDtype | None,
    keep_rngs: bool,
    policy: Policy,
    rngs: Rngs,
    kernel_metadata: Mapping[str, Any],
    recurrent_kernel_metadata: Mapping[str, Any],
    bias_metadata: Mapping[str, Any],
    make: Function = Linear,
    **attributes: Any,
) -> None:
    """What all constructors do: keeps the arguments, makes maps and random stream."""
    check_given(self, hidden_features=hidden_features)
    self.hidden_features = hidden_features
    for name, value in attributes.items():
        setattr(self, name, value)
    settle(
        policy, self, dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype
    )
    common = {
        "bias_init": bias_init,
        "dtype": self.dtype,
        "param_dtype": self.param_dtype,
        "promote_dtype": self.promote_dtype,
        "policy": policy,
        "rngs": rngs,
        "bias_metadata": bias_metadata,
    }
    self._make_maps(
        partial(
            make,
            in_features,
            kernel_init=kernel_init,
            kernel_metadata=kernel_metadata,
            **common,
        ),
        partial(
            make,
            hidden_features,
            kernel_init=recurrent_kernel_init,
            kernel_metadata=recurrent_kernel_metadata,
            **common,
        ),
    )
    self.rngs = RngStream(rngs.carry(), tag="carry") if keep_rngs else None


class _Cell(RNNCellBase):
    """A cell of linear maps, which know the size of the inputs."""

    _first: ClassVar[str] = "dense_i"  # one that is called with the inputs

    def _make_maps(self, from_inputs: Function, from_hidden: Function) -> None:
        """Makes them; each function takes the number of outputs of a map."""
        raise NotImplementedError

    @property
    def in_features(self) -> int | None:
        """Size of the last axis of the inputs; None before it is inferred."""
        return getattr(self, self._first).in_features


class _GatedCell(_Cell):
    """The constructor of cells with gates."""

    def __init__(
        self,
        in_features: int | None,
        hidden_features: int,
        *,
        gate_fn: Function = jax.nn.sigmoid,
        activation_fn: Function = jnp.tanh,
        kernel_init: Function = initializers.lecun_normal(),
        recurrent_kernel_init: Function = initializers.modified_orthogonal,
        bias_init: Function = initializers.zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        carry_init: Function | None = None,
        promote_dtype: PromoteDtype | None = None,
        keep_rngs: bool = False,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        _begin(**locals())


class LSTMCell(_GatedCell):
    """Long short-term memory (https://doi.org/10.1162/neco.1997.9.8.1735).

    One linear map for each gate; `OptimizedLSTMCell` computes the same with two. The
    carry is `(memory, hidden)`. Arguments not described here: see `nnxlite.layers`.

    Args:
        in_features: size of the last axis of the inputs; None infers it.
        hidden_features: size of the last axis of the carry and of the outputs.
        gate_fn: the nonlinearity of the gates.
        activation_fn: that of new values.
        kernel_init: of the maps from the inputs.
        recurrent_kernel_init: of the maps from the hidden state.
        carry_init: an initializer of carries; None for zeros.
        keep_rngs: whether to keep a random stream for `carry_init`.

    Attributes:
        ii, if_, ig, io: Linear, from the inputs to the input, forget, cell and output
            gates, without bias.
        hi, hf, hg, ho: Linear, from the hidden state.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> cell = nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0))
        >>> carry = cell.initialize_carry((2, 3))
        >>> carry, y = cell(carry, jnp.ones((2, 3)))
        >>> y.shape
        (2, 4)
    """

    _carries = 2
    _first = "ii"
    ii: Linear
    if_: Linear
    ig: Linear
    io: Linear
    hi: Linear
    hf: Linear
    hg: Linear
    ho: Linear

    def _make_maps(self, from_inputs: Function, from_hidden: Function) -> None:
        for name in ("ii", "if_", "ig", "io"):
            setattr(self, name, from_inputs(self.hidden_features, use_bias=False))
        for name in ("hi", "hf", "hg", "ho"):
            setattr(self, name, from_hidden(self.hidden_features))

    def __call__(
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """Makes one step.

        Args:
            carry: `(memory, hidden)`, both `(..., hidden_features)`.
            inputs: `(..., in_features)`.

        Returns:
            The next carry, and the outputs, which are its hidden state.

        Raises:
            ValueError: if the last axis of the inputs has another size.
        """
        memory, hidden = carry
        x = tuple(each(inputs) for each in (self.ii, self.if_, self.ig, self.io))
        h = tuple(each(hidden) for each in (self.hi, self.hf, self.hg, self.ho))
        memory, hidden = apply(self, lstm, x, h, memory)
        return (memory, hidden), hidden


class OptimizedLSTMCell(_GatedCell):
    """An `LSTMCell` with the maps of all four gates side by side, which is faster.

    Arguments: see `LSTMCell`.

    Attributes:
        dense_i: Linear, from the inputs to the four gates, without bias.
        dense_h: Linear, from the hidden state.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> model = nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)))
        >>> model(jnp.ones((2, 10, 3))).shape
        (2, 10, 4)
    """

    _carries = 2
    dense_i: Linear
    dense_h: Linear

    def _make_maps(self, from_inputs: Function, from_hidden: Function) -> None:
        self.dense_i = from_inputs(4 * self.hidden_features, use_bias=False)
        self.dense_h = from_hidden(4 * self.hidden_features)

    def __call__(
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """Makes one step; see `LSTMCell`."""
        memory, hidden = carry
        gates = self.dense_i(inputs), self.dense_h(hidden)
        memory, hidden = apply(self, lstm, *gates, memory)
        return (memory, hidden), hidden


class GRUCell(_GatedCell):
    """A gated recurrent unit (https://arxiv.org/abs/1406.1078).

    The reset gate scales what the hidden state contributes as a whole, as in cuDNN.
    Arguments: see `LSTMCell`.

    Attributes:
        dense_i: Linear, from the inputs to the reset, update and new gates.
        dense_h: Linear, from the hidden state, without bias.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
        >>> carry, y = cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))
        >>> y.shape
        (2, 4)
    """

    dense_i: Linear
    dense_h: Linear

    def _make_maps(self, from_inputs: Function, from_hidden: Function) -> None:
        self.dense_i = from_inputs(3 * self.hidden_features)
        self.dense_h = from_hidden(3 * self.hidden_features, use_bias=False)

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """Makes one step; see `LSTMCell`. The carry is the hidden state."""
        hidden = apply(self, gru, self.dense_i(inputs), self.dense_h(carry), carry)
        return hidden, hidden


class SimpleCell(_Cell):
    """An Elman network: `activation_fn(x @ W + b + h @ U)`.

    Arguments not described here: see `LSTMCell`.

    Args:
        residual: whether the hidden state is added before the activation.

    Attributes:
        dense_i: Linear, from the inputs.
        dense_h: Linear, from the hidden state, without bias.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> cell = nnx.SimpleCell(3, 4, rngs=nnx.Rngs(0))
        >>> carry, y = cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))
        >>> y.shape
        (2, 4)
    """

    dense_i: Linear
    dense_h: Linear

    def __init__(
        self,
        in_features: int | None,
        hidden_features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        carry_init: Function | None = None,
        residual: bool = False,
        activation_fn: Function = jnp.tanh,
        kernel_init: Function = initializers.lecun_normal(),
        recurrent_kernel_init: Function = initializers.modified_orthogonal,
        bias_init: Function = initializers.zeros,
        promote_dtype: PromoteDtype | None = None,
        keep_rngs: bool = False,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        _begin(**locals())

    def _make_maps(self, from_inputs: Function, from_hidden: Function) -> None:
        self.dense_h = from_hidden(self.hidden_features, use_bias=False)
        self.dense_i = from_inputs(self.hidden_features)

    @property
    def _carry_dtype(self) -> DTypeLike:
        return self.param_dtype if self.dtype is None else self.dtype

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """Makes one step; see `LSTMCell`. The carry is the hidden state."""
        gates = self.dense_i(inputs), self.dense_h(carry)
        hidden = apply(self, simple_rnn, *gates, carry)
        return hidden, hidden


class ConvLSTMCell(_Cell):
    """Long short-term memory of images (https://arxiv.org/abs/1506.04214).

    The maps of an `OptimizedLSTMCell` are convolutions; without the paper's peepholes.
    Arguments not described here: see `LSTMCell`.

    Args:
        in_features: number of channels of the inputs; None infers it.
        hidden_features: number of channels of the carry and of the outputs.
        kernel_size: of the convolutions, one entry for each spatial axis.
        padding: of the convolution of the inputs, 'SAME' or 'CIRCULAR': sizes stay.

    Attributes:
        conv_i: Conv, from the inputs to the four gates, without bias.
        conv_h: Conv, from the hidden state.

    Raises:
        TypeError: if `rngs` is no Rngs.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> model = nnx.RNN(nnx.ConvLSTMCell(3, 8, (3, 3), rngs=nnx.Rngs(0)))
        >>> model(jnp.ones((2, 5, 16, 16, 3))).shape
        (2, 5, 16, 16, 8)
    """

    _carries = 2
    _first = "conv_i"
    kernel_size: int | tuple[int, ...]
    conv_i: Conv
    conv_h: Conv

    def __init__(
        self,
        in_features: int | None,
        hidden_features: int,
        kernel_size: int | Sequence[int],
        *,
        padding: str = "SAME",
        gate_fn: Function = jax.nn.sigmoid,
        activation_fn: Function = jnp.tanh,
        kernel_init: Function = initializers.lecun_normal(),
        recurrent_kernel_init: Function = initializers.lecun_normal(),
        bias_init: Function = initializers.zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        carry_init: Function | None = None,
        promote_dtype: PromoteDtype | None = None,
        keep_rngs: bool = False,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        kernel_size = frozen(kernel_size)
        make = partial(Conv, kernel_size=kernel_size, padding=padding)
        _begin(**locals())

    def _make_maps(self, from_inputs: Function, from_hidden: Function) -> None:
        self.conv_i = from_inputs(4 * self.hidden_features, use_bias=False)
        self.conv_h = from_hidden(4 * self.hidden_features)

    @property
    def num_feature_axes(self) -> int:
        """The spatial axes and the channels."""
        size = self.kernel_size
        return 2 if isinstance(size, int) else len(size) + 1

    def __call__(
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """Makes one step with inputs `(..., *spatial, in_features)`."""
        memory, hidden = carry
        gates = self.conv_i(inputs), self.conv_h(hidden)
        memory, hidden = apply(self, lstm, *gates, memory)
        return (memory, hidden), hidden
