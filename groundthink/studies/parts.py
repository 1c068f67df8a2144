"""What studies of trained models share: a config from settings, questions to a model, text that is held out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from groundthink.data import TextSource
from groundthink.model import TWINS, HybridForCausalLM
from groundthink.probes import ask, recall
from groundthink.probes.face import Model, device_of, mode, predict_with
from groundthink.probes.recall import rows_per_pass
from groundthink.records import ProbeResult
from groundthink.studies.study import Work, number, share
from groundthink.tasks import Task, Vocabulary
from groundthink.training import TrainConfig, score_text
from groundthink.training.config import MixItem, OptimizerConfig, Phase
from groundthink.training.sources import Recipe

Cut = Callable[[Any], AbstractContextManager[None]]


def config_of(
    work: Work,
    *,
    model: Mapping[str, Any],
    vocabulary: Vocabulary,
    phases: Sequence[Phase],
    learning_rate: float,
    embedding_scale: float = 1.0,
    evaluate_every: int = 0,
    evaluation_n: int = 200,
) -> TrainConfig:
    """A training of this cell."""
    return TrainConfig(
        model=dict(model),
        data=work.data,
        vocabulary=dataclasses.asdict(vocabulary),
        phases=tuple(phases),
        optimizer=OptimizerConfig(learning_rate=learning_rate, embedding_scale=embedding_scale),
        evaluate_every=evaluate_every,
        evaluation_n=evaluation_n,
    )


def twin_of(config: TrainConfig, name: str = "no-read") -> TrainConfig:
    """The same training of a twin, whose G layers read their own memory throughout."""
    sizes = TWINS[name](Recipe(config).model_config)
    phases = tuple(dataclasses.replace(phase, model_options={}) for phase in config.phases)
    return dataclasses.replace(config, model=sizes.to_dict(), phases=phases)


def item(source: str, *, name: str = "", weight: float = 1.0, **options: Any) -> MixItem:
    """A task of a phase."""
    return MixItem(source=source, name=name, weight=weight, options=options)


def task_of(config: TrainConfig, source: str, **options: Any) -> Task:
    """A task with the vocabulary and the text of a training."""
    return Recipe(config).task(item(source, **options))


def asked(model: Model, task: Task, name: str, *, n: int, seed: int, cut: Cut | None = None) -> ProbeResult:
    """Exact recall: one question an episode of the test split, top-1 of the whole vocabulary.

    Args:
        model: asked.
        task: with one query, answers of one token, and one length.
        name: of the number.
        n, seed: which episodes.
        cut: something that is taken from the model meanwhile.
    """
    questions = ask(task, n=n, seed=seed)
    with contextlib.nullcontext() if cut is None else cut(model):
        found = recall(model, questions)
    chances = {key: value for key, value in questions.chance.items() if value < 1}  # of one value, one is no guess
    return share(name, found.right, chance=max(chances.values()), other_in_context=found.other_in_context)


def bits_per_byte(model: HybridForCausalLM, config: TrainConfig, *, documents: int, length: int) -> ProbeResult:
    """Bits per byte on held-out text; its interval is over documents."""
    recipe = Recipe(config)
    held_out = TextSource.of(recipe.corpus, "test", recipe.tokenizer)
    windows = held_out.held_out_batches(16, length, min(documents, held_out.n_documents), max_tokens=8 * length)
    scores = score_text(predict_with(model), windows)
    each = torch.from_numpy(scores.per_document)
    half = 1.96 * float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    value = scores.bits_per_byte
    return number("bits per byte", value, n=int(scores.n_bytes.sum()), low=value - half, high=value + half)


def held_out_tokens(config: TrainConfig, *, rows: int, length: int) -> Tensor:
    """Windows of held-out text, int64 [rows,length]: the same for every model and seed."""
    recipe = Recipe(config)
    return TextSource.of(recipe.corpus, "test", recipe.tokenizer).batch(0, 0, rows, length).tokens


@torch.no_grad()
def nats(model: Model, tokens: Tensor, last_seen: int | None = None) -> Tensor:
    """Costs of tokens 1 .. T-1 of [B,T], with the whole text in view; or of the one after a prefix alone, [B,1]."""
    found = []
    with mode(model, training=False):
        for block in tokens.split(rows_per_pass(model, tokens.shape[1])):
            rows = block.to(device_of(model))
            if last_seen is None:
                logits, wanted = model.prefill(rows)[0][:, :-1], rows[:, 1:]
            else:
                logits, wanted = model.prefill(rows[:, :last_seen])[0][:, -1:], rows[:, last_seen:]
            cost = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none")
            found.append(cost.cpu())
    return torch.cat(found)


def perplexity(name: str, nats: Tensor) -> ProbeResult:
    """exp of the mean of nats [rows, predictions]; its interval is over the rows."""
    means = nats.double().mean(1)
    mean, error = float(means.mean()), float(means.std()) / math.sqrt(len(means))
    low, high = math.exp(mean - 1.96 * error), math.exp(mean + 1.96 * error)
    return number(name, math.exp(mean), n=nats.numel(), low=low, high=high)
