"""The mathematics of the layers: pure functions of arrays, each compiled once.

Nothing here knows a Module or a Variable. `kernels` says how functions are compiled;
`activations` and `initializers` are chosen by name from their own modules.
"""

from .activations import gated as gated
from .activations import prelu as prelu
from .attention import attention as attention
from .attention import attention_weights as attention_weights
from .attention import combine_masks as combine_masks
from .attention import make_attention_mask as make_attention_mask
from .attention import make_causal_mask as make_causal_mask
from .attention import weighted_sum as weighted_sum
from .convolution import conv as conv
from .convolution import conv_transpose as conv_transpose
from .dropout import alpha_dropout as alpha_dropout
from .dropout import dropout as dropout
from .dtypes import canonicalize_dtype as canonicalize_dtype
from .dtypes import promote_dtype as promote_dtype
from .linear import attend as attend
from .linear import einsum as einsum
from .linear import embed as embed
from .linear import linear as linear
from .linear import linear_general as linear_general
from .normalization import batch_norm as batch_norm
from .normalization import batch_norm_inference as batch_norm_inference
from .normalization import group_norm as group_norm
from .normalization import layer_norm as layer_norm
from .pooling import adaptive_avg_pool as adaptive_avg_pool
from .pooling import avg_pool as avg_pool
from .pooling import max_pool as max_pool
from .pooling import min_pool as min_pool
from .pooling import pool as pool
from .positions import rotary_embedding as rotary_embedding
from .positions import sinusoidal_positions as sinusoidal_positions
from .recurrent import flip_sequences as flip_sequences
from .recurrent import gru as gru
from .recurrent import lstm as lstm
from .recurrent import simple_rnn as simple_rnn
from .weights import low_rank as low_rank
from .weights import spectral_norm as spectral_norm
from .weights import weight_norm as weight_norm
