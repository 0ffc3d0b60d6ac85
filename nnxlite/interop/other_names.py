"""Names that other libraries have for what is here, for errors that say so."""

import difflib

_NAMES = {
    "AdaptiveAvgPool2d": "adaptive_avg_pool",
    "AvgPool2d": "avg_pool",
    "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm",
    "Conv1d": "Conv",
    "Conv2d": "Conv",
    "Conv3d": "Conv",
    "ConvTranspose2d": "ConvTranspose",
    "Dense": "Linear",
    "DenseGeneral": "LinearGeneral",
    "Dropout1d": "Dropout",
    "Dropout2d": "Dropout",
    "Embedding": "Embed",
    "GRU": "RNN",
    "LSTM": "RNN",
    "MaxPool2d": "max_pool",
    "ModuleDict": "Dict",
    "ModuleList": "List",
    "MultiHeadDotProductAttention": "MultiHeadAttention",
    "MultiheadAttention": "MultiHeadAttention",
    "Parameter": "Param",
    "ParameterList": "List",
    "ReLU": "relu",
    "RoPE": "rotary_embedding",
    "SelfAttention": "MultiHeadAttention",
    "VariableState": "Variable",
    "checkpoint": "remat",
    "filter_grad": "grad",
    "filter_jit": "jit",
    "filter_value_and_grad": "value_and_grad",
    "filter_vmap": "vmap",
    "inference_mode": "view",
    "load_state_dict": "load_state",
    "lift": "vmap",
    "remat_scan": "Stack",
    "state_dict": "state",
    "tree_at": "at",
    "tree_deserialise_leaves": "load",
    "tree_serialise_leaves": "save",
    "with_partitioning": "with_metadata",
}


def missing(name: str, known: list[str]) -> AttributeError:
    """The error for a name that the package does not have.

    Args:
      name: the name.
      known: the names that there are.
    """
    text = f"nnxlite has no {name!r}"
    if name in _NAMES:
        return AttributeError(f"{text}: it is called nnx.{_NAMES[name]} here")
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        text += f": do you mean {' or '.join(f'nnx.{x}' for x in near)}?"
    return AttributeError(text)
