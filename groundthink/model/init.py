"""The start of every parameter, in one place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from groundthink.layers.addressing import KeyContext
from groundthink.layers.gated_delta_net import GatedDeltaNet, ShortConvolution
from groundthink.layers.gates import DeltaGates
from groundthink.layers.memory_attention import MemoryAttention, MemoryReader
from groundthink.layers.norms import RMSNorm
from groundthink.model.block import Block
from groundthink.model.config import ModelConfig


@torch.no_grad()
def init_module(module: nn.Module, config: ModelConfig) -> None:
    """Start values of one module's own parameters.

    Matrices and embeddings are normal with `init_std`; what writes into the residual stream is scaled down by
    1/sqrt(2 layers) (GPT-2, section 2.3); gates and convolutions have their own start; norms start at 1.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, RMSNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, ShortConvolution | DeltaGates | KeyContext | MemoryReader):
        module.reset_parameters()


@torch.no_grad()
def scale_residual_writers(blocks: nn.ModuleList) -> None:
    """Scale down the matrices that write into the residual stream."""
    factor = (2 * len(blocks)) ** -0.5
    for name, parameter in blocks.named_parameters():
        if name.endswith((".out.weight", ".down.weight")):
            parameter.mul_(factor)


@torch.no_grad()
def start_queries_as_keys(blocks: Iterable[Block]) -> None:
    """Mimetic start (2410.11135): what asks a memory starts as what wrote it, in the same layer and in later ones.

    With `start="context"` a layer's own queries see the tokens before them as its keys do.
    """
    writers: list[GatedDeltaNet] = []
    for block in blocks:
        mixer = block.mixer
        if isinstance(mixer, GatedDeltaNet):
            writers.append(mixer)
            if mixer.config.query == "own":
                n = mixer.sizes[0]
                mixer.qkv.weight[:n] = mixer.key_weight
                if mixer.config.start == "context" and mixer.conv is not None:
                    mixer.conv.weight[:n] = mixer.conv.weight[n : 2 * n]
        elif isinstance(mixer, MemoryAttention) and mixer.reader.query is not None:
            sources = writers[-mixer.reader.sources :]
            mixer.reader.query.weight.copy_(torch.cat([writer.key_weight for writer in sources]))
