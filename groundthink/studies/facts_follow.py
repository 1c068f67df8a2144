"""Whether answers about facts follow a memory that is transplanted: the proof that the memory holds them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from groundthink.errors import TaskError
from groundthink.model import HybridForCausalLM
from groundthink.probes import transplant
from groundthink.probes.face import device_of, mode
from groundthink.records import ProbeResult, Proportion
from groundthink.studies.study import share
from groundthink.tasks import Episode
from groundthink.tasks.facts import COLOURS, Facts
from groundthink.tasks.task import Ids

DRAWS = 20  # episodes looked at for each one wanted


def follow_rates(model: HybridForCausalLM, task: Facts, *, n: int, seed: int) -> tuple[ProbeResult, ProbeResult]:
    """Share of answers that are the donor's colour, and share that stay the recipient's.

    The donor's text is the same with another colour in the asked fact. Its memories replace the recipient's at t*: more
    than R tokens after the last fact, and R before the question, so that no window and no convolution carries over.

    Raises:
        TaskError: the filler leaves no such place, or hardly any episode has a donor.
    """
    horizon = int(model.horizon)
    follows, keeps, done = 0, 0, 0
    for episode in task.episodes(seed, "test", DRAWS * n):
        (query,) = episode.queries
        at = query.query_position - len(query.cue) - horizon
        assert query.revealed_at is not None
        if at <= query.revealed_at + horizon:
            raise TaskError(
                f"no place for a transplant {horizon} tokens after the facts and before the question",
                where="follow",
                fix=f"raise filler_tokens above {2 * horizon + 8} and put the facts at the start",
            )
        other = _other_colour(task, episode, np.random.default_rng([seed, done]))
        if other is None:
            continue
        said = _after_transplant(model, episode, other, at)
        follows += said == other
        keeps += said == query.value
        done += 1
        if done == n:
            return share("follow", Proportion(follows, n)), share("keep", Proportion(keeps, n))
    raise TaskError(f"hardly any of {DRAWS * n} episodes has a colour to exchange", where="follow")


def _other_colour(task: Facts, episode: Episode, generator: np.random.Generator) -> Ids | None:
    """A colour of the same number of tokens that no fact of the episode has."""
    (query,) = episode.queries
    colours = [tuple(task.tokenizer.encode(f" {word}")) for word in COLOURS]
    spare = [c for c in colours if len(c) == len(query.value) and c not in query.in_context_values]
    return spare[int(generator.integers(len(spare)))] if spare else None


def _after_transplant(model: HybridForCausalLM, episode: Episode, other: Ids, at: int) -> Ids:
    """What the recipient says with the donor's memory: greedily, as many tokens as a colour has."""
    (query,) = episode.queries
    donor = episode.tokens.copy()
    assert query.revealed_at is not None
    stop = query.revealed_at + 1 - len(query.tail)
    donor[stop - len(query.value) : stop] = other
    device = device_of(model)

    def row(tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(tokens)[None].to(device)

    with mode(model, training=False), torch.no_grad():
        mine = model.prefill(row(episode.tokens[:at]))[1]
        theirs = model.prefill(row(donor[:at]))[1]
        logits, snapshot = model.resume(transplant(mine, theirs), row(episode.tokens[at : query.query_position + 1]))
        said = [int(logits[0, -1].argmax())]
        for _ in range(len(other) - 1):
            logits, snapshot = model.resume(snapshot, torch.tensor([[said[-1]]], device=device))
            said.append(int(logits[0, -1].argmax()))
    return tuple(said)


def asked_task(task: Facts) -> Facts:
    """One question an episode, all facts at the start."""
    return dataclasses.replace(task, n_queries=1, position="start")
