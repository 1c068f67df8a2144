"""C0 and C1: nothing from the future, and the same text however it is read. Both are exact in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from groundthink.probes.bench import Bench, Point, random_tokens
from groundthink.probes.causality import causality, shortest_text
from groundthink.probes.parity import parity
from groundthink.probes.row import Row
from groundthink.records import ProbeResult

LONGEST_PARITY = 512  # tokens; step by step costs a pass for each
LONGEST_CAUSALITY = 1024  # tokens; a leak beyond is the business of C0n, which costs a pass only


def texts(bench: Bench, longest: int) -> Tensor:
    """Two rows of random tokens and two that end with an episode and its cue, int64 [4,T], T at most `longest`."""
    prompts = bench.asked(max(bench.points, key=lambda point: (point.length <= longest, point.length))).prompts
    prompts = prompts[:2, -longest:]
    length = max(prompts.shape[1], shortest_text(bench.model.sizes.window_size))
    ids = random_tokens(bench, "texts", 4, length)
    ids[: len(prompts), length - prompts.shape[1] :] = prompts
    return ids


def run_causality(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """C0, on random tokens and on the very episodes asked."""
    ids = texts(bench, LONGEST_CAUSALITY)
    asked = bench.task.with_options(n_queries=4)
    (episode,) = asked.episodes(bench.seed_of("answered"), "test", 1)
    # A leak may open at a question only, so one row ends with answered ones; changes begin at the answers.
    ids[1, -len(episode.tokens) :] = torch.from_numpy(episode.tokens)
    shift = ids.shape[1] - len(episode.tokens)
    answers = [shift + query.query_position + 1 for query in episode.queries]
    yield from causality(bench.model, ids, seed=bench.seed, positions=answers)


def run_parity(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """C1, on the end of the same texts: a state that goes wrong does so at edges, and far from the start."""
    longest = max(LONGEST_PARITY, shortest_text(bench.model.sizes.window_size))
    with torch.no_grad():
        yield from parity(bench.model, texts(bench, LONGEST_CAUSALITY)[:, -longest:])


CAUSALITY = Row(
    "C0",
    "Causality",
    "Does a later token change what the model says earlier?",
    "precondition",
    run_causality,
    core=True,
    gate=True,
)
PARITY = Row(
    "C1",
    "Parity",
    "Is a text the same read whole, in pieces, token by token and from a saved state?",
    "precondition",
    run_parity,
    core=True,
    gate=True,
)
