"""Layers: Modules that hold state and call one kernel of `functional`.

A layer makes its parameters in the constructor, in a fixed order of random keys, and
reads its attributes at each call, so that all of them may be changed at any time:
`layer.kernel = nnx.Param(...)`, `layer.dtype = jnp.bfloat16`.

Arguments that mean the same in every layer:

    dtype: in which to compute; by default inputs and parameters are promoted together.
    param_dtype: of the parameters, by default float32.
    precision, preferred_element_type, out_sharding: see `jax.lax.dot_general`.
    *_init: an initializer `(key, shape, dtype) -> array`, one of `nnx.initializers` or
        one made by `nnx.with_metadata`; by default zeros for biases, ones for scales.
    *_metadata: entries of the parameter's metadata, none by default.
    promote_dtype: a function `(arrays, *, dtype) -> arrays` that casts inputs and
        parameters; see `functional.promote_dtype`.
    policy: a `Policy`, which gives those of dtype, param_dtype, precision,
        preferred_element_type and promote_dtype that are None.
    rngs: gives the keys of the initial values, from its stream `params`.

Functions that replace a step (`promote_dtype`, `dot_general`, ...) may do anything that
a function may do, such as read and write Variables; eagerly such a layer runs operation
by operation. `shell` is what layers share.
"""
