"""A model of another family, trained here on recall: its memory is certified, and a cheating one is not.

About half a minute on one idle core: without training, no verdict but TASK-FAIL could be seen.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import Mamba2Config
from torch import Tensor
from transformers import AutoModelForCausalLM

import groundthink as gt
from groundthink.model import Snapshot
from groundthink.model.adapters import FAMILIES
from groundthink.probes import ask, recall
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall

VOCABULARY = Vocabulary(text=0, n_keys=8, n_values=64, n_filler=16)
TASK = KvRecall(VOCABULARY, n_pairs=4, n_queries=8, distance="fixed:8")
STEPS, ROWS, RATE = 500, 32, 3e-3
N = 200  # the upper Wilson bound of 0.25 has to stay within 3 points of chance where nothing is kept


def labelled(step: int) -> tuple[Tensor, Tensor]:
    """Tokens [B,T], and at each cue the answer that comes next, -100 elsewhere."""
    episodes = list(TASK.episodes(step, "train", ROWS))
    tokens = torch.stack([torch.from_numpy(episode.tokens) for episode in episodes])
    answers = torch.full_like(tokens, -100)
    for row, episode in enumerate(episodes):
        for query in episode.queries:
            answers[row, query.query_position] = query.value[0]
    return tokens, answers


@pytest.fixture(scope="module")
def trained() -> Any:
    """Two layers of Mamba2 that recall; training ends once the loss is small."""
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=VOCABULARY.size, hidden_size=64, num_hidden_layers=2, state_size=32, num_heads=4, head_dim=32,
        n_groups=1, chunk_size=40, initializer_range=0.1,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    for step in range(STEPS):
        tokens, answers = labelled(step)
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=-100)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 0.01:
            break
    return model.eval()


def test_its_memory_is_certified(trained: Any) -> None:
    found = gt.certify(trained, vocabulary=VOCABULARY, n_pairs=4, n=N)
    assert found.verdict == "CERTIFIED", found.sentence
    assert found.horizon == 6
    assert "Family: Mamba2" in found.sentence
    assert found.result("parity").value < 1e-5  # float32 rounding, see `probes.parity`
    for kind in ("values", "deranged"):
        assert found.result(f"follow/{kind}@8R").low > 0.8
        assert found.result(f"keep/{kind}@8R").verdict == "pass"


def test_without_its_memory_it_knows_nothing(trained: Any) -> None:
    class Amnesic(FAMILIES["Mamba2"]):  # type: ignore[misc]
        """Forgets before the question, however it is asked: whole, split or step by step."""

        def prefill(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> tuple[Tensor, Snapshot]:
            return super().prefill(input_ids[:, -5:])

    questions = ask(KvRecall(VOCABULARY, n_pairs=4, distance="fixed:20"), n=N, seed=1)
    assert recall(FAMILIES["Mamba2"](trained), questions).right.low > 0.9
    assert recall(Amnesic(trained), questions).right.high < 0.35  # 1/4 by guessing among the stored
