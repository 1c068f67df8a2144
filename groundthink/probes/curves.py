"""Pictures of a model for the report: recall against distance, needle heat map, gates by kind of token.

Each returns plain values, ready for `records.to_json`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from groundthink.errors import ConfigError
from groundthink.probes.cuts import hooked, layers_with
from groundthink.probes.face import Model, derived_seed, device_of, mode, predict_with
from groundthink.probes.recall import Questions, ask, recall, rows_per_pass
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall
from groundthink.tasks.needle import Needle, depth_length_grid
from groundthink.tasks.scoring import evaluate

BETA, LOG_DECAY = "mixer.hook_beta", "mixer.hook_log_decay"
SLOTS = 4  # of the asked pair, spread over the episode: a curve must not be that of the last pair alone


def curve_distances(horizon: int, window: int) -> list[int]:
    """Exact distances in tokens from inside the window to 16R, denser where something should happen."""
    points = {2, window // 4, window // 2, 3 * window // 4, window - 1, window, window + window // 2}
    points |= {horizon - 2, horizon, horizon + 1, horizon + 8, 2 * horizon, 4 * horizon, 8 * horizon, 16 * horizon}
    return sorted(d for d in points if d >= 2)


def ask_exactly(task: KvRecall, distance: int, *, n: int, seed: int) -> list[Questions]:
    """`n` questions whose asked pair is exactly this far away, from a few slots in equal shares."""
    # One pair is two tokens, so the pair j before the last is 2j tokens farther away than the last.
    furthest = min(task.n_pairs - 1, (distance - 2) // 2)
    slots = sorted({round(furthest * i / (SLOTS - 1)) for i in range(SLOTS)})
    shares = [n // len(slots) + (i < n % len(slots)) for i in range(len(slots))]
    return [
        ask(
            task.with_options(distance=f"fixed:{distance - 2 * slot}"),
            n=share,
            seed=derived_seed(seed, "curve", distance, slot),
            accept=lambda query: query.distance == distance,
        )
        for slot, share in zip(slots, shares, strict=True)
        if share
    ]


def recall_curves(
    arms: Mapping[str, tuple[Model, Callable[[Model], AbstractContextManager[None]] | None]],
    *,
    vocabulary: Vocabulary,
    n_pairs: int = 16,
    n: int = 200,
    seed: int = 0,
    distances: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Recall against the exact distance of the asked pair, the same questions to every arm.

    Args:
        arms: curves by name: a model, and a cut of it (`probes.cut_reads`) or None. The first names the window.
        vocabulary, n_pairs: of the episodes.
        n: questions a point.
        seed: of every episode.
        distances: in tokens; None for `curve_distances`.

    Returns:
        `horizon` is the largest finite one of the arms, as in a certificate; None if none is finite.

    Raises:
        ConfigError: no arm.
    """
    if not arms:
        raise ConfigError("no curve to draw", where="recall_curves", fix="give at least one model")
    task = KvRecall(vocabulary, n_pairs=n_pairs, distance="fixed:2")
    first = next(iter(arms.values()))[0]
    finite = [int(model.horizon) for model, _ in arms.values() if math.isfinite(model.horizon)]
    window = first.sizes.window_size
    reach = max(finite, default=window)
    points = curve_distances(reach, window) if distances is None else sorted(set(distances))
    asked = {distance: ask_exactly(task, distance, n=n, seed=seed) for distance in points}
    curves = []
    for name, (model, cut) in arms.items():
        found = []
        with contextlib.nullcontext() if cut is None else cut(model):
            for distance, groups in asked.items():
                answered = [recall(model, questions) for questions in groups]
                total = sum(answered[1:], start=answered[0])
                found.append({"distance": distance, **total.right.as_dict()})
        curves.append({"name": name, "points": found})
    return {
        "horizon": reach if finite else None,
        "window": window,
        "chance": task.chance().in_context,
        "curves": curves,
    }


def needle_map(
    model: Model, task: Needle, *, depths: Sequence[float], lengths: Sequence[int], n: int = 50, seed: int = 0
) -> dict[str, Any]:
    """Recall of a needle in text by depth and length.

    Returns:
        `rates[i][j]` for `depths[i]` and `lengths[j]`.

    Raises:
        ConfigError: the task cannot be asked at such a depth or length.
    """
    rates = {(depth, length): 0.0 for depth in depths for length in lengths}
    for depth, length, cell in depth_length_grid(task, depths, lengths):
        result = evaluate(cell, predict_with(model), n=n, seed=seed, batch_size=rows_per_pass(model, length))
        rates[depth, length] = result.exact.rate
    return {
        "depths": list(depths),
        "lengths": list(lengths),
        "rates": [[rates[depth, length] for length in lengths] for depth in depths],
        "n": n,
        "chance": task.chance().in_context,
    }


def token_kinds(tokens: Tensor, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Masks [B,T] of text, query, key, value and filler tokens; other specials belong to none."""

    def within(ids: range) -> Tensor:
        return (tokens >= ids.start) & (tokens < ids.stop)

    return {
        "key": within(vocabulary.keys),
        "value": within(vocabulary.values),
        "filler": within(vocabulary.filler),
        "query": tokens == vocabulary.query,
        "text": within(range(vocabulary.text)),
    }


def gate_statistics(model: Model, tokens: Tensor, vocabulary: Vocabulary) -> dict[str, Any]:
    """Mean write strength beta and mean decay of every G layer, by kind of token.

    Args:
        model: the model.
        tokens: [B,T] int64, of episodes and text; kinds that do not occur are left out.
        vocabulary: which ids are of which kind.
    """
    layers = layers_with(model, BETA)
    sums: dict[tuple[int, str, str], float] = {}
    counts: dict[tuple[int, str, str], int] = {}

    def listen(gate: str, kinds: dict[str, Tensor]) -> Callable[[int, Tensor], None]:
        def hear(layer: int, output: Tensor) -> None:
            values = output.double().exp() if gate == "decay" else output.double()
            for kind, mask in kinds.items():
                key = (layer, gate, kind)
                sums[key] = sums.get(key, 0.0) + float(values[mask].sum())
                counts[key] = counts.get(key, 0) + int(mask.sum()) * values.shape[-1]

        return hear

    with mode(model, training=False), torch.no_grad():
        for rows in tokens.to(device_of(model)).split(rows_per_pass(model, tokens.shape[1])):
            kinds = token_kinds(rows, vocabulary)
            with (
                hooked(model, BETA, layers, listen("beta", kinds)),
                hooked(model, LOG_DECAY, layers, listen("decay", kinds)),
            ):
                model.prefill(rows)

    def means(layer: int, gate: str) -> dict[str, float]:
        found = [key for key, count in counts.items() if key[:2] == (layer, gate) and count]
        return {key[2]: sums[key] / counts[key] for key in found}

    return {"layers": [{"layer": i, "beta": means(i, "beta"), "decay": means(i, "decay")} for i in layers]}
