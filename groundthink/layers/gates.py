"""Decay and write strength of the gated delta net, always in float32."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink import ops
from groundthink.layers.config import LayerConfig
from groundthink.layers.norms import Float32Module


class DeltaGates(Float32Module):
    """log_decay and beta of every head from the layer's input.

    beta = f + (r - f) sigmoid(W_b x + beta_bias), with r = 1, or 2 where negative eigenvalues are allowed
    (2411.12537), and the floor f (source 002); with f = 1 = r every token is written in full, without parameters.
    log_decay = -exp(A_log) softplus(W_a x + dt_bias) as in Mamba2 (2405.21060), or log sigmoid(W_a x + decay_bias),
    less `least_forgetting`; 0 in the first `lasting_heads`, which are those of DeltaNet (2406.06484).
    """

    roles: ClassVar = {"weight": "gate", "beta_bias": "gate", "decay_bias": "gate", "a_log": "gate"}

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        heads = config.value_heads
        self.mamba = config.decay == "mamba"
        self.beta_range, self.beta_floor = config.beta_range, config.beta_floor
        self.lasting, self.least_forgetting = config.lasting_heads, config.least_forgetting
        self.weight = nn.Parameter(torch.empty((1 if config.beta_is_constant else 2) * heads, config.d_model))
        self.beta_bias = None if config.beta_is_constant else nn.Parameter(torch.empty(heads))
        self.decay_bias = nn.Parameter(torch.empty(heads))
        if self.mamba:
            self.a_log = nn.Parameter(torch.empty(heads))
        self._start = (config.beta_bias, config.decay_bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start values: A in [1, 16] and time steps in [0.001, 0.1] for "mamba", the config's biases otherwise."""
        nn.init.normal_(self.weight, std=0.02)
        if self.beta_bias is not None:
            nn.init.constant_(self.beta_bias, self._start[0])
        if not self.mamba:
            nn.init.constant_(self.decay_bias, self._start[1])
            return
        nn.init.uniform_(self.a_log, 1, 16).log_()
        nn.init.uniform_(self.decay_bias, math.log(1e-3), math.log(1e-1)).exp_()
        self.decay_bias.add_(torch.log(-torch.expm1(-self.decay_bias)))  # inverse of softplus

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log_decay and beta, each [B,T,H] float32, for x [B,T,D] of any floating dtype."""
        log_decay, beta = ops.delta_gates(
            x,
            self.weight,
            beta_bias=self.beta_bias,
            decay_bias=self.decay_bias,
            a_log=self.a_log if self.mamba else None,
            beta_range=self.beta_range,
            beta_floor=self.beta_floor,
        )
        if self.lasting or self.least_forgetting:
            log_decay = F.pad(log_decay[..., self.lasting :] - self.least_forgetting, (self.lasting, 0))
        return log_decay, beta
