"""The type in which layers compute (rules of `jax.numpy.result_type`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnxlite.functional import canonicalize_dtype, promote_dtype

F16, BF16, F32, C64 = jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64
I8, I32 = jnp.int8, jnp.int32


def ones(dtype):
    return jnp.ones(2, dtype)


CASES = [
    ((ones(F32), ones(BF16)), F32),
    ((ones(F16), ones(BF16)), F32),
    ((ones(BF16), 2.0), BF16),
    ((ones(BF16), None, 1), BF16),
    ((ones(I8), ones(BF16)), BF16),
    ((ones(I32),), F32),
    ((ones(bool), None), F32),
    ((3, None), F32),
    ((ones(C64), ones(F32)), C64),
    ((np.ones(2), ones(F16)), F32),
]


@pytest.mark.parametrize(("args", "dtype"), CASES)
def test_types_promote_together(args, dtype):
    assert canonicalize_dtype(*args) == dtype
    promoted = promote_dtype(args)
    assert [x if x is None else x.dtype for x in promoted] == [
        x if x is None else dtype for x in args
    ]


@pytest.mark.parametrize(("args", "dtype"), CASES)
def test_as_flax(oracle, args, dtype):
    flax_dtypes = oracle("flax.nnx").nn.dtypes
    assert flax_dtypes.canonicalize_dtype(*args) == canonicalize_dtype(*args)
    for ours, theirs in zip(
        promote_dtype(args), flax_dtypes.promote_dtype(args), strict=True
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours.dtype, ours.weak_type) == (theirs.dtype, theirs.weak_type)


@pytest.mark.parametrize("dtype", [BF16, "float16", np.dtype("float32"), C64])
def test_a_given_type_is_used(dtype):
    x, nothing = promote_dtype((ones(I32), None), dtype=dtype)
    assert x.dtype == jnp.dtype(dtype)
    assert nothing is None


def test_integers_stay_where_they_may():
    assert canonicalize_dtype(ones(I8), ones(I32), inexact=False) == I32
    (x,) = promote_dtype((ones(I32),), dtype=I8, inexact=False)
    assert x.dtype == I8


@pytest.mark.parametrize("dtype", [I32, bool])
@pytest.mark.parametrize(
    "function", [canonicalize_dtype, lambda x, **k: promote_dtype((x,), **k)]
)
def test_exact_types_are_refused(function, dtype):
    match = f"Dtype must be inexact: got {jnp.dtype(dtype).name}. .*dtype=jnp.float32"
    with pytest.raises(ValueError, match=match):
        function(ones(F32), dtype=dtype)


def test_under_jit():
    @jax.jit
    def promoted(x, y):
        return promote_dtype((x, y, None))[:2]

    assert [x.dtype for x in promoted(ones(BF16), 1.0)] == [BF16, BF16]
