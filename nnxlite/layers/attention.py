"""Attention: each position looks up what it needs in all others."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.typing import DTypeLike

from ..core.errors import name_of
from ..core.kinds import Cache
from ..core.metadata import NO_METADATA
from ..core.rngs import Rngs, RngStream
from ..functional import initializers
from ..functional.attention import check_broadcasts
from ..functional.dtypes import PromoteDtype
from ..functional.positions import rotary_embedding
from .dot_product import dot_product_attention
from .linear import LinearGeneral
from .normalization import LayerNorm
from .policy import DEFAULT_POLICY, Layer, Policy, settle
from .shell import blame, mode


class MultiHeadAttention(Layer):
    """Attention with several heads, each with projections of its own.

    Arguments not described here: see `nnxlite.layers`.

    Args:
        num_heads: how many heads the queries have.
        in_features: size of the last axis of the queries' inputs; None infers it.
        qkv_features: features of all heads together, by default `in_features`.
        out_features: size of the last axis of the outputs, by default `in_features`.
        num_kv_heads: how many heads keys and values have, a divisor of `num_heads`;
            each of them serves several heads of queries. By default `num_heads`.
        in_kv_features: size of the last axis of the inputs of keys and values, by
            default `in_features`.
        broadcast_dropout: whether all batches and heads share one dropout pattern.
        dropout_rate: the probability of an attention weight to become 0.
        deterministic: whether dropout is off; None leaves it to each call.
        out_kernel_init: of the output projection, by default `kernel_init`.
        out_bias_init: likewise.
        use_bias: whether the projections have biases.
        attention_fn: used in place of `nnx.dot_product_attention`.
        decode: whether a call takes the next positions, one or several, and looks back
            with a cache; see `init_cache`.
        normalize_qk: whether queries and keys go through a LayerNorm
            (https://arxiv.org/abs/2302.05442).
        qkv_promote_dtype, out_promote_dtype, ln_promote_dtype: `promote_dtype` of the
            projections of the inputs, of that of the outputs, and of the LayerNorms.
        qkv_dot_general, out_dot_general: see `LinearGeneral`, as are the `_cls`.
        keep_rngs: whether to keep a random stream for dropout.
        rotary_base: if given, queries and keys are rotated by their positions; see
            `nnx.rotary_embedding`.

    Attributes:
        query, key, value: LinearGeneral, `(in_features,)` to `(heads, head_dim)`.
        out: LinearGeneral, `(heads, head_dim)` to `(out_features,)`.
        query_ln, key_ln: LayerNorm, or None.
        rngs: the RngStream of dropout, or None.
        cached_key, cached_value: Cache `(*batch, length, kv_heads, head_dim)`, or None.
        cache_index: Cache, the next position, or None.

    Raises:
        TypeError: if `rngs` is no Rngs.
        ValueError: if heads do not divide features, or kv heads do not divide heads.

    Example:
        >>> import jax.numpy as jnp, nnxlite as nnx
        >>> layer = nnx.MultiHeadAttention(4, 8, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 5, 8)), is_causal=True).shape
        (2, 5, 8)
    """

    cached_key: Cache[Array] | None
    cached_value: Cache[Array] | None
    cache_index: Cache[Array] | None
    rngs: RngStream | None
    query_ln: LayerNorm | None
    key_ln: LayerNorm | None

    def __init__(
        self,
        num_heads: int,
        in_features: int | None,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        broadcast_dropout: bool = True,
        dropout_rate: float = 0.0,
        deterministic: bool | None = None,
        precision: lax.PrecisionLike = None,
        kernel_init: Callable[..., Any] = initializers.lecun_normal(),
        out_kernel_init: Callable[..., Any] | None = None,
        bias_init: Callable[..., Any] = initializers.zeros,
        out_bias_init: Callable[..., Any] | None = None,
        use_bias: bool = True,
        attention_fn: Callable[..., Array] = dot_product_attention,
        decode: bool | None = False,
        normalize_qk: bool = False,
        qkv_promote_dtype: PromoteDtype | None = None,
        out_promote_dtype: PromoteDtype | None = None,
        ln_promote_dtype: PromoteDtype | None = None,
        qkv_dot_general: Callable[..., Array] | None = None,
        out_dot_general: Callable[..., Array] | None = None,
        qkv_dot_general_cls: Any = None,
        out_dot_general_cls: Any = None,
        policy: Policy = DEFAULT_POLICY,
        rngs: Rngs,
        keep_rngs: bool = True,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        out_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        out_bias_metadata: Mapping[str, Any] = NO_METADATA,
        query_ln_scale_metadata: Mapping[str, Any] = NO_METADATA,
        key_ln_scale_metadata: Mapping[str, Any] = NO_METADATA,
        rotary_base: float | None = None,
    ):
        qkv_features = in_features if qkv_features is None else qkv_features
        out_features = in_features if out_features is None else out_features
        if qkv_features is None or out_features is None:
            raise ValueError(
                "MultiHeadAttention: qkv_features and out_features are by default "
                "in_features; where that is None, give both, too."
            )
        self.num_heads = num_heads
        self.qkv_features = qkv_features
        self.out_features = out_features
        self.num_kv_heads: int = num_heads if num_kv_heads is None else num_kv_heads
        self.broadcast_dropout = broadcast_dropout
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.use_bias = use_bias
        self.attention_fn = attention_fn
        self.decode = decode
        self.normalize_qk = normalize_qk
        self.rotary_base = rotary_base
        settle(policy, self, dtype=dtype, param_dtype=param_dtype, precision=precision)
        common = policy.promote_dtype
        self.qkv_promote_dtype: PromoteDtype = qkv_promote_dtype or common
        self.out_promote_dtype: PromoteDtype = out_promote_dtype or common
        self.ln_promote_dtype: PromoteDtype = ln_promote_dtype or common
        self.qkv_dot_general = qkv_dot_general
        self.out_dot_general = out_dot_general
        self.qkv_dot_general_cls = qkv_dot_general_cls
        self.out_dot_general_cls = out_dot_general_cls
        self._check_heads()
        self.head_dim: int = self.qkv_features // num_heads
        project = partial(
            LinearGeneral,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            use_bias=use_bias,
            policy=policy,
            rngs=rngs,
        )
        inward = partial(
            project,
            kernel_init=kernel_init,
            bias_init=bias_init,
            promote_dtype=self.qkv_promote_dtype,
            dot_general=qkv_dot_general,
            dot_general_cls=qkv_dot_general_cls,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        kv_shape = self.num_kv_heads, self.head_dim
        kv_features = in_features if in_kv_features is None else in_kv_features
        self.query: LinearGeneral = inward(in_features, (num_heads, self.head_dim))
        self.key: LinearGeneral = inward(kv_features, kv_shape)
        self.value: LinearGeneral = inward(kv_features, kv_shape)
        self.query_ln = self._norm(query_ln_scale_metadata, rngs)
        self.key_ln = self._norm(key_ln_scale_metadata, rngs)
        self.out: LinearGeneral = project(
            (num_heads, self.head_dim),
            self.out_features,
            axis=(-2, -1),
            kernel_init=out_kernel_init or kernel_init,
            bias_init=out_bias_init or bias_init,
            promote_dtype=self.out_promote_dtype,
            dot_general=out_dot_general,
            dot_general_cls=out_dot_general_cls,
            kernel_metadata=out_kernel_metadata or kernel_metadata,
            bias_metadata=out_bias_metadata or bias_metadata,
        )
        drops = keep_rngs and dropout_rate > 0
        self.rngs = RngStream(rngs.dropout(), tag="dropout") if drops else None
        self.cached_key = self.cached_value = self.cache_index = None

    @property
    def in_features(self) -> int | None:
        """Size of the last axis of the queries' inputs; None before it is inferred."""
        return self.query.in_features[0]

    @property
    def in_kv_features(self) -> int | None:
        """Likewise for keys and values."""
        return self.key.in_features[0]

    def _check_heads(self) -> None:
        if not 0 <= self.dropout_rate <= 1:
            raise ValueError(
                "MultiHeadAttention: dropout_rate must be a probability from 0 to 1; "
                f"got {self.dropout_rate}."
            )
        heads, kv_heads = self.num_heads, self.num_kv_heads
        if self.qkv_features % heads:
            raise ValueError(
                f"MultiHeadAttention: Memory dimension ({self.qkv_features}) must be "
                f"divisible by 'num_heads' heads ({heads}): choose other qkv_features."
            )
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"MultiHeadAttention: num_heads={heads} must be a multiple of "
                f"num_kv_heads={kv_heads}."
            )

    def _norm(self, metadata: Mapping[str, Any], rngs: Rngs) -> LayerNorm | None:
        if not self.normalize_qk:
            return None
        return LayerNorm(
            self.head_dim,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            promote_dtype=self.ln_promote_dtype,
            scale_metadata=metadata,
            rngs=rngs,
        )

    def __call__(
        self,
        inputs_q: Array,
        inputs_k: Array | None = None,
        inputs_v: Array | None = None,
        *,
        mask: Array | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | RngStream | None = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = False,
        out_sharding: Any = None,
        qkv_sharding: Any = None,
        input_positions: Array | None = None,
    ) -> Array:
        """Attends from `inputs_q` to `inputs_k` and `inputs_v`.

        Args:
            inputs_q: `(*batch, queries, in_features)`.
            inputs_k: `(*batch, keys, in_kv_features)`, by default `inputs_q`.
            inputs_v: likewise, by default `inputs_k`.
            mask: False where a query shall not see a key, broadcasts to
                `(*batch, heads, queries, keys)`. With a cache, keys are all its
                positions.
            deterministic: in place of the attribute, if not None.
            rngs: where the dropout key comes from, in place of the layer's stream.
            sow_weights: whether to sow the weights as `attention_weights`.
            decode: in place of the attribute, if not None.
            is_causal: whether each query sees only keys up to its own position.
            out_sharding: of the outputs.
            qkv_sharding: of the projected inputs.
            input_positions: `(length,)` or `(*batch, length)`, by which queries and
                keys are rotated; None counts from 0, or goes on in the cache. Without
                `rotary_base` they are an argument of `attention_fn`.

        Returns:
            `(*batch, queries, out_features)`.

        Raises:
            ValueError: if shapes do not fit, `inputs_v` comes without `inputs_k`, a
                mode is needed and None, or decoding has no cache, or a full one (under
                `jit` the result is nan then).
            TypeError: if there are positions, and nothing that takes them.
        """
        if inputs_k is None and inputs_v is not None:
            raise ValueError(
                f"{name_of(self)}: `inputs_k` cannot be None if `inputs_v` is not "
                "None. Pass both, or pass the values as `inputs_k`, too."
            )
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        query = self.query(inputs_q, out_sharding=qkv_sharding)
        key = self.key(inputs_k, out_sharding=qkv_sharding)
        value = self.value(inputs_v, out_sharding=qkv_sharding)
        if self.query_ln is not None and self.key_ln is not None:
            query, key = self.query_ln(query), self.key_ln(key)
        decodes = mode(self, "decode", decode)
        drops = self.dropout_rate > 0 and not mode(self, "deterministic", deterministic)
        try:
            query, key, told = self._placed(query, key, input_positions, decodes)
            if decodes:
                key, value, mask = self._remembered(query, key, value, mask)
            y = self.attention_fn(
                query,
                key,
                value,
                mask=mask,
                dropout_rng=self._dropout_key(rngs) if drops else None,
                dropout_rate=self.dropout_rate,
                broadcast_dropout=self.broadcast_dropout,
                deterministic=not drops,
                dtype=self.dtype,
                precision=self.precision,
                module=self if sow_weights else None,
                is_causal=is_causal and not decodes,
                **told,
            )
        except (TypeError, ValueError) as error:
            blame(error, self)
            raise
        return self.out(y, out_sharding=out_sharding)

    def _placed(
        self, query: Array, key: Array, positions: Array | None, decodes: bool
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Queries, keys, rotated if they are; what `attention_fn` is told besides."""
        if self.rotary_base is not None:
            if positions is None and decodes and self.cache_index is not None:
                positions = self.cache_index.value + jnp.arange(query.shape[-3])
            query, key = (
                rotary_embedding(x, positions, base=self.rotary_base)
                for x in (query, key)
            )
            return query, key, {}
        if positions is None:
            return query, key, {}
        if self.attention_fn is dot_product_attention:
            raise TypeError(
                "input_positions are of no use here: make the layer with rotary_base="
                "10_000, or with an attention_fn that takes them"
            )
        return query, key, {"input_positions": positions}

    def _dropout_key(self, rngs: Rngs | RngStream | None) -> Array:
        source = self.rngs if rngs is None else rngs
        if source is None:
            raise ValueError(
                f"{name_of(self)}: dropout is wanted, but there is no random stream. "
                "Pass rngs=nnx.Rngs(dropout=seed) in the call, make the layer with "
                "keep_rngs=True, or turn dropout off with model.eval()."
            )
        return source.dropout() if isinstance(source, Rngs) else source()

    def _remembered(
        self, query: Array, key: Array, value: Array, mask: Array | None
    ) -> tuple[Array, Array, Array]:
        """All keys and values so far with the new ones, and a mask of them."""
        if (
            self.cached_key is None
            or self.cached_value is None
            or self.cache_index is None
        ):
            raise ValueError(
                "the autoregressive cache is not initialized. Call its init_cache(("
                "*batch, length, in_features)) first, or for a whole model nnx.view("
                "model, decode=True, batch_size=2, max_length=100)."
            )
        kept, count = self.cached_key.shape, query.shape[-3]
        batch, length = kept[:-3], kept[-3]
        wanted = (*batch, count, *kept[-2:])
        if key.shape != wanted:
            raise ValueError(
                f"Autoregressive cache shape error: a cache of shape {kept} takes a "
                f"key for each query, {wanted}; got {key.shape}."
            )
        index = self.cache_index.value
        taken = 0 if isinstance(index, Tracer) else int(index)
        if taken + count > length:
            raise ValueError(
                f"the cache is full: it has {length} positions, {taken} are known to "
                f"be taken, and {count} come. Make a longer one with its init_cache(("
                "*batch, length, features))."
            )
        seen = jnp.arange(length) <= index + jnp.arange(count)[:, None]
        seen = seen.reshape((1,) * (len(batch) + 1) + seen.shape)
        if mask is not None:
            mask = jnp.asarray(mask)
            check_broadcasts(mask, (*batch, self.num_heads, count, length), "mask")
            seen = jnp.logical_and(mask, seen)
        start = (0,) * len(batch) + (index, 0, 0)
        for cache, new in ((self.cached_key, key), (self.cached_value, value)):
            new = jnp.where(index + count <= length, new, jnp.nan).astype(cache.dtype)
            cache.value = lax.dynamic_update_slice(cache.value, new, start)
        self.cache_index.value = index + count
        return self.cached_key.value, self.cached_value.value, seen

    def init_cache(
        self, input_shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> None:
        """Makes an empty cache, for decoding: each call takes the next positions.

        A prompt can come in one call, and what follows one position at a time.

        Args:
            input_shape: `(*batch, length, in_features)`: of all positions together.
            dtype: of what is kept.

        Example:
            >>> import jax.numpy as jnp, nnxlite as nnx
            >>> layer = nnx.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0))
            >>> layer.init_cache((3, 10, 4))
            >>> layer(jnp.ones((3, 6, 4))).shape, layer(jnp.ones((3, 1, 4))).shape
            ((3, 6, 4), (3, 1, 4))
            >>> layer.cache_index.item()
            7
        """
        shape = (*input_shape[:-1], self.num_kv_heads, self.head_dim)
        self.cached_key = Cache(jnp.zeros(shape, dtype))
        self.cached_value = Cache(jnp.zeros(shape, dtype))
        self.cache_index = Cache(jnp.array(0, jnp.int32))

    def set_view(
        self,
        deterministic: bool | None = None,
        decode: bool | None = None,
        batch_size: int | Sequence[int] | None = None,
        max_length: int | None = None,
    ) -> None:
        """`deterministic`: whether dropout is off; `decode`: whether to use the cache.

        With `batch_size` and `max_length`, it makes an empty cache of that size.
        """
        if deterministic is not None:
            self.deterministic = deterministic
        if decode is not None:
            self.decode = decode
        if (batch_size is None) != (max_length is None):
            raise ValueError(
                f"{name_of(self)}: a cache needs both sizes: nnx.view(model, decode="
                "True, batch_size=2, max_length=100)."
            )
        if batch_size is not None and max_length is not None:
            batch = (batch_size,) if isinstance(batch_size, int) else batch_size
            self.init_cache((*batch, max_length, self.qkv_features))
