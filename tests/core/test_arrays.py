"""How arrays print in a line."""

import jax.numpy as jnp
import numpy as np
import pytest

from nnxlite.core.arrays import summary_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jnp.arange(4.0), "float32[4], 1.5 ± 1.12, 0 to 3"),
        (jnp.arange(4), "int32[4]"),
        (jnp.ones((2, 0)), "float32[2,0]"),
        (jnp.ones(2, jnp.bfloat16), "bfloat16[2], 1 ± 0, 1 to 1"),
        (np.float64(2) * np.ones(1), "float64[1], 2 ± 0, 2 to 2"),
        (jnp.full(2, jnp.nan), "float32[2], 2 NaN or inf"),
        ({"a": 1}, "dict"),
    ],
)
def test_an_array_in_a_line(value, text):
    assert summary_of(value) == text
