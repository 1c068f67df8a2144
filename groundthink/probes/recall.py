"""Recall at a distance: one question per episode, exact top-1 over the whole vocabulary, intervals and chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from groundthink.errors import TaskError
from groundthink.probes.face import Model, device_of, keeps_logits, mode, read_on
from groundthink.records import ProbeResult, Proportion
from groundthink.tasks import Episode, Query, Task
from groundthink.tasks.kv_recall import KvRecall

RECALL = 0.90  # what the lower bound of recall has to reach
# Logits of one forward pass, at most: 128 MiB in float32, and 2 GiB on a GPU.
_LOGITS = {"cpu": 2**25}
_LOGITS_ELSEWHERE = 2**29
# Tokens of one forward pass: on a CPU more only falls out of the cache, a GPU wants to be filled.
_TOKENS = {"cpu": 2**13}
_TOKENS_ELSEWHERE = 2**16
_DRAWS = 1000  # episodes drawn for each one wanted before a condition is called impossible


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """One-query episodes of one length, cut right after the cue: the answer is not in them.

    Attributes:
        prompts: [n,T] int64; the last token is the last of the cue.
        answers: [n] int64, the right next token.
        stored: [n,N] int64, the values in the context.
        distances: [n] int64, from the token that reveals the answer to the end of the prompt.
        episodes: whence they come.
        chance: what guessing scores: `vocabulary`, `value_range`, `in_context`.
    """

    prompts: Tensor
    answers: Tensor
    stored: Tensor
    distances: Tensor
    episodes: tuple[Episode, ...]
    chance: dict[str, float]

    @classmethod
    def of(cls, episodes: Sequence[Episode], chance: dict[str, float]) -> Questions:
        """Stack episodes that have one query with a one-token answer, and one length.

        Raises:
            TaskError: episodes that do not fit together.
        """
        queries = [_only_query(episode) for episode in episodes]
        if len({query.query_position for query in queries}) != 1:
            raise TaskError("episodes of different lengths cannot be asked together", fix="use distance=fixed:d")
        end = queries[0].query_position + 1
        return cls(
            torch.stack([torch.from_numpy(episode.tokens[:end]) for episode in episodes]),
            torch.tensor([query.value[0] for query in queries]),
            torch.tensor([[value[0] for value in query.in_context_values] for query in queries]),
            torch.tensor([query.distance or 0 for query in queries]),
            tuple(episodes),
            chance,
        )

    def __len__(self) -> int:
        return len(self.answers)


@dataclasses.dataclass(frozen=True)
class Recalled:
    """What a model answered to `Questions`.

    Attributes:
        right: answers that are right.
        other_in_context: answers that are another value of the context: salience without association.
        other: all the rest.
    """

    right: Proportion
    other_in_context: int
    other: int

    def __post_init__(self) -> None:
        if self.right.hits + self.other_in_context + self.other != self.right.n:
            raise AssertionError(f"counts do not add up: {self}")

    def __add__(self, more: Recalled) -> Recalled:
        right = Proportion(self.right.hits + more.right.hits, self.right.n + more.right.n)
        return Recalled(right, self.other_in_context + more.other_in_context, self.other + more.other)


def ask(
    task: Task, *, n: int, seed: int, split: str = "test", accept: Callable[[Query], bool] | None = None
) -> Questions:
    """The first `n` one-query episodes of a task under a seed, or the first whose query is accepted.

    Raises:
        TaskError: hardly any episode is accepted.
    """
    found: list[Episode] = []
    block = max(n, 64)  # so that "hardly any" is told from bad luck when few are wanted
    for index in range(0, _DRAWS * block, block):
        found += [
            episode
            for episode in task.episodes(seed, split, block, start=index)
            if accept is None or accept(_only_query(episode))
        ]
        if len(found) >= n:
            return Questions.of(found[:n], dataclasses.asdict(task.chance()))
        if index >= 20 * block and not found:
            break
    raise TaskError(f"hardly any of {index + block} episodes is what is asked for", where=f"task {task.name}")


def ask_near(task: KvRecall, *, window: int, n: int, seed: int) -> Questions:
    """Episodes of the same kind whose asked pair lies within half a window: is the task understood at all?

    A cue has two tokens, so nothing is nearer than 2.
    """
    near = task.with_options(distance="fixed:2")
    return ask(near, n=n, seed=seed, accept=lambda query: (query.distance or 0) < max(window / 2, 3))


def tokens_per_pass(model: Model, *, last: bool = False) -> int:
    """Tokens of one forward pass; `last`: no logits are wanted but those of the last token of each row."""
    device = device_of(model).type
    tokens, logits = _TOKENS.get(device, _TOKENS_ELSEWHERE), _LOGITS.get(device, _LOGITS_ELSEWHERE)
    return tokens if last and keeps_logits(model) else min(tokens, logits // model.sizes.vocab_size)


def rows_per_pass(model: Model, length: int, *, last: bool = False) -> int:
    """Rows of one forward pass over texts of this length; `last` as in `tokens_per_pass`."""
    return max(1, tokens_per_pass(model, last=last) // length)


def answers_of(model: Model, prompts: Tensor) -> Tensor:
    """The most likely token [n] after each prompt [n,T]; -1 where logits are not finite."""
    said = []
    with mode(model, training=False), torch.no_grad():
        for rows in prompts.split(rows_per_pass(model, prompts.shape[1], last=True)):
            said.append(top(read_on(model, rows.to(device_of(model)))[0]))
    return torch.cat(said)


def top(logits: Tensor) -> Tensor:
    """The most likely token [n] of logits [n,vocabulary], on the CPU; -1 where one is NaN: that is no answer."""
    return torch.where(logits.isnan().any(-1), -1, logits.argmax(-1)).cpu()


def classify(said: Tensor, questions: Questions) -> Recalled:
    """Right, another value of the context, or neither."""
    right = said == questions.answers
    stored = (said[:, None] == questions.stored).any(-1) & ~right
    hits, others, n = int(right.sum()), int(stored.sum()), len(questions)
    return Recalled(Proportion(hits, n), others, n - hits - others)


def recall(model: Model, questions: Questions) -> Recalled:
    """What the model answers."""
    return classify(answers_of(model, questions.prompts), questions)


def recall_row(
    name: str,
    found: Recalled,
    questions: Questions,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    meaning: str = "",
) -> ProbeResult:
    """The record of one recall.

    Args:
        name: of the probe.
        found: what was answered.
        questions: what was asked.
        at_least: held against the lower Wilson bound.
        at_most: held against the upper one. Without either the row is information.
        meaning: beginning of the sentence; empty for the plain one.
    """
    right, low, high = found.right, int(questions.distances.min()), int(questions.distances.max())
    verdict = "info"
    if at_least is not None or at_most is not None:
        passed = (at_least is None or right.low >= at_least) and (at_most is None or right.high <= at_most)
        verdict = "pass" if passed else "fail"
    details: dict[str, Any] = {
        "distances": {"least": low, "greatest": high},
        "length": questions.prompts.shape[1],
        "chance": questions.chance,
        "confusion": {"right": right.hits, "other_in_context": found.other_in_context, "other": found.other},
    }
    return ProbeResult(
        name,
        right.rate,
        verdict,
        f"{meaning or 'Recall'}, {low} to {high} tokens after the value: {right}, chance"
        f" {questions.chance['in_context']:.3f} among the stored values.",
        low=right.low,
        high=right.high,
        n=right.n,
        chance=questions.chance["in_context"],
        threshold=at_least if at_least is not None else at_most,
        details=details,
    )


def _only_query(episode: Episode) -> Query:
    if len(episode.queries) != 1 or len(episode.queries[0].value) != 1:
        raise TaskError("a probe asks one question with one token for an answer", fix="use n_queries=1")
    return episode.queries[0]
