"""The mathematics of the layers: pure functions of arrays, each compiled once.

Nothing here knows a Module or a Variable. `kernels` says how functions are compiled;
`activations` and `initializers` are chosen by name from their own modules.
"""

from .convolution import conv as conv
from .dropout import dropout as dropout
from .dtypes import canonicalize_dtype as canonicalize_dtype
from .dtypes import promote_dtype as promote_dtype
from .linear import attend as attend
from .linear import embed as embed
from .linear import linear as linear
from .normalization import batch_norm as batch_norm
from .normalization import batch_norm_inference as batch_norm_inference
from .normalization import layer_norm as layer_norm
from .pooling import avg_pool as avg_pool
from .pooling import max_pool as max_pool
from .pooling import min_pool as min_pool
from .pooling import pool as pool
