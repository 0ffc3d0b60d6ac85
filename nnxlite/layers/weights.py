"""Weights: layers that are called with other weights than those that they store.

While the wrapped layer is called it sees the new weights; what it stores stays the
parameter that is trained. It may write its other Variables as always.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ..core import frames
from ..core.filters import All, Filter, PathContains
from ..core.graph import variables_of
from ..core.kinds import BatchStat, Param
from ..core.paths import Path, format_path
from ..core.rngs import Rngs
from ..core.uninferred import UninferredError
from ..core.variable import Variable
from ..functional import initializers
from ..functional.dtypes import PromoteDtype
from ..functional.kernels import frozen
from ..functional.weights import spectral_norm, weight_norm
from .lazy import is_open, lazy_init, may_infer
from .policy import DEFAULT_POLICY, Layer, Policy, settle
from .shell import apply, mode, parameters

_RANDOM = initializers.normal()


def _infer(weights: Any, layer: Any, *args: Any, **kwargs: Any) -> None:
    """Lets the wrapped layer infer its sizes before its weights are computed with."""
    if any(is_open(variable) for _, variable in weights) and may_infer():
        lazy_init(layer, *args, **kwargs)


class WeightNorm(Layer):
    """Calls a layer with weights of a length of their own (arXiv:1602.07868).

    Each weight is used as direction only; how long it is for each feature is a
    parameter. Arguments not described here: see `nnxlite.layers`.

    Args:
        layer_instance: the layer.
        feature_axes: the axes of the features; None gives a weight one length.
        use_scale: False gives each feature length 1.
        scale_init: of the lengths, by default ones.
        epsilon: added to squared lengths.
        variable_filter: which Params are weights, by default those named `kernel`.

    Attributes:
        layer_instance: the layer.
        scales: by path of the weight, Param of its shape along `feature_axes`.

    Raises:
        TypeError: if `rngs` is no Rngs.
        ValueError: if no Param matches the filter.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> rngs = nnx.Rngs(0)
        >>> layer = nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
        >>> y = layer(jnp.ones((2, 3)))
        >>> w = layer.layer_instance.kernel.value
        >>> bool(jnp.allclose(y[0], (w / jnp.linalg.norm(w, axis=0)).sum(0)))
        True
    """

    def __init__(
        self,
        layer_instance: Any,
        *,
        feature_axes: int | Sequence[int] | None = -1,
        use_scale: bool = True,
        scale_init: Callable[..., Any] = initializers.ones,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        variable_filter: Filter = PathContains("kernel", exact=True),
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
    ):
        self.layer_instance = layer_instance
        self.feature_axes: int | tuple[int, ...] | None = frozen(feature_axes)
        self.use_scale = use_scale
        self.epsilon = epsilon
        self.variable_filter = variable_filter
        settle(
            policy,
            self,
            dtype=dtype,
            param_dtype=param_dtype,
            promote_dtype=promote_dtype,
        )
        weights = self._weights()
        if not weights:
            raise ValueError(
                f"WeightNorm: no Param of {type(layer_instance).__name__} matches "
                f"variable_filter={variable_filter!r}. Its Variables are at "
                f"{[path for path, _ in variables_of(layer_instance)]}."
            )
        self.scales: dict[Path, Param[Array]] = {}
        for path, weight in weights if use_scale else ():
            # By default no key is drawn, as in Flax: later layers get the same keys.
            key = None if scale_init is initializers.ones else rngs.params()
            scale = scale_init(key, self._scale_shape(weight), self.param_dtype)
            self.scales[path] = Param(scale)

    def _weights(self) -> list[tuple[Path, Any]]:
        return variables_of(self.layer_instance, All(Param, self.variable_filter))

    def _scale_shape(self, weight: Any) -> tuple[int, ...]:
        axes = self.feature_axes
        axes = () if axes is None else (axes,) if isinstance(axes, int) else axes
        try:
            shape = tuple(weight.shape[axis] for axis in axes)
        except IndexError:
            raise ValueError(
                f"WeightNorm: a weight of shape {weight.shape} has no feature_axes="
                f"{self.feature_axes}."
            ) from None
        if None in shape:
            raise UninferredError(
                f"WeightNorm: the weight of shape {weight.shape} has no size along "
                f"feature_axes={self.feature_axes} yet: call nnx.lazy_init(layer, "
                "*inputs) before wrapping it."
            )
        return shape

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with its arguments, and the normalized weights."""
        found = self._weights()
        _infer(found, self.layer_instance, x, *args, **kwargs)
        weights = {
            variable: apply(self, weight_norm, variable, self.scales.get(path))
            for path, variable in found
        }
        with frames.overlaid(weights):
            return self.layer_instance(x, *args, **kwargs)


class SpectralNorm(Layer):
    """Calls a layer with its weights divided by their largest singular values.

    The papers are https://arxiv.org/abs/1802.05957 and, for generators,
    https://arxiv.org/abs/1805.08318. The values are estimated by power iteration, which
    goes on from call to call in training; `model.eval()` stops it. Arguments not
    described here: see `nnxlite.layers`.

    Args:
        layer_instance: the layer, whose Params of two or more axes are normalized;
            of more than two, the last one counts as the columns of a matrix.
        n_steps: steps of power iteration at each call.
        epsilon: added to squared lengths.
        error_on_non_matrix: whether more than two axes are an error.
        update_stats: whether a call goes on with the iteration and keeps its result.

    Attributes:
        layer_instance: the layer.
        batch_stats: by path of the weight with 'u' or 'sigma' after it, BatchStat: the
            singular vector `(1, features)` and the singular value, a scalar.
        use_running_average: not `update_stats`.

    Raises:
        TypeError: if `rngs` is no Rngs.
        ValueError: naming a weight with more than two axes, if that is an error.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> rngs = nnx.Rngs(0)
        >>> layer = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), n_steps=9, rngs=rngs)
        >>> y = layer(jnp.ones((2, 3)))
        >>> value = jnp.linalg.norm(layer.layer_instance.kernel.value, ord=2)
        >>> bool(jnp.allclose(value, layer.batch_stats["kernel", "sigma"].value))
        True
    """

    use_running_average: bool

    def __init__(
        self,
        layer_instance: Any,
        *,
        n_steps: int = 1,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        error_on_non_matrix: bool = False,
        update_stats: bool = True,
        promote_dtype: PromoteDtype | None = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
    ):
        self.layer_instance = layer_instance
        self.n_steps = n_steps
        self.epsilon = epsilon
        self.error_on_non_matrix = error_on_non_matrix
        self.use_running_average = not update_stats
        settle(
            policy,
            self,
            dtype=dtype,
            param_dtype=param_dtype,
            promote_dtype=promote_dtype,
        )
        make = parameters(rngs, self.param_dtype, BatchStat)
        self.batch_stats: dict[Path, BatchStat[Array]] = {}
        for path, weight in self._weights():
            u = make(_RANDOM, (1, weight.shape[-1]), {})
            self.batch_stats[*path, "u"] = u
            self.batch_stats[*path, "sigma"] = BatchStat(jnp.ones((), self.param_dtype))

    def _weights(self) -> list[tuple[Path, Any]]:
        weights = [
            (path, variable)
            for path, variable in variables_of(self.layer_instance, Param)
            if variable.ndim > 1
        ]
        for path, weight in weights:
            if weight.ndim > 2 and self.error_on_non_matrix:
                raise ValueError(
                    f"SpectralNorm: {format_path(path)!r} has the shape {weight.shape} "
                    "and is no matrix. With error_on_non_matrix=False all axes but the "
                    "last count as its rows."
                )
        return weights

    def __call__(self, x: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with `x`, and the normalized weights.

        Args:
            x: the inputs of the layer.
            update_stats: in place of the attribute, if not None.
            **kwargs: for the layer.
        """
        found = self._weights()
        _infer(found, self.layer_instance, x, **kwargs)
        running = None if update_stats is None else not update_stats
        updates = not mode(self, "use_running_average", running)
        weights: dict[Variable[Any], Array] = {}
        statistics: list[tuple[Any, Array]] = []
        for path, variable in found:
            stored = [self.batch_stats[*path, name] for name in ("u", "sigma")]
            weight, *stats = apply(
                self, spectral_norm, variable, stored[0], steps=self.n_steps
            )
            weights[variable] = weight
            statistics += zip(stored, stats, strict=True)
        with frames.overlaid(weights):
            y = self.layer_instance(x, **kwargs)
        for stat, value in statistics if updates else ():
            stat.value = value
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """`use_running_average`: whether not to go on with the power iteration."""
        if use_running_average is not None:
            self.use_running_average = use_running_average
