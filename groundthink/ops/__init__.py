"""The memory operator and its company: tensors in, tensors out."""

from groundthink.ops.activations import delta_gates, swiglu
from groundthink.ops.backends import BACKENDS, describe_backends
from groundthink.ops.convolution import causal_conv, causal_windows, conv_heads
from groundthink.ops.cross_entropy import linear_cross_entropy, next_token_loss
from groundthink.ops.memory import DeltaMemory, write, write_and_read
from groundthink.ops.norms import add_rms_norm, gated_rms_norm, rms_norm
from groundthink.ops.window import Past, empty_past, window_attention

__all__ = [
    "BACKENDS",
    "DeltaMemory",
    "Past",
    "add_rms_norm",
    "causal_conv",
    "causal_windows",
    "conv_heads",
    "delta_gates",
    "describe_backends",
    "empty_past",
    "gated_rms_norm",
    "linear_cross_entropy",
    "next_token_loss",
    "rms_norm",
    "swiglu",
    "window_attention",
    "write",
    "write_and_read",
]
