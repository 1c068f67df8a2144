"""Pure writes into the memory operator: what comes back under keys of a known geometry. No model is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink import ops
from groundthink.probes.mechanics import orthonormal_keys


def correlated_keys(trials: int, n: int, size: int, *, generator: torch.Generator, cosine: float) -> Tensor:
    """Unit keys with this cosine between every two, [trials,n,size] float32; n below size."""
    basis = orthonormal_keys(trials, n + 1, size, generator=generator)
    return basis[:, 1:] * (1 - cosine) ** 0.5 + basis[:, :1] * cosine**0.5


def values_of(trials: int, n: int, size: int, generator: torch.Generator) -> Tensor:
    """Values with independent normal entries, [trials,n,size] float32."""
    return torch.randn(trials, n, size, generator=generator)


def read_back(
    keys: Tensor,
    values: Tensor,
    *,
    device: torch.device,
    beta: float = 1.0,
    decay: float = 1.0,
) -> Tensor:
    """Write all pairs in order, then read every key from the last state.

    Args:
        keys: [trials,n,K], unit length.
        values: [trials,n,V].
        device: where the operator runs, with the backend that it chooses there.
        beta, decay: of every write.

    Returns:
        [trials,n,V] on the CPU.
    """
    trials, n, _ = keys.shape
    gates = torch.ones(trials, n, 1, device=device)
    memory = ops.write(
        keys[:, :, None].to(device),
        values[:, :, None].to(device),
        log_decay=gates * torch.log(torch.tensor(decay)).to(device),
        beta=gates * beta,
    )
    return torch.einsum("bnk,bkv->bnv", keys.to(device), memory.final_state[:, 0]).cpu()


def relative(read: Tensor, values: Tensor) -> Tensor:
    """|read - value| / |value| of each value, [trials,n]."""
    return (read - values).norm(dim=-1) / values.norm(dim=-1)
