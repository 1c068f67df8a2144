"""Ask a model the questions of a task and count what it says.

A model is a function from tokens to logits; tasks know nothing else of it. Answers are scored teacher-forced:
the logits at the cue give the first token, those at the answer's own tokens the next ones, and an answer is
right when all of them are. Episodes are padded on the right and carry no document ids: a causal model cannot
see the padding.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groundthink.errors import TaskError
from groundthink.records import Proportion
from groundthink.tasks.task import Chance, Episode, Ids, Query, Task

Predict = Callable[[Tensor], Tensor]
CLASSES = ("correct", "stale", "other_in_context", "absent", "other")


@dataclass(frozen=True)
class TaskResult:
    """What a model scored.

    Attributes:
        task, options, digest, split, seed: which questions.
        n_episodes: how many episodes.
        exact: right answers of all queries. Where episodes hold more than one query they are not independent,
            and the interval is too narrow: use `whole_episodes`, or ask one query per episode, as tests do.
        whole_episodes: episodes with every answer right; independent trials always.
        confusion: correct, stale (a value that the key had before), other_in_context (a value stored in the
            episode, but not for this key), absent ("absent" said of a stored key), other; they add up to the
            queries.
        by_distance: `low-high` in tokens, or `absent` for keys never stored, to right answers.
        by_kind: the slices that a task names (`new`, `untouched`), to right answers; empty if it names none.
        by_token: right tokens among those of all answers: where answers are long, most may be nearly right.
        stale: old values said of keys that were bound anew; None without such keys.
        false_recall: stored values said where ABSENT was right; None without absent keys.
        chance: what guessing scores.
        min_distance, max_distance: of the stored keys that were asked for; None without any.
        episode_hits: for each episode, right or wrong for each of its queries: paired tests need them.
        answers: for each episode, the tokens said to each of its queries.
    """

    task: str
    options: dict[str, Any]
    digest: str
    split: str
    seed: int
    n_episodes: int
    exact: Proportion
    whole_episodes: Proportion
    confusion: dict[str, int]
    by_distance: dict[str, Proportion]
    by_kind: dict[str, Proportion]
    by_token: Proportion
    stale: Proportion | None
    false_recall: Proportion | None
    chance: Chance
    min_distance: int | None
    max_distance: int | None
    episode_hits: tuple[tuple[bool, ...], ...]
    answers: tuple[tuple[Ids, ...], ...]

    def __post_init__(self) -> None:
        n = sum(len(hits) for hits in self.episode_hits)
        counts = {
            "confusion": sum(self.confusion.values()),
            "by_distance": sum(p.n for p in self.by_distance.values()),
            "exact": self.exact.n,
        }
        if self.by_kind:
            counts["by_kind"] = sum(p.n for p in self.by_kind.values())
        wrong = {name: count for name, count in counts.items() if count != n}
        hits = {sum(map(sum, self.episode_hits)), self.exact.hits, self.confusion["correct"]}
        hits.add(sum(p.hits for p in self.by_distance.values()))
        if self.by_kind:
            hits.add(sum(p.hits for p in self.by_kind.values()))
        if wrong or len(hits) != 1 or len(self.episode_hits) != self.n_episodes:
            raise AssertionError(f"counts do not add up to {n} queries: {counts}, hits {hits}")


def collate(episodes: Sequence[Episode], pad: int, length: int | None = None) -> Tensor:
    """Tokens of episodes, int64 [B, T], padded on the right.

    Raises:
        TaskError: an episode is longer than `length`.
    """
    longest = max(len(episode) for episode in episodes)
    if length is not None and longest > length:
        raise TaskError(f"an episode of {longest} tokens does not fit into {length}", fix="raise length.")
    tokens = np.full((len(episodes), length or longest), pad, dtype=np.int64)
    for row, episode in zip(tokens, episodes, strict=True):
        row[: len(episode)] = episode.tokens
    return torch.from_numpy(tokens)


def answers_to(logits: Tensor, episodes: Sequence[Episode]) -> Iterator[tuple[Ids, ...]]:
    """The most likely tokens at the answers of each episode, one tuple per query.

    Args:
        logits: [B, T, vocab], T at least the longest episode, B the number of episodes.
        episodes: the rows.

    Raises:
        TaskError: the shape is another, or a logit that is needed is NaN.
    """
    longest = max(len(episode) for episode in episodes)
    if logits.dim() != 3 or logits.shape[0] != len(episodes) or logits.shape[1] < longest:
        raise TaskError(
            f"logits have the shape {tuple(logits.shape)}, not [{len(episodes)}, {longest} or more, vocab]",
            where="predict",
            fix="return logits for every position.",
        )
    for row, episode in zip(logits, episodes, strict=True):
        found = []
        for query in episode.queries:
            needed = row[query.query_position : query.query_position + len(query.value)]
            if needed.isnan().any():
                raise TaskError("NaN among the logits", where="predict", fix="find what made it.")
            found.append(tuple(needed.argmax(-1).tolist()))
        yield tuple(found)


def classify(answer: Ids, query: Query, absent: int) -> str:
    """Which of `CLASSES` an answer falls into."""
    if answer == query.value:
        return "correct"
    if answer in query.stale_values:
        return "stale"
    if answer in query.in_context_values:
        return "other_in_context"
    return "absent" if answer == (absent,) else "other"


def evaluate(
    task: Task,
    predict: Predict,
    *,
    n: int = 400,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 64,
    length: int | None = None,
    edges: Sequence[int] | None = None,
) -> TaskResult:
    """Score `n` episodes; the same (task, seed, split) gives every model the same ones.

    Args:
        task: the questions.
        predict: tokens int64 [B, T] -> logits [B, T, vocab]; causal.
        n: episodes.
        seed, split: which ones.
        batch_size: episodes per call; it changes no answer of a causal model.
        length: pad every batch to this length; None: to the longest episode in it.
        edges: lower ends of the distance buckets; None: powers of two.

    Raises:
        TaskError: an episode longer than `length`, logits of another shape, NaN.
    """
    if n < 1 or batch_size < 1:
        raise TaskError(f"n {n} and batch_size {batch_size} must be at least 1", where=f"task {task.name}")
    bounds = sorted({0, *(edges if edges is not None else (2**k for k in range(40)))})
    answers: list[tuple[Ids, ...]] = []
    hits: list[tuple[bool, ...]] = []
    asked: list[tuple[Query, Ids, str]] = []
    for start in range(0, n, batch_size):
        episodes = list(task.episodes(seed, split, min(batch_size, n - start), start=start))
        with torch.no_grad():
            logits = predict(collate(episodes, task.vocabulary.pad, length))
        for episode, said in zip(episodes, answers_to(logits, episodes), strict=True):
            pairs = zip(said, episode.queries, strict=True)
            classes = [classify(answer, query, task.vocabulary.absent) for answer, query in pairs]
            answers.append(said)
            hits.append(tuple(name == "correct" for name in classes))
            asked += zip(episode.queries, said, classes, strict=True)
    distances = [query.distance for query, _, _ in asked if query.distance is not None]
    return TaskResult(
        task=task.name,
        options=task.options,
        digest=task.digest,
        split=split,
        seed=seed,
        n_episodes=n,
        exact=_share(name == "correct" for _, _, name in asked),
        whole_episodes=_share(map(all, hits)),
        confusion={name: sum(found == name for _, _, found in asked) for name in CLASSES},
        by_distance=_by_distance(asked, bounds),
        by_kind=_by_kind(asked),
        by_token=_share(a == b for query, said, _ in asked for a, b in zip(said, query.value, strict=True)),
        stale=_share_of([name == "stale" for query, _, name in asked if query.stale_values]),
        false_recall=_share_of([name == "other_in_context" for query, _, name in asked if query.revealed_at is None]),
        chance=task.chance(),
        min_distance=min(distances, default=None),
        max_distance=max(distances, default=None),
        episode_hits=tuple(hits),
        answers=tuple(answers),
    )


def _share(trials: Iterable[bool]) -> Proportion:
    outcomes = list(trials)
    return Proportion(sum(outcomes), len(outcomes))


def _share_of(trials: list[bool]) -> Proportion | None:
    return _share(trials) if trials else None


def _by_distance(asked: Sequence[tuple[Query, Ids, str]], bounds: Sequence[int]) -> dict[str, Proportion]:
    buckets: dict[int, list[bool]] = {}
    for query, _, name in asked:
        bucket = -1 if query.distance is None else bisect.bisect_right(bounds, query.distance) - 1
        buckets.setdefault(bucket, []).append(name == "correct")
    return {_bucket_name(bounds, bucket): _share(found) for bucket, found in sorted(buckets.items())}


def _by_kind(asked: Sequence[tuple[Query, Ids, str]]) -> dict[str, Proportion]:
    kinds: dict[str, list[bool]] = {}
    for query, _, name in asked:
        kinds.setdefault(query.kind, []).append(name == "correct")
    return {} if set(kinds) == {""} else {kind: _share(found) for kind, found in sorted(kinds.items())}


def _bucket_name(bounds: Sequence[int], bucket: int) -> str:
    if bucket < 0:
        return "absent"
    if bucket + 1 == len(bounds):
        return f"{bounds[bucket]}-"
    return f"{bounds[bucket]}-{bounds[bucket + 1] - 1}"
