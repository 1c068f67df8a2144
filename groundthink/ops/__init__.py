"""The memory operator and its company: tensors in, tensors out."""

from groundthink.ops.backends import BACKENDS, describe_backends
from groundthink.ops.convolution import causal_conv
from groundthink.ops.cross_entropy import linear_cross_entropy
from groundthink.ops.memory import DeltaMemory, write, write_and_read
from groundthink.ops.window import Past, empty_past, window_attention

__all__ = [
    "BACKENDS",
    "DeltaMemory",
    "Past",
    "causal_conv",
    "describe_backends",
    "empty_past",
    "linear_cross_entropy",
    "window_attention",
    "write",
    "write_and_read",
]
