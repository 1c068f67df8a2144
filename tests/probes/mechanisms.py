"""A fast associative memory whose mechanism is known, with the gates, keys and heads that the rows reach for."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from groundthink.layers import freeze
from groundthink.model import Snapshot
from groundthink.tasks import Vocabulary

HORIZON = 4


class Gated:
    """Two heads of S += beta k (v - S^T k)^T with S *= decay at every token; the second head answers.

    kind: `memory` is honest; `elsewhere` answers from notes that no gate and no swap of memories reaches; `fragile`
    answers from notes, and only while its memory is not empty; `forgets` loses a hundredth at each token of filler,
    which changes no argmax, and all of it after 40 such tokens.
    """

    horizon = HORIZON

    def __init__(self, kind: str, vocabulary: Vocabulary) -> None:
        self.kind, self.vocabulary = kind, vocabulary
        self.sizes = SimpleNamespace(window_size=16, vocab_size=vocabulary.size)
        mixer = nn.Module()
        mixer.hook_k, mixer.hook_beta, mixer.hook_log_decay = nn.Identity(), nn.Identity(), nn.Identity()
        block = nn.Module()
        block.mixer = mixer
        self.mixer, self.blocks = mixer, [block]

    def prefill(self, ids: Tensor) -> tuple[Tensor, Snapshot]:
        """Start empty."""
        rows, keys = ids.shape[0], len(self.vocabulary.keys)
        empty = torch.zeros(rows, 2, keys, self.vocabulary.n_values)
        state = freeze(memory=empty, notes=empty, last=torch.zeros(rows, 2, dtype=torch.int64))
        return self.resume(Snapshot((state,), torch.zeros(rows, dtype=torch.int64)), ids)

    def resume(self, snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
        """Token by token over all rows."""
        v, state = self.vocabulary, dict(snapshot.layers[0])
        memory, notes = state["memory"], state["notes"]
        past = torch.cat([state["last"], ids], 1)
        before, older = past[:, 1:-1], past[:, :-2]
        is_pair = (before >= v.keys.start) & (before < v.keys.stop) & (older != v.query)
        filler = (ids >= v.filler.start) & (ids < v.filler.stop)
        keys = self.mixer.hook_k(self._keys(before)[:, :, None].expand(-1, -1, 2, -1))
        beta = self.mixer.hook_beta(is_pair.float()[..., None].expand(-1, -1, 2))
        fade = torch.where(filler & (self.kind == "forgets"), -0.1, 0.0)
        log_decay = self.mixer.hook_log_decay(fade[..., None].expand(-1, -1, 2))
        values = one_hot((ids - v.values.start).clamp(0, v.n_values - 1), v.n_values).float()
        logits = 0.1 * one_hot(ids, v.size).float() + 0.05 * one_hot(before, v.size).float()
        for t in range(ids.shape[1]):
            memory = memory * log_decay[:, t].exp()[..., None, None]
            memory = self._write(memory, keys[:, t], values[:, t], beta[:, t])
            notes = self._write(notes, keys[:, t], values[:, t], is_pair[:, t, None].float().expand(-1, 2))
            source = memory if self.kind in ("memory", "forgets") else notes
            answer = torch.einsum("bkv,bk->bv", source[:, 1], self._keys(ids[:, t]))
            alive = (memory.flatten(1).abs().sum(1) > 0) | (self.kind != "fragile")
            asked = (past[:, t + 1] == v.query) & alive
            logits[:, t, v.values.start : v.values.stop] += (
                9 * (answer - (self.kind == "forgets") * 0.02).clamp_min(0) * asked[:, None]
            )
        after = freeze(memory=memory, notes=notes, last=past[:, -2:])
        return logits, Snapshot((after,), snapshot.position + ids.shape[1])

    def _keys(self, tokens: Tensor) -> Tensor:
        count = len(self.vocabulary.keys)
        return one_hot((tokens - self.vocabulary.keys.start).clamp(0, count - 1), count).float()

    @staticmethod
    def _write(memory: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
        error = value[:, None] - torch.einsum("bhkv,bhk->bhv", memory, key)
        return memory + torch.einsum("bhk,bhv->bhkv", key, beta[..., None] * error)
