"""What counts as an array, and what as a number.

*Arrays* are data wherever they stand. *Numbers* are data as arguments and as the
value of a Variable, as in JAX, but static as attributes of a Module, where they are
sizes and rates. Everything else is static or a container.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_SMALL, _LONG = 20, 64  # elements, and characters, of an array shown by its values
_MANY = 10_000_000  # elements from which on no statistics are shown
NUMBER_TYPES = frozenset({int, float, complex, bool})
_ARRAY_CLASSES = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
_is_array_type: dict[type, bool] = {}


def is_array(value: Any) -> bool:
    """True for JAX and NumPy arrays, tracers, PRNG keys and ShapeDtypeStructs."""
    kind = type(value)
    if kind is np.ndarray:
        return value.dtype.kind not in "USOMm"  # JAX has no strings, objects, times
    known = _is_array_type.get(kind)
    if known is None:
        # isinstance with jax.Array asks a metaclass and takes a microsecond; the
        # answer depends on the type only, so it is asked once for each type.
        known = _is_array_type[kind] = isinstance(value, _ARRAY_CLASSES)
    return known


def is_abstract(value: Any) -> bool:
    """True for an array whose values are not known."""
    return isinstance(value, (Tracer, jax.ShapeDtypeStruct))


def is_dynamic(value: Any) -> bool:
    """True for what JAX traces as an argument: arrays and plain numbers."""
    return (
        is_array(value) or type(value) in NUMBER_TYPES or isinstance(value, np.generic)
    )


def type_of(value: Any) -> str:
    """Dtype and shape, as JAX writes them: `float32[2,3]`; of no array, its class."""
    if not is_array(value):
        return type(value).__name__
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def value_repr(array: Any) -> str:
    """A small array in a line with its values, any other by dtype and shape."""
    if not is_array(array):
        return repr(array)
    if is_abstract(array) or array.size > _SMALL:
        return type_of(array)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return f"{type_of(array)} {jax.random.key_data(array).tolist()}"
    text = " ".join(repr(array).split())
    return text if len(text) <= _LONG else type_of(array)


def summary_of(value: Any) -> str:
    """An array in a line: type, shape, statistics, and sharding where there is one."""
    text = type_of(value)
    if not is_array(value) or is_abstract(value) or value.size == 0:
        return text
    if value.ndim == 0 and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"{text} {np.asarray(value)[()]:.6g}"
    sharding = getattr(value, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        text += f" {getattr(sharding, 'spec', sharding)}"
    if not jnp.issubdtype(value.dtype, jnp.inexact) or value.size > _MANY:
        return text
    return ", ".join([text, *statistics(value)[1]])


def statistics(array: Any) -> tuple[np.ndarray[Any, Any], list[str]]:
    """The finite numbers of an array, or moduli if complex, and texts about these."""
    numbers = np.asarray(array)
    numbers = numbers.astype(np.result_type(numbers.dtype, np.float32)).ravel()
    numbers = np.abs(numbers) if np.iscomplexobj(numbers) else numbers
    finite, texts = numbers[np.isfinite(numbers)], []
    if finite.size:
        texts += [f"{finite.mean():.3g} ± {finite.std():.3g}"]
        texts += [f"{finite.min():.3g} to {finite.max():.3g}"]
    if finite.size < numbers.size:
        texts += [f"{numbers.size - finite.size:,} NaN or inf"]
    return finite, texts
