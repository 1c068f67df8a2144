"""The successor language: the next symbol follows the last one, or the language jumps. Its entropy is known.

    tokens   BOS  v7 v8 v9 v2 v3        p = 0.7: the successor; else any symbol, each as likely
    labels    .    . v8 v9 v2 v3

The successor has the probability q = p + (1 - p) / n, every other symbol r = (1 - p) / n, so that a token costs
H = -q ln q - (n - 1) r ln r nats at least: perplexity 14.1 for n = 900 and p = 0.7. What a model's loss exceeds H by is
all that is left to learn. `exact` scores the tokens at which the successor did follow. Run this file to see one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundthink.errors import TaskError
from groundthink.records import Z95
from groundthink.tasks.kv_recall import picture
from groundthink.tasks.scoring import collate
from groundthink.tasks.task import Chance, Episode, Ids, Query, Task, Vocabulary, check_split


@dataclass(frozen=True, eq=False)
class Successor(Task):
    """A Markov chain over a ring of symbols; every token but the first is labelled.

    Args:
        n_symbols: symbols of the ring: the first ones of the values; 0 for all of them.
        follow: p, from 0 to below 1.
        length: symbols of an episode.
    """

    name: ClassVar[str] = "successor"
    n_symbols: int = 0
    follow: float = 0.7
    length: int = 64

    def problems(self) -> list[str]:
        """See `Task`."""
        found = []
        if self.n_symbols != 0 and not 2 <= self.n_symbols <= self.vocabulary.n_values:
            found.append(f"n_symbols {self.n_symbols} is not 0 or 2 to the {self.vocabulary.n_values} values")
        elif self._n < 2:
            found.append(f"{self.vocabulary.n_values} values are no ring: raise vocabulary.n_values to 2")
        if not 0 < self.follow < 1:
            found.append(f"follow {self.follow} is not between 0 and 1")
        if self.length < 8:
            found.append(f"length {self.length} is too short to show the language: raise it to 8")
        return found

    @property
    def _n(self) -> int:
        return self.n_symbols or self.vocabulary.n_values

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return 1 + self.length

    @property
    def entropy(self) -> float:
        """Nats a token: what no model can beat on average."""
        r = (1 - self.follow) / self._n
        q = self.follow + r
        return -q * math.log(q) - (self._n - 1) * r * math.log(r)

    @property
    def optimal_perplexity(self) -> float:
        """exp of the entropy."""
        return math.exp(self.entropy)

    def chance(self) -> Chance:
        """See `Task`: of a symbol that followed. To know the rule is to be right."""
        return Chance(1 / self.vocabulary.size, 1 / self._n, 1 / self._n)

    def after(self, token: int) -> int:
        """The successor."""
        start = self.vocabulary.values.start
        return start + (token - start + 1) % self._n

    def rule(self, prefix: NDArray[np.int64]) -> tuple[Ids, int]:
        """The successor of the last token, which is all that it depends on."""
        return (self.after(int(prefix[-1])),), len(prefix) - 1

    def episode(self, generator: np.random.Generator, split: str) -> Episode:
        """See `Task`.

        Raises:
            TaskError: also where no symbol follows another in a hundred draws, as if `follow` were 0.
        """
        check_split(split)
        start, n = self.vocabulary.values.start, self._n
        for _ in range(100):
            jumps = start + generator.integers(0, n, size=self.length)
            follows = generator.random(self.length) < self.follow
            tokens = np.empty(1 + self.length, dtype=np.int64)
            tokens[0], tokens[1] = self.vocabulary.bos, jumps[0]
            for t in range(2, len(tokens)):
                tokens[t] = self.after(int(tokens[t - 1])) if follows[t - 1] else jumps[t - 1]
            labels = tokens.copy()
            labels[:2] = -100  # nothing says what the first symbol is
            stored = tuple((token,) for token in dict.fromkeys(tokens[1:].tolist()))
            queries = tuple(
                Query((), (int(tokens[t + 1]),), (int(tokens[t]),), t, t, stored, rule=self.rule)
                for t in range(1, self.length)
                if tokens[t + 1] == self.after(int(tokens[t]))
            )
            if queries:
                return Episode(tokens, labels, queries)
        raise TaskError(f"no successor in episodes of {self.length}", where="task successor", fix="raise follow")


@dataclass(frozen=True)
class Gap:
    """How far a model is from the best possible.

    Attributes:
        loss: mean cost of a token in nats; low, high: its 95 % interval over episodes.
        entropy: what the best possible model pays.
        n: episodes.
    """

    loss: float
    low: float
    high: float
    entropy: float
    n: int

    @property
    def gap(self) -> float:
        """Nats a token that are left to learn; below 0 by chance only."""
        return self.loss - self.entropy

    def as_dict(self) -> dict[str, float]:
        """Everything, for a record."""
        return {**dataclasses.asdict(self), "gap": self.gap, "perplexity": math.exp(self.loss)}


@torch.no_grad()
def gap_to_entropy(
    task: Successor, predict: Callable[[Tensor], Tensor], *, n: int = 200, seed: int = 0, split: str = "test"
) -> Gap:
    """The loss of a model on the language against its exact entropy.

    Args:
        task: the language.
        predict: tokens int64 [B,T] -> logits [B,T,vocab]; causal.
        n: episodes.
        seed, split: which ones.

    Raises:
        TaskError: fewer than two episodes, which give no interval, or a loss that is not finite.
    """
    if n < 2:
        raise TaskError(f"n {n} gives no interval", where="task successor", fix="ask at least 2 episodes")
    losses: list[Tensor] = []
    for start in range(0, n, 64):
        episodes = list(task.episodes(seed, split, min(64, n - start), start=start))
        tokens = collate(episodes, task.vocabulary.pad)
        logits = predict(tokens)[:, 1:-1].float().cpu()
        cost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 2:], reduction="none")
        losses.append(cost.double().mean(1))
    each = torch.cat(losses)
    if not bool(each.isfinite().all()):
        raise TaskError("a loss is not finite", where="predict", fix="find what made it.")
    mean, half = float(each.mean()), Z95 * float(each.std()) / math.sqrt(n)
    return Gap(mean, mean - half, mean + half, task.entropy, n)


if __name__ == "__main__":
    example = Successor(Vocabulary(), length=10)
    print(picture(example, next(example.episodes(0, "train", 1))))
    print(f"at least {example.entropy:.4f} nats a token, perplexity {example.optimal_perplexity:.2f}")
