"""D5 and D6: does the memory hold the asked pair above its noise, and of what rank is it over time?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundthink.model import Snapshot
from groundthink.probes import drawn
from groundthink.probes.bench import Bench, Point
from groundthink.probes.cuts import layers_with
from groundthink.probes.face import device_of, mode, read_on
from groundthink.probes.heard import KEYS, of_value_heads
from groundthink.probes.intervention import MEMORY, carriers
from groundthink.probes.key_edits import write_keys
from groundthink.probes.row import Row, not_run
from groundthink.probes.row_rank import effective_rank
from groundthink.probes.statistics import mean_interval
from groundthink.records import ProbeResult

ROWS, RANK_ROWS = 128, 8
CEILING = 1e6  # ratio above which there is no noise to speak of
COLLAPSED = 2.0  # effective rank below which every read says nearly the same


def run_content(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """What the memory returns along the asked pair's own key against keys of pairs that were never stored."""
    if not layers_with(bench.model, KEYS):
        yield not_run("state_content", "the model shows no keys")
        return
    questions = bench.asked(bench.points[1])
    prompts = questions.prompts[:ROWS].to(device_of(bench.model))
    episodes = questions.episodes[: len(prompts)]
    placed = torch.tensor([episode.queries[0].revealed_at for episode in episodes])
    with mode(bench.model, training=False), torch.no_grad():
        keys, snapshot = write_keys(bench.model, prompts, placed)
    asked = questions.prompts[: len(prompts)][torch.arange(len(prompts)), placed - 1]  # the key's token
    stored = questions.prompts[: len(prompts), 1 : 1 + 2 * bench.task.n_pairs : 2]
    strange = (asked[None, :, None] != stored[:, None]).all(-1)  # [row, whose key]
    if not bool(strange.any(1).all()):
        yield not_run("state_content", "every key is stored in some episode of all, so there is no noise to measure")
        return
    half = max(1, len(prompts) // 2)
    for layer, k in keys.items():
        if MEMORY[0] not in snapshot.layers[layer]:
            continue
        memory = snapshot.layers[layer][MEMORY[0]].double().cpu()
        ratio = signal_to_noise(memory, of_value_heads(k.double().cpu(), memory.shape[1]), strange)
        head = int(ratio[:half].mean(0).argmax())
        mean, low, high = mean_interval((ratio[half:, head] if len(prompts) > 1 else ratio[:, head]).tolist())
        times = [10**x for x in (mean, low, high)]
        by_head = (10 ** ratio.mean(0)).tolist()
        yield ProbeResult(
            f"state_content/layer{layer}", times[0], "pass" if times[1] > 1 else "fail",
            f"Along the asked key head {head} returns {times[0]:.3g} times what it returns along keys that were never"
            " stored.",
            low=times[1], high=times[2], n=max(1, len(prompts) - half), chance=1.0, threshold=1.0,
            details={"heads": by_head, "head": head, "pictures": [drawn.grid(
                [[min(x, CEILING) for x in by_head]], [f"layer {layer}"], [str(h) for h in range(len(by_head))],
                title=f"Signal to noise in the memory of layer {layer}", x_label="head", y_label="")]},
        )  # fmt: skip


def signal_to_noise(memory: Tensor, keys: Tensor, strange: Tensor) -> Tensor:
    """log10 |S^T k| / mean |S^T k'| over strange keys k', [B,H], at most 6.

    Args:
        memory: [B,H,K,V]; keys: [B,H,K] of the asked pairs.
        strange: [B,B] bool, [i,j]: the asked key of row j was never stored in row i.
    """
    read = torch.einsum("ihkv,jhk->ijhv", memory, keys).norm(dim=-1)  # [row, whose key, head]
    signal = read.diagonal(dim1=0, dim2=1).T
    weight = strange[..., None].to(read.dtype)
    noise = (read * weight).sum(1) / weight.sum(1)
    size = memory.flatten(2).norm(dim=-1)
    floor = size / CEILING  # a memory that returns less than that of itself returns nothing
    return torch.where(size > 0, (signal.clamp_min(1e-30) / noise.clamp_min(1e-30).maximum(floor)).log10(), 0.0)


def run_rank_over_time(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Effective rank and singular values of every head while a text is read, one result a layer."""
    prompts = bench.asked(bench.shortest).prompts[:RANK_ROWS].to(device_of(bench.model))
    end, length = 1 + 2 * bench.task.n_pairs, prompts.shape[1]
    times = sorted({1, end // 4, end // 2, end, *(end + (length - end) * i // 4 for i in range(1, 5))} - {0})
    values: dict[int, list[Tensor]] = {}
    with mode(bench.model, training=False), torch.no_grad():
        snapshot: Snapshot | None = None
        for start, stop in zip([0, *times], times, strict=False):
            part = prompts[:, start:stop]
            snapshot = read_on(bench.model, part, snapshot)[1]
            for layer in carriers(snapshot, MEMORY[0]):
                memory = snapshot.layers[layer][MEMORY[0]]
                if memory.dim() == 4:
                    values.setdefault(layer, []).append(memory.double().cpu())
    if not values:
        yield not_run("state_rank", "no layer carries a memory that is a matrix")
        return
    for layer, memories in values.items():
        yield _rank_result(layer, times, memories)


def _rank_result(layer: int, times: list[int], memories: list[Tensor]) -> ProbeResult:
    ranks = torch.stack([effective_rank(memory) for memory in memories])  # [times,B,H]
    singular = torch.stack([torch.linalg.svdvals(memory).mean(0) for memory in memories])  # [times,H,min(K,V)]
    head = int(ranks[-1].mean(0).argmax())
    mean, low, high = mean_interval(ranks[-1, :, head].tolist())
    full, heads = singular.shape[-1], ranks.shape[-1]
    found = [
        drawn.series(f"head {h}", dict(zip(times, ranks[:, :, h].mean(1).tolist(), strict=True))) for h in range(heads)
    ]
    grids = [_singular(layer, h, times, singular[:, h]) for h in range(min(heads, drawn.MOST_LINES))]
    return ProbeResult(
        f"state_rank/layer{layer}", mean, "pass" if low >= COLLAPSED else "fail",
        f"After {times[-1]} tokens the memory of head {head} has an effective rank of {mean:.2f} of {full}; one write"
        " alone would give 1.",
        low=low, high=high, n=ranks.shape[1], chance=1.0, threshold=COLLAPSED,
        details={"times": times, "effective_rank": ranks.mean(1).tolist(), "singular_values": singular.tolist(),
                 "pictures": [drawn.lines(found, title=f"Effective rank over time, layer {layer}",
                                          x_label="tokens read (doubling scale)", y_label="effective rank", log_x=True),
                              *grids]},
    )  # fmt: skip


def _singular(layer: int, head: int, times: list[int], values: Tensor) -> dict[str, Any]:
    shown = sorted({min(values.shape[1], 1 << i) for i in range(values.shape[1].bit_length() + 1)})
    return drawn.grid(
        [values[:, i - 1].tolist() for i in shown], [str(i) for i in shown], [str(t) for t in times],
        title=f"Singular values over time, layer {layer}, head {head}", x_label="tokens read", y_label="which, by size",
    )  # fmt: skip


CONTENT = Row("D5", "State content", "Does the memory hold the asked pair above its noise?", "diagnostic", run_content)
RANK_OVER_TIME = Row("D6", "State rank", "Of what rank is the memory while a text is read?", "diagnostic",
                     run_rank_over_time)  # fmt: skip
