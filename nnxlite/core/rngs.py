"""Random keys as state: streams that hand out a new key at each call.

A stream has a key and a count; its n-th key is `jax.random.fold_in(key, n)`, with n a
uint32. `Rngs` holds streams by name; a name that has no stream uses the one called
`default`, and its count. No key is ever handed out twice.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Union

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import is_array
from .filters import Filter
from .key_shapes import Shape, first_rule, rules_of, shape_of
from .module import Pytree, iter_nodes
from .paths import format_path
from .variable import Variable

Seed = Union[int, jax.Array, "RngStream"]
Sampler = Callable[..., jax.Array]
Initializers = Callable[..., Callable[..., jax.Array]]


class RngState(Variable[Any]):
    """Base class of the Variables of random streams; their `tag` names the stream.

    Example:
      >>> import nnxlite as nnx
      >>> len(jax.tree.leaves(nnx.state(nnx.Rngs(0), nnx.RngState)))
      2
    """


class RngKey(RngState):
    """The key of a stream.

    Example:
      >>> import nnxlite as nnx
      >>> nnx.Rngs(0).default.key.tag
      'default'
    """


class RngCount(RngState):
    """How many keys a stream has handed out, uint32.

    Example:
      >>> import nnxlite as nnx
      >>> rngs = nnx.Rngs(0)
      >>> key = rngs()
      >>> rngs.default.count.value.item()
      1
    """


@jax.jit
def _draw(key: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    # One compiled call for both: eager `fold_in` alone takes eight times as long.
    fold_in = jax.random.fold_in
    for _ in range(key.ndim):
        fold_in = jax.vmap(fold_in)
    return fold_in(key, count), count + 1


class _Draws:
    """`jax.random` functions and initializers as methods that bring their own key."""

    ball: Sampler
    bernoulli: Sampler
    beta: Sampler
    binomial: Sampler
    bits: Sampler
    categorical: Sampler
    cauchy: Sampler
    chisquare: Sampler
    choice: Sampler
    dirichlet: Sampler
    double_sided_maxwell: Sampler
    exponential: Sampler
    f: Sampler
    gamma: Sampler
    generalized_normal: Sampler
    geometric: Sampler
    gumbel: Sampler
    laplace: Sampler
    loggamma: Sampler
    logistic: Sampler
    lognormal: Sampler
    maxwell: Sampler
    multinomial: Sampler
    multivariate_normal: Sampler
    normal: Sampler
    orthogonal: Sampler
    pareto: Sampler
    permutation: Sampler
    poisson: Sampler
    rademacher: Sampler
    randint: Sampler
    rayleigh: Sampler
    t: Sampler
    triangular: Sampler
    truncated_normal: Sampler
    uniform: Sampler
    wald: Sampler
    weibull_min: Sampler
    delta_orthogonal: Initializers
    glorot_normal: Initializers
    glorot_uniform: Initializers
    he_normal: Initializers
    he_uniform: Initializers
    kaiming_normal: Initializers
    kaiming_uniform: Initializers
    lecun_normal: Initializers
    lecun_uniform: Initializers
    variance_scaling: Initializers
    xavier_normal: Initializers
    xavier_uniform: Initializers

    def __call__(self) -> jax.Array:
        raise NotImplementedError


def _sampler(name: str) -> Callable[..., Any]:
    sample = getattr(jax.random, name)

    def method(self: _Draws, *args: Any, **kwargs: Any) -> Any:
        return sample(self(), *args, **kwargs)

    method.__name__ = name
    method.__qualname__ = f"Rngs.{name}"
    method.__doc__ = f"`jax.random.{name}` with the next key."
    return method


def _initializer(name: str) -> Callable[..., Any]:
    make = getattr(jax.nn.initializers, name)

    def method(self: _Draws, *args: Any, **kwargs: Any) -> Any:
        initializer = make(*args, **kwargs)
        return lambda *shape, **options: initializer(self(), *shape, **options)

    method.__name__ = name
    method.__qualname__ = f"Rngs.{name}"
    method.__doc__ = f"`jax.nn.initializers.{name}` with the next key at each call."
    return method


for _name, _kind in inspect.get_annotations(_Draws).items():
    _define = _sampler if _kind is Sampler else _initializer
    setattr(_Draws, _name, _define(_name))


class RngStream(Pytree, _Draws):
    """One stream of random keys.

    Args:
      key: an int seed, a typed key, a raw uint32 key, or another stream, whose key
        and count are taken over.
      tag: the stream's name.

    Raises:
      ValueError: for anything else as a key.

    Example:
      >>> import nnxlite as nnx
      >>> stream = nnx.RngStream(0, tag='noise')
      >>> bool((stream() == stream()).all())
      False
    """

    def __init__(self, key: Any, *, tag: str):
        if isinstance(key, RngStream):
            count, key = key.count.value, key.key.value
        else:
            key = _typed_key(key)
            count = jnp.zeros(key.shape, jnp.uint32)
        self.tag: str = tag
        self.key: RngKey = RngKey(key, tag=tag)
        self.count: RngCount = RngCount(count, tag=tag)

    def __call__(self) -> jax.Array:
        """Returns the next key."""
        key, self.count.value = _draw(self.key.value, self.count.value)
        return key

    def fork(self, *, split: int | Shape | None = None) -> "RngStream":
        """A new stream from the next key, or from that key split."""
        return self._like(self()) if split is None else self.split(split)

    def split(self, k: int | Shape) -> "RngStream":
        """A stream of `k` keys at once, split from the next key."""
        return self._like(jax.random.split(*self._key_and_shape(k)))

    def broadcast(self, k: int | Shape) -> "RngStream":
        """A stream of `k` equal keys, the next key repeated."""
        return self._like(jnp.broadcast_to(*self._key_and_shape(k)))

    def _key_and_shape(self, k: Any) -> tuple[jax.Array, Shape]:
        shape = shape_of(k)
        check_is_single(self, f"the stream {self.tag!r}")
        return self(), shape

    def _like(self, key: Any) -> "RngStream":
        return RngStream(key, tag=self.tag)

    def _kept(self) -> "RngStream":
        """A copy, which goes on where this stream is."""
        return self._like(self)


def check_is_single(stream: RngStream, name: str) -> None:
    """Raises ValueError if a stream, called `name`, holds several keys already."""
    if stream.key.shape:
        raise ValueError(
            f"{name} holds keys of shape {stream.key.shape} already and cannot be "
            "split again: split it once into keys of all the axes, such as "
            "splits=(2, 3), or restore it before (nnx.restore_rngs)"
        )


def _typed_key(key: Any) -> jax.Array:
    if isinstance(key, Variable):
        key = key.value
    if isinstance(key, (int, np.integer)):
        return jax.random.key(int(key))
    if is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if is_array(key) and key.dtype == jnp.uint32 and key.ndim:
        return jax.random.wrap_key_data(jnp.asarray(key))
    if is_array(key) and jnp.issubdtype(key.dtype, jnp.integer) and not key.ndim:
        return jax.random.key(key)
    shown = f"{key.dtype}{list(key.shape)}" if is_array(key) else repr(key)
    raise ValueError(
        f"{shown} is no seed: use an int, a key from jax.random.key, raw uint32 key "
        "data, or an RngStream"
    )


class Rngs(Pytree, _Draws):
    """Named streams of random keys.

    `rngs.params()` is the next key of the stream `params`; a name without a stream
    uses `default`. `rngs()` is the next key of `default`. `rngs.normal(shape)` and the
    like draw with the next key.

    Args:
      default: seed or key of the stream `default`, or a mapping of names to seeds.
      **rngs: seeds, keys or streams by name.

    Raises:
      ValueError: for a seed that is none.

    Example:
      >>> import nnxlite as nnx
      >>> rngs = nnx.Rngs(0, dropout=1)
      >>> rngs.normal((2,)).shape, list(rngs)
      ((2,), ['default', 'dropout'])
    """

    def __init__(
        self,
        default: "Seed | Mapping[str, Seed] | Rngs | None" = None,
        **rngs: Seed,
    ):
        if isinstance(default, (Mapping, Rngs)):
            rngs = {**dict(default.items()), **rngs}
        elif default is not None:
            rngs = {"default": default, **rngs}
        for name, key in rngs.items():
            try:
                setattr(self, name, RngStream(key, tag=name))
            except ValueError as error:
                raise ValueError(f"the stream {name!r}: {error}") from None

    def __getattr__(self, name: str) -> RngStream:
        if name[:2] != "__" and name[:5] != "_nnx_":
            stream = vars(self).get("default")
            if stream is not None:
                return stream
            raise AttributeError(
                f"No RngStream named {name!r} and no default, only {list(self)}: make "
                f"it with nnx.Rngs({name}=seed) or nnx.Rngs(seed)"
            )
        raise AttributeError(name)

    def __getitem__(self, name: str) -> RngStream:
        try:
            return getattr(self, name)
        except AttributeError as error:
            raise KeyError(str(error)) from None

    def __call__(self) -> jax.Array:
        """Returns the next key of the stream `default`."""
        return self.default()

    def __iter__(self) -> Iterator[str]:
        return iter(self._nnx_items())

    def __len__(self) -> int:
        return len(self._nnx_items())

    def __contains__(self, name: object) -> bool:
        return name in self._nnx_items()

    def items(self) -> Iterable[tuple[str, RngStream]]:
        """Names and streams."""
        return self._nnx_items().items()

    def fork(self, /, *, split: int | Mapping[Filter, Any] | None = None) -> "Rngs":
        """New streams, each seeded with the next key of the stream of its name.

        Args:
          split: how many keys each new stream has, as in `split`.
        """
        return self._each(split, RngStream.fork, RngStream.split)

    def split(self, splits: Any, /) -> "Rngs":
        """Streams of several keys, split from the next key of each.

        Args:
          splits: a number or shape for all streams, or a mapping of filters to them;
            the first filter that matches wins. None, or no match, keeps a stream as
            it is, with its count.
        """
        return self._each(splits, RngStream._kept, RngStream.split)

    def broadcast(self, splits: Any, /) -> "Rngs":
        """Streams of several equal keys, the next key of each repeated; see `split`."""
        return self._each(splits, RngStream._kept, RngStream.broadcast)

    def _each(
        self,
        splits: Any,
        otherwise: Callable[[RngStream], RngStream],
        apply: Callable[[RngStream, Shape], RngStream],
    ) -> "Rngs":
        rules = rules_of(splits)
        new = Rngs()
        for name, stream in self.items():
            rule = first_rule(rules, ((name,), stream))
            shape = None if rule is None else rule.shape
            made = otherwise(stream) if shape is None else apply(stream, shape)
            setattr(new, name, made)
        return new


def reseed(
    node: Any,
    /,
    *,
    policy: Any = "scalars_only",
    **stream_keys: Any,
) -> None:
    """Gives the streams of a graph new keys and restarts their counts, in place.

    Every stream whose tag is a name given gets the next key of a stream made from
    that name's seed, in the order of `iter_graph`.

    Args:
      node: a Module or a pytree of them.
      policy: what to do with a stream of several keys: "scalars_only" raises,
        "match_shape" splits the new key to the shape, and a function
        `(path, key, shape) -> key` does what it likes.
      **stream_keys: seeds or keys by stream name.

    Raises:
      ValueError: naming a stream of several keys under "scalars_only".

    Example:
      >>> import nnxlite as nnx
      >>> dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
      >>> nnx.reseed(dropout, dropout=42)
      >>> dropout.rngs.count.value.item()
      0
    """
    if policy not in ("scalars_only", "match_shape") and not callable(policy):
        raise ValueError(
            f"{policy!r} is no policy: use 'scalars_only', 'match_shape', or a "
            "function (path, key, shape) -> key"
        )
    sources = Rngs(**stream_keys)
    found = [
        (path, stream)
        for path, stream in iter_nodes(node)
        if isinstance(stream, RngStream) and stream.tag in stream_keys
    ]
    for path, stream in found:
        if stream.key.shape and policy == "scalars_only":
            raise ValueError(
                f"the stream {format_path(path)!r} holds keys of shape "
                f"{stream.key.shape}; pass policy='match_shape' to split the new key"
            )
    for path, stream in found:
        shape: tuple[int, ...] = stream.key.shape
        key: Any = sources[stream.tag]()
        if callable(policy):
            key = policy((*path, "key"), key, shape)
        elif shape:
            key = jax.random.split(key, shape)
        stream.key.value = key
        stream.count.value = jnp.zeros(key.shape, jnp.uint32)
