"""`leak`: the form of the sources, whose S layers read the state after the last token, as an exhibit.

It lives in this file alone: no option and no pattern selects it. Its S layers ask the final state of the whole text at
every position, so every prediction sees what it predicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.layers import Context
from groundthink.layers.memory_attention import MemoryReader
from groundthink.model import HybridForCausalLM, ModelConfig, Snapshot
from groundthink.probes import causality
from groundthink.records import ProbeResult
from groundthink.studies.parts import config_of, held_out_tokens, nats, perplexity, twin_of
from groundthink.studies.study import Line, Size, Study, Wanted, Work, number
from groundthink.tasks import Vocabulary
from groundthink.training import TrainConfig
from groundthink.training.config import MixItem, Phase
from groundthink.training.sources import Recipe

WHOLE, PREFIX, CHANGE = "perplexity, whole text at once", "perplexity, from the prefix only", "largest change"


@dataclasses.dataclass(frozen=True)
class FinalState:
    """A memory that answers every position from the state after the last token: the future, and the leak."""

    final_state: Tensor

    def read(self, queries: Tensor, *, scale: float | None = None) -> Tensor:
        """[B,T,HV,V] for queries [B,T,H,K]."""
        heads = self.final_state.shape[1] // queries.shape[2]
        factor = queries.shape[-1] ** -0.5 if scale is None else scale
        asked = queries.float().repeat_interleave(heads, dim=2)
        return (torch.einsum("bthk,bhkv->bthv", asked, self.final_state) * factor).to(queries.dtype)


class LeakingExhibit(HybridForCausalLM):
    """The hybrid of the sources. It takes a row for one document, as they did."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, MemoryReader):
                module.register_forward_pre_hook(_read_the_end)

    def through(
        self,
        input_ids: Tensor,
        position: Tensor,
        *,
        snapshot: Snapshot | None,
        documents: Tensor | None,
        keep_state: bool,
    ) -> tuple[Tensor, Snapshot | None]:
        """See `HybridForCausalLM`."""
        del documents
        return super().through(input_ids, position, snapshot=snapshot, documents=None, keep_state=keep_state)


def _read_the_end(_module: nn.Module, inputs: tuple[Tensor, Context]) -> tuple[Tensor, Context]:
    x, context = inputs
    ends = tuple(FinalState(memory.final_state) for memory in context.memories)
    return x, dataclasses.replace(context, memories=ends)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes: `steps` of `rows` x `length` tokens of text; `windows` of held-out text, `cuts` prefixes of each."""

    length: int
    steps: int
    rows: int
    windows: int
    cuts: int
    learning_rate: float
    model: Mapping[str, Any]


def training(work: Work) -> TrainConfig:
    """Text alone."""
    s = work.settings
    phase = Phase(steps=s.steps, rows=s.rows, length=s.length, warmup_steps=s.steps // 20, mix=(MixItem(),))
    text = Recipe(TrainConfig(data=work.data)).tokenizer.vocab_size
    vocabulary = Vocabulary(text=text, n_keys=1, n_values=1, n_filler=1)
    return config_of(work, model=s.model, vocabulary=vocabulary, phases=[phase], learning_rate=s.learning_rate)


def leaking(work: Work) -> Iterator[ProbeResult]:
    """The exhibit."""
    config = training(work)
    torch.manual_seed(work.seed)
    yield from _measured(work, config, work.train(config, model=LeakingExhibit(Recipe(config).model_config)))


def causal(work: Work) -> Iterator[ProbeResult]:
    """The same sizes with causal reads."""
    config = training(work)
    yield from _measured(work, config, work.train(config))


def twin(work: Work) -> Iterator[ProbeResult]:
    """The no-read twin."""
    config = twin_of(training(work))
    yield from _measured(work, config, work.train(config))


def _measured(work: Work, config: TrainConfig, model: HybridForCausalLM) -> Iterator[ProbeResult]:
    s = work.settings
    tokens = held_out_tokens(config, rows=s.windows, length=s.length)
    cuts = [max(1, s.length * (i + 1) // (s.cuts + 1)) for i in range(s.cuts)]
    whole = nats(model, tokens)[:, [cut - 1 for cut in cuts]]
    prefix = torch.stack([nats(model, tokens[:, : cut + 1], last_seen=cut)[:, 0] for cut in cuts], 1)
    yield perplexity(WHOLE, whole)
    yield perplexity(PREFIX, prefix)
    found = causality(model.cpu(), tokens[:2], seed=work.seed)[0]
    yield number(CHANGE, found.value, n=len(found.details["positions"]), verdict=found.verdict)


CAUGHT = dict.fromkeys(("full", "quick", "smoke"), Wanted(at_least=1e-3))
NONE = dict.fromkeys(("full", "quick", "smoke"), Wanted(at_most=0.0))
SMALL = {"pattern": "GGS", "d_model": 64, "n_heads": 2, "head_dim": 32, "value_dim": 32, "window_size": 16}
STUDY = Study(
    name="leak",
    question="What is the perplexity of a model worth whose S layers read the state after the last token?",
    origin="Sources 000 to 003 read so and report perplexities of 2.2 to 3.9 in training. A prototype, one seed, GPT-2"
    " BPE, TinyStories: 4.7 at once and 281 from the prefix; causal 21.8; no-read twin 24.4.",
    text=True,
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                length=256, steps=3000, rows=4, windows=64, cuts=16, learning_rate=3e-4,
                model={"pattern": "GGGGGS", "d_model": 256, "window_size": 64, "local_drop_prob": 0.7},
            ),
            cost="minutes on a GPU: 3M tokens a model, three models a seed; give the source's text by --corpus",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(length=96, steps=400, rows=8, windows=8, cuts=8, learning_rate=3e-3, model=SMALL),
            cost="about a minute on a core",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(
                length=32, steps=10, rows=2, windows=4, cuts=2, learning_rate=3e-3,
                model={**SMALL, "pattern": "GS", "d_model": 32, "window_size": 4},
            ),
            cost="seconds",
        ),
    },
    arms={"leaking exhibit": leaking, "causal": causal, "no-read twin": twin},
    lines=(
        Line(label="leaking: held-out perplexity, whole text at once", arm="leaking exhibit", measure=WHOLE,
             source="2.2 to 3.9 (training)"),
        Line(label="leaking: the same predictions from the prefix only", arm="leaking exhibit", measure=PREFIX),
        Line(label="leaking: largest change of an earlier logit when later tokens change", arm="leaking exhibit",
             measure=CHANGE, wanted=CAUGHT),
        Line(label="causal: held-out perplexity, whole text at once", arm="causal", measure=WHOLE),
        Line(label="causal: the same predictions from the prefix only", arm="causal", measure=PREFIX),
        Line(label="causal: largest change of an earlier logit when later tokens change", arm="causal", measure=CHANGE,
             wanted=NONE),
        Line(label="no-read twin: held-out perplexity, whole text at once", arm="no-read twin", measure=WHOLE),
        Line(label="causal less no-read twin", arm="causal", measure=WHOLE, less=("no-read twin", WHOLE)),
    ),
)  # fmt: skip
