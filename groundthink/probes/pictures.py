"""Pictures of a model as plain values, by name: what `groundthink probe` shows beside the rows of the certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from groundthink.errors import ConfigError
from groundthink.probes.bench import Bench
from groundthink.probes.curves import gate_statistics, needle_map, recall_curves
from groundthink.probes.cuts import S_READ, cut_own_reads, cut_reads, layers_with
from groundthink.probes.effective_attention import KEYS, attention_of
from groundthink.probes.recall import ask

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
GROWTH = (1, 2, 4)
STRONGEST = 5  # tokens that are named for each head


def curves(bench: Bench) -> dict[str, Any]:
    """Recall against distance, of the model, its cuts and its twins."""
    arms: dict[str, Any] = {"model": (bench.model, None)}
    if layers_with(bench.model, S_READ):
        arms |= {"S reads cut": (bench.model, cut_reads), "G's own reads cut": (bench.model, cut_own_reads)}
    arms |= {f"{name} twin": (twin, None) for name, twin in bench.twins.items()}
    vocabulary, pairs = bench.task.vocabulary, bench.task.n_pairs
    return recall_curves(arms, vocabulary=vocabulary, n_pairs=pairs, n=max(4, bench.n // 4), seed=bench.seed)


def gates(bench: Bench) -> dict[str, Any]:
    """Write strength and decay by kind of token, over episodes."""
    return gate_statistics(bench.model, bench.asked(bench.points[1]).prompts, bench.task.vocabulary)


def needles(bench: Bench) -> dict[str, Any]:
    """Recall of needles in text by depth and length.

    Raises:
        ConfigError: there are no needles.
    """
    if bench.needle is None:
        raise ConfigError(
            "no needles to hide in text", where="needles", fix="name a run whose recipe has a needle task"
        )
    task = bench.needle.with_options(n_queries=1)
    lengths = [task.length * growth for growth in GROWTH]
    return needle_map(bench.model, task, depths=DEPTHS, lengths=lengths, n=max(1, bench.n // 16), seed=bench.seed)


def attention(bench: Bench) -> dict[str, Any]:
    """The exact effective attention at the question of one episode: by reader and head, the strongest tokens.

    Raises:
        ConfigError: no layer writes a memory.
    """
    writers = layers_with(bench.model, KEYS)
    if not writers:
        raise ConfigError("no layer writes a memory", where="attention")
    task = bench.task.with_options(distance=f"fixed:{max(4, bench.horizon + 1)}")
    questions = ask(task, n=1, seed=bench.seed)
    prompt, tokens = questions.prompts, questions.prompts[0].tolist()
    asked = questions.episodes[0].queries[0].revealed_at
    heads = []
    readers: list[int | None] = [None, *layers_with(bench.model, S_READ)]
    for layer in writers:
        for reader in readers:
            if reader is not None and layer not in _below(writers, reader):
                continue
            head = 0
            while True:
                try:
                    weights = attention_of(bench.model, prompt, layer=layer, head=head, reader=reader)[0, -1]
                except ConfigError:
                    break
                best = weights.abs().topk(min(STRONGEST, len(weights))).indices.tolist()
                heads.append({
                    "writer": layer, "reader": layer if reader is None else reader, "head": head,
                    "at_answer": float(weights[asked]) if asked is not None else 0.0,
                    "strongest": [{"position": i, "token": tokens[i], "weight": float(weights[i])} for i in best],
                    "weights": [float(w) for w in weights.to(torch.float32)],
                })  # fmt: skip
                head += 1
    return {"tokens": tokens, "answer_at": asked, "heads": heads}


def _below(writers: tuple[int, ...], reader: int) -> list[int]:
    return [writer for writer in writers if writer < reader]


PICTURES: dict[str, tuple[str, Callable[[Bench], dict[str, Any]]]] = {
    "curves": ("How does recall fall with distance, for the model, its cuts and its twins?", curves),
    "gates": ("What is written and what is forgotten, by kind of token?", gates),
    "needles": ("Where in a text is a needle found?", needles),
    "attention": ("Which tokens does the memory's answer come from, exactly?", attention),
}
