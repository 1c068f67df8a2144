"""AdamW whose groups follow from the roles that layers declare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import ConfigError
from groundthink.training.config import OptimizerConfig

DECAYED = ("matrix", "embedding")
SPARED = (
    "norm",
    "bias",
    "gate",
    "convolution",
)  # small or with a meaning of their own at 0: decay would bias them


def role_of_each(model: nn.Module) -> dict[str, str]:
    """Role of each trainable parameter, by its first name; tied parameters count once.

    Raises:
        ConfigError: a parameter without a role, a role without a parameter, an unknown or contradictory role.
    """
    declared: dict[str, str] = dict(model.parameter_roles())  # type: ignore[operator]
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    known = {name for group in names.values() for name in group}
    problems = [f"role of {name!r}, which is no parameter" for name in sorted(set(declared) - known)]
    roles = {}
    for first, parameter in model.named_parameters():
        found = {declared[name] for name in names[id(parameter)] if name in declared}
        if not found:
            problems.append(f"parameter {first!r} has no role")
        elif len(found) > 1:
            problems.append(f"parameter {first!r} has the roles {sorted(found)}")
        elif not found <= {*DECAYED, *SPARED}:
            problems.append(f"parameter {first!r} has the unknown role {found.pop()!r}")
        elif parameter.requires_grad:
            roles[first] = found.pop()
    if problems:
        fix = f"let its layer declare one of {', '.join((*DECAYED, *SPARED))}"
        raise ConfigError("; ".join(problems), where="optimizer groups", fix=fix)
    return roles


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with groups of decayed and of spared parameters, embeddings apart where their rate differs.

    Each group lists its `names`, and the `scale` of its learning rate.

    Raises:
        ConfigError: see `role_of_each`.
    """
    roles, parameters = role_of_each(model), dict(model.named_parameters())
    groups: list[dict[str, Any]] = []
    scales = {role: config.embedding_scale if role == "embedding" else 1.0 for role in (*DECAYED, *SPARED)}
    for decayed, scale in dict.fromkeys((role in DECAYED, scales[role]) for role in (*DECAYED, *SPARED)):
        names = [name for name, role in roles.items() if (role in DECAYED, scales[role]) == (decayed, scale)]
        if names:
            members = [parameters[name] for name in names]
            weight_decay = config.weight_decay if decayed else 0.0
            groups.append({"params": members, "names": names, "weight_decay": weight_decay, "scale": scale})
    grouped = sum(p.numel() for group in groups for p in group["params"])
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert grouped == total, f"optimizer groups hold {grouped} of {total} parameters"
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def named_moments(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """AdamW's state as tensors: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.detach()
    return tensors


def restore_moments(optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> list[str]:
    """Put `named_moments` back; returns what does not fit (empty if all is well)."""
    owners = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    problems: list[str] = []
    state: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        if name not in owners or key not in ("exp_avg", "exp_avg_sq", "step"):
            problems.append(f"unknown optimizer tensor {full!r}")
            continue
        parameter = owners[name]
        if key != "step" and value.shape != parameter.shape:
            problems.append(f"{full} is {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
            continue
        # AdamW keeps its step counters on the CPU unless it is fused.
        state.setdefault(name, {})[key] = value.clone() if key == "step" else value.to(parameter.device, copy=True)
    problems += [f"moments of {name!r} are incomplete" for name, held in state.items() if len(held) != 3]
    if not problems:
        optimizer.state.clear()
        for name, held in state.items():
            optimizer.state[owners[name]] = held
    return problems
