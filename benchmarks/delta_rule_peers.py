"""What others offer for the same recurrence, asked in the same run: one function per peer, imported when it is called.

Each takes bf16 q, k [B,T,H,K], v [B,T,H,V] and float32 g, beta [B,T,H] and returns [B,T,H,V].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

import torch
from torch import Tensor

Peer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
PACKAGES = ("fla-core", "flash-qla", "tilelang", "transformers")


def fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """fla hands the shapes it can to FlashQLA by itself, where that is installed."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return chunk_gated_delta_rule(q, k, v, g, beta, scale=k.shape[-1] ** -0.5)[0]


def transformers_fallback(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Plain torch, what transformers runs where fla is not installed; its wrapper would hand over to fla."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    out: Tensor = inspect.unwrap(torch_chunk_gated_delta_rule)(q, k, v, g, beta)[0]
    return out


def dense_masked_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Another function of the same inputs, exact attention to the whole past through a T x T mask."""
    del g, beta
    length = q.shape[1]
    if length > 8192:
        raise MemoryError(f"a mask of {length} x {length}")
    mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
    return out.transpose(1, 2)


PEERS: MappingProxyType[str, Peer] = MappingProxyType(
    {p.__name__: p for p in (fla, transformers_fallback, dense_masked_attention)}
)


def versions() -> dict[str, str]:
    """Of every package a peer may use; absent ones say so."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
