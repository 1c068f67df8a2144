"""Models whose mechanism is known, with the face of a model: what the certificate says of them can be checked."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from groundthink.layers import freeze
from groundthink.model import HybridForCausalLM, ModelConfig, Snapshot
from groundthink.tasks import Vocabulary

VOCABULARY = Vocabulary(text=16, n_keys=32, n_values=64, n_filler=16)
HORIZON = 4


class Oracle:
    """Looks keys up in a table; `kind` says where the table lies.

    memory: in the snapshot's memory. elsewhere: in a tensor beside it, the memory is for show. half: even keys in
    one, odd ones in the other. attribute: on the object, not in the snapshot. window: a table that forgets after 16
    tokens. blind: the same, and no memory for show. no_memory: beside, with no memory at all. future: as memory, but
    logits see the next token. deaf: only the last token and the table move logits. wrong: never right.
    """

    def __init__(self, kind: str, vocabulary: Vocabulary = VOCABULARY, horizon: float = HORIZON) -> None:
        self.kind, self.vocabulary, self.horizon = kind, vocabulary, horizon
        self.sizes = SimpleNamespace(window_size=16, vocab_size=vocabulary.size)
        self.table = torch.zeros(0)

    def prefill(self, ids: Tensor) -> tuple[Tensor, Snapshot]:
        """Start empty."""
        rows, keys = ids.shape[0], len(self.vocabulary.keys)
        tables = {name: torch.zeros(rows, keys) for name in ("memory", "notes", "age")}
        if self.kind in ("no_memory", "blind"):
            del tables["memory"]
        layer = freeze(last=torch.zeros(rows, 2, dtype=torch.int64), **tables)
        self.table = torch.zeros(rows, keys)
        return self.resume(Snapshot((layer,), torch.zeros(rows, dtype=torch.int64)), ids)

    def resume(self, snapshot: Snapshot, ids: Tensor) -> tuple[Tensor, Snapshot]:
        """Token by token."""
        carried = dict(snapshot.layers[0])
        if self.kind == "attribute":
            carried["notes"] = self.table
        state = {name: x.tolist() for name, x in carried.items()}
        past = torch.cat([carried["last"][:, 1:], ids[:, :-1]], 1)
        logits = 0.1 * one_hot(ids, self.vocabulary.size)
        if self.kind != "deaf":
            logits += 0.2 * one_hot(past, self.vocabulary.size)
        if self.kind == "future":
            logits[:, :-1] += 0.01 * one_hot(ids[:, 1:], self.vocabulary.size)
        for row, tokens in enumerate(ids.tolist()):
            tables = {name: x[row] for name, x in state.items()}
            for t, token in enumerate(tokens):
                answer = self._step(tables, token, int(snapshot.position[row]) + t)
                if answer and self.kind != "wrong":
                    logits[row, t, int(answer)] += 1
        after = {name: torch.tensor(x, dtype=carried[name].dtype) for name, x in state.items()}
        if self.kind == "attribute":
            self.table, after["notes"] = after["notes"], torch.zeros_like(self.table)
        return logits, Snapshot((freeze(**after),), snapshot.position + ids.shape[1])

    def _step(self, tables: dict[str, list], token: int, position: int) -> float:
        """Write the pair that ends here, and return the value that is asked for; 0 if none is."""
        v, (before, last) = self.vocabulary, tables["last"]
        tables["last"][:] = last, token
        if token in v.values and last in v.keys and before != v.query:
            for name, value in (("memory", token), ("notes", token), ("age", position)):
                if name in tables:
                    tables[name][last - v.keys.start] = value
        if token not in v.keys or last != v.query:
            return 0
        slot = token - v.keys.start
        if self.kind in ("window", "blind") and position - tables["age"][slot] >= self.sizes.window_size:
            return 0
        from_memory = slot % 2 == 0 if self.kind == "half" else self.kind in ("memory", "future", "deaf")
        return tables["memory" if from_memory else "notes"][slot]


@pytest.fixture
def oracle() -> Callable[..., Oracle]:
    """Makes oracles by kind."""
    return Oracle


@pytest.fixture
def vocabulary() -> Vocabulary:
    """Of the oracles and the small hybrids."""
    return VOCABULARY


@pytest.fixture
def hybrid() -> Callable[..., HybridForCausalLM]:
    """Makes small untrained hybrids, with drops in training mode."""

    def make(pattern: str = "GS", **options: object) -> HybridForCausalLM:
        torch.manual_seed(1)
        sizes: dict[str, object] = {
            "vocab_size": VOCABULARY.size, "d_model": 32, "n_heads": 2, "head_dim": 8, "value_dim": 8,
            "window_size": 16, "local_drop_prob": 0.3, "own_read_drop_prob": 0.3, "d_ff": 32, "init_std": 0.2,
        }  # fmt: skip
        config = ModelConfig(pattern=pattern, **{**sizes, **options})  # type: ignore[arg-type]
        return HybridForCausalLM(config).eval()

    return make
