"""Questions read up to a boundary once; every arm of every causal test goes on from the snapshots there.

Long texts are read in segments, so that neither their logits nor their activations exist at the same time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from groundthink.errors import TaskError
from groundthink.model import Snapshot
from groundthink.probes.face import Model, device_of, mode, read_on
from groundthink.probes.intervention import MEMORY, carriers
from groundthink.probes.recall import Questions, tokens_per_pass, top
from groundthink.records import Proportion

MINE = "mine"
# Tokens of one row that go through the model at once, and rows at once: a CPU's cache wants little, a GPU much.
_SEGMENT = 256
_ROWS = {"cpu": 32}
_ROWS_ELSEWHERE = 128
# Snapshots that are kept for the next arm, and no more than this share of what a GPU has left; beyond that they are
# made again for each.
_KEPT_BYTES = {"cpu": 2**31}
_KEPT_BYTES_ELSEWHERE, _KEPT_SHARE = 2**34, 1 / 3


def _room(device: torch.device) -> float:
    """Bytes of snapshots that may be kept."""
    if device.type != "cuda":
        return _KEPT_BYTES.get(device.type, _KEPT_BYTES_ELSEWHERE)
    return min(_KEPT_BYTES_ELSEWHERE, _KEPT_SHARE * torch.cuda.mem_get_info(device)[0])


T = TypeVar("T")
Arm = Callable[["Block"], Tensor]
Tick = Callable[[], None]


def block_shape(model: Model, length: int) -> tuple[int, int]:
    """Rows that are read together, and tokens of each that go through the model at once."""
    tokens = tokens_per_pass(model, last=True)
    rows = max(1, min(tokens // min(_SEGMENT, length), _ROWS.get(device_of(model).type, _ROWS_ELSEWHERE)))
    return rows, max(1, tokens // rows)


def read(model: Model, ids: Tensor, segment: int, snapshot: Snapshot | None = None) -> tuple[Tensor, Snapshot]:
    """Logits [B,vocabulary] after the last token of ids [B,T], and the snapshot there, read in segments."""
    logits = None
    for part in ids.split(segment, 1):
        logits, snapshot = read_on(model, part, snapshot)
    assert logits is not None
    assert snapshot is not None
    return logits, snapshot


@dataclasses.dataclass(eq=False)
class Block:
    """Some rows of the questions at their boundary.

    Attributes:
        model: that reads.
        rows: which ones.
        prompts: [b,T] int64 on the model's device.
        at: the boundary t*.
        segment: tokens read at once.
    """

    model: Model
    rows: slice
    prompts: Tensor
    at: int
    segment: int
    make: Callable[[str, slice], Tensor]
    keep: bool = False
    kept: dict[str, Snapshot] = dataclasses.field(default_factory=dict)

    @property
    def rest(self) -> Tensor:
        """What comes after the boundary, the question included."""
        return self.prompts[:, self.at :]

    @property
    def mine(self) -> Snapshot:
        """The recipients at the boundary."""
        return self.snapshot(MINE)

    def text(self, who: str) -> Tensor:
        """Prompts [b,T] of the recipients (`mine`) or of a kind of donor."""
        return self.prompts if who == MINE else self.make(who, self.rows).to(self.prompts.device)

    def snapshot(self, who: str) -> Snapshot:
        """What the recipients (`mine`) or a kind of donor carry at the boundary."""
        found = self.kept.get(who)
        if found is None:
            found = read(self.model, self.text(who)[:, : self.at], self.segment)[1]
            if self.keep:
                self.kept[who] = found
        return found

    def head(self, n: int) -> Block:
        """The first `n` rows."""
        first = torch.arange(n)
        kept = {who: snapshot.select(first) for who, snapshot in self.kept.items()}
        rows = slice(self.rows.start, self.rows.start + n)
        return dataclasses.replace(self, rows=rows, prompts=self.prompts[:n], kept=kept)

    def after(self, snapshot: Snapshot, rest: Tensor | None = None) -> Tensor:
        """Logits [b,vocabulary] at the end of the prompts (or of another `rest`), gone on from a snapshot."""
        return read(self.model, self.rest if rest is None else rest, self.segment, snapshot)[0]

    def said(self, snapshot: Snapshot, rest: Tensor | None = None) -> Tensor:
        """The most likely token [b] there."""
        return top(self.after(snapshot, rest))


class Prefilled:
    """Questions, their donors and the boundary t*; arms are functions of a `Block`.

    Args:
        model: that reads.
        questions: the recipients.
        at: the boundary t*.
        giver: makes the donors of a kind, row by row those of the questions.
        tick: called after every block of every arm.

    Raises:
        TaskError: the boundary leaves nothing before or after it; inside: donors that differ after the boundary.
    """

    def __init__(
        self,
        model: Model,
        questions: Questions,
        *,
        at: int,
        giver: Callable[[str], Questions] | None = None,
        tick: Tick | None = None,
    ) -> None:
        length = questions.prompts.shape[1]
        if not 0 < at < length:
            raise TaskError(f"a boundary at {at} of {length} tokens leaves nothing on one side", where="prefilled")
        self.model, self.questions, self.at = model, questions, at
        self._giver, self._tick = giver, tick
        self._givers: dict[str, Questions] = {}
        self._said: dict[str, Tensor] = {}
        rows, segment = block_shape(model, length)
        if rows > 2 and len(questions) % rows == 1:
            rows -= 1  # a block of one row has nobody to shuffle with
        self.blocks = [
            Block(
                model, slice(start, min(start + rows, len(questions))),
                questions.prompts[start : start + rows].to(device_of(model)), at, segment, self._prompts,
            )
            for start in range(0, len(questions), rows)
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self.questions)

    def donors(self, kind: str) -> Questions:
        """The donors of a kind."""
        if kind not in self._givers:
            if self._giver is None:
                raise TaskError(f"there are no donors {kind!r}", where="prefilled", fix="say how they are made")
            found = self._giver(kind)
            if not torch.equal(found.prompts[:, self.at :], self.questions.prompts[:, self.at :]):
                raise TaskError("donors differ from their recipients after the boundary", where=f"donors {kind}")
            self._givers[kind] = found
        return self._givers[kind]

    def said(self, name: str, arm: Arm, *, n: int | None = None) -> Tensor:
        """The answers [n] of an arm to the first `n` questions (None: all), asked once under each name."""
        wanted = len(self) if n is None else min(n, len(self))
        found = self._said.get(name)
        if found is None or len(found) < wanted:
            found = torch.cat(self.map(arm, wanted))
            self._said[name] = found
        return found[:wanted]

    def map(self, function: Callable[[Block], T], n: int | None = None) -> list[T]:
        """What a function makes of each block of the first `n` questions, in evaluation mode."""
        found = []
        with mode(self.model, training=False), torch.no_grad():
            self._decide()
            for block in self.blocks:
                if n is not None and block.rows.start >= n:
                    break
                cut = n is not None and block.rows.stop > n
                found.append(function(block.head(n - block.rows.start) if cut else block))  # type: ignore[operator]
                if self._tick is not None:
                    self._tick()
        return found

    def base(self) -> Tensor:
        """The answers [n] without any intervention."""
        return self.said("base", lambda block: block.said(block.mine))

    def share(self, said: Tensor, answers: Tensor) -> Proportion:
        """How often the first answers are these."""
        return Proportion(int((said == answers[: len(said)]).sum()), len(said))

    def accuracy(self) -> Proportion:
        """Right answers without any intervention."""
        return self.share(self.base(), self.questions.answers)

    def layers(self, name: str = MEMORY[0]) -> tuple[int, ...]:
        """The layers that carry a tensor of this name."""
        with mode(self.model, training=False), torch.no_grad():
            return carriers(self.model.prefill(self.blocks[0].prompts[:1, :1])[1], name)

    def _prompts(self, kind: str, rows: slice) -> Tensor:
        return self.donors(kind).prompts[rows]

    def _decide(self) -> None:
        """Keep snapshots if those of the recipients and of five other kinds fit."""
        first = self.blocks[0]
        if first.keep or first.kept:
            return
        first.keep = True
        size = sum(x.numel() * x.element_size() for layer in first.mine.layers for x in layer.values())
        keep = 6 * size * len(self.blocks) <= _room(device_of(self.model))
        for block in self.blocks:
            block.keep = keep
