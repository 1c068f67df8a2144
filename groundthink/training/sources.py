"""The model and the data that a config describes: where training meets model, data and tasks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from groundthink.data import Corpus, TextSource, Tokenizer, load_corpus, load_tokenizer, split_tokens
from groundthink.errors import ConfigError
from groundthink.model import HybridForCausalLM, ModelConfig
from groundthink.tasks import TASKS, Task, Vocabulary, make_task
from groundthink.tasks.scoring import evaluate
from groundthink.training.config import TEXT, MixItem, TrainConfig
from groundthink.training.language import score_text
from groundthink.training.mixture import Measurement, Predict, Rows, Source, derive
from groundthink.training.strict import read_fields

SCORED_ROWS = 32  # rows of one forward pass when held-out text is scored
ASKED_ROWS = 64  # of one when episodes are asked, unless their vocabulary is large:
LOGITS = 2**28  # of one, at most: 1 GiB in float32


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """Episodes of a task as a `Source`. Metrics: `exact`, right answers of all queries."""

    task: Task

    @property
    def fingerprint(self) -> str:
        """Of the task, its options and its first episodes."""
        return self.task.digest

    def batch(self, *, seed: int, step: int, rows: int, length: int) -> Rows:
        """Packed training episodes."""
        return self.task.batch(seed, "train", step, rows, length)

    def stream(self, *, seed: int, step: int, rows: int, length: int) -> Rows:
        """Episodes do not continue.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a task cannot pass its state on", where=self.task.name, fix="stream text only")

    def measure(self, predict: Predict, *, n: int, seed: int, length: int) -> dict[str, Measurement]:
        """Right answers over n validation episodes."""
        rows = max(1, min(ASKED_ROWS, LOGITS // (self.task.max_length * self.task.vocabulary.size)))
        exact = evaluate(self.task, predict, n=n, seed=seed, split="valid", batch_size=rows).exact
        return {"exact": Measurement(exact.rate, exact.low, exact.high, exact.n)}


@dataclasses.dataclass(frozen=True)
class TextRows:
    """A corpus as a `Source`. Metrics: `bits_per_byte`, over windows at the start of validation documents."""

    train: TextSource
    valid: TextSource
    fingerprint: str

    def batch(self, *, seed: int, step: int, rows: int, length: int) -> Rows:
        """Windows from anywhere in the training documents."""
        return self.train.batch(seed, step, rows, length)

    def stream(self, *, seed: int, step: int, rows: int, length: int) -> Rows:
        """The next segment of each stream."""
        return self.train.stream_batch(seed, step, rows, length)

    def measure(self, predict: Predict, *, n: int, seed: int, length: int) -> dict[str, Measurement]:
        """Bits per byte of about n windows, spread evenly over the validation documents; always the same."""
        documents = min(n, self.valid.n_documents)
        tokens = (length - 1) * -(-n // documents) + 1  # windows overlap by one token
        windows = self.valid.held_out_batches(SCORED_ROWS, length, documents, max_tokens=tokens)
        scores = score_text(predict, windows)
        return {"bits_per_byte": Measurement(scores.bits_per_byte, n=len(scores.documents))}


class Recipe:
    """What a config names, loaded when first asked for and then kept.

    Args:
        config: of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the text."""
        return load_tokenizer(self.config.data.tokenizer)

    @functools.cached_property
    def corpus(self) -> Corpus:
        """All the text."""
        paths = self.config.data.corpus
        separator = self.config.data.separator
        return load_corpus(paths[0] if len(paths) == 1 else paths, separator=separator)

    @functools.cached_property
    def text(self) -> TextRows:
        """The corpus as rows."""
        train, valid = (TextSource.of(self.corpus, split, self.tokenizer) for split in ("train", "valid"))
        return TextRows(train, valid, f"{self.corpus.digest}-{self.tokenizer.digest}")

    @functools.cached_property
    def tokens(self) -> Any:
        """Tokens of each split, for tasks that hide things in text."""
        return split_tokens(self.corpus, self.tokenizer)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Of text and tasks; the tokenizer says how many ids the text has.

        Raises:
            ConfigError: unknown fields, wrong types, or a text range smaller than the tokenizer's.
        """
        problems: list[str] = []
        fields = read_fields(Vocabulary, self.config.vocabulary, "vocabulary", problems)
        text = fields.setdefault("text", self.tokenizer.vocab_size)
        if text < self.tokenizer.vocab_size:
            problems.append(f"vocabulary.text is {text}, the tokenizer has {self.tokenizer.vocab_size} ids")
        if problems:
            raise ConfigError("; ".join(problems), where="vocabulary", fix="change the fields named")
        return Vocabulary(**fields)

    @functools.cached_property
    def model_config(self) -> ModelConfig:
        """Of the model; `vocab_size` defaults to the vocabulary's size, rounded up to a multiple of 64."""
        size = -(-self.vocabulary.size // 64) * 64
        return ModelConfig.from_dict({"vocab_size": size, **self.config.model})

    def source(self, item: MixItem) -> Source:
        """The source of one mix item.

        Raises:
            ConfigError: an unknown task, or options that it does not take.
        """
        return self.text if item.source == TEXT else TaskRows(self.task(item))

    def task(self, item: MixItem) -> Task:
        """The task of one mix item. Text is read only if the task hides something in it."""
        kind = TASKS.get(item.source)
        fields = {field.name for field in dataclasses.fields(kind)} if kind else set()
        return make_task(
            item.source,
            item.options,
            self.vocabulary,
            text=self.tokens if "text" in fields else None,
            tokenizer=self.tokenizer if "tokenizer" in fields else None,
        )

    def check(self) -> None:
        """Refuse a config whose parts do not fit each other, with all problems at once.

        Raises:
            ConfigError: model fields, vocabulary, task options, or lengths and sizes that exclude each other.
        """
        problems: list[str] = []
        vocabulary = _try(lambda: self.vocabulary, "vocabulary", problems)
        model = _try(lambda: self.model_config, "model", problems) if vocabulary else None
        if vocabulary and model and model.vocab_size < vocabulary.size:
            problems.append(f"model.vocab_size is {model.vocab_size}, text and tasks need {vocabulary.size}")
        for i, phase in enumerate(self.config.phases):
            if model and model.max_length is not None and phase.length > model.max_length:
                problems.append(f"phases[{i}].length is {phase.length}, model.max_length {model.max_length}")
            if model and model.max_length is not None and phase.state_passing:
                problems.append(f"phases[{i}].state_passing reads on without end: unset model.max_length")
            for j, item in enumerate(phase.mix):
                if item.source == TEXT or not vocabulary:
                    continue
                path = f"phases[{i}].mix[{j}]"
                task = _try(lambda item=item: self.task(item), path, problems)  # type: ignore[misc]
                if task and task.max_length > phase.length:
                    longest = f"episodes of up to {task.max_length} tokens"
                    options = ", ".join(f"{name} {value}" for name, value in task.options.items())
                    cure = f"raise phases[{i}].length to {task.max_length}, or make the task smaller ({options})"
                    problems.append(f"{path}: {longest} do not fit into phases[{i}].length {phase.length}: {cure}")
        if problems:
            raise ConfigError("; ".join(problems), where="training config", fix="change the fields named")


def _try(build: Callable[[], Any], path: str, problems: list[str]) -> Any:
    try:
        return build()
    except ConfigError as error:
        place = path if error.where in ("", path) else f"{path} ({error.where})"
        problems.append(f"{place}: {error.what}")
        return None


def build_model(config: TrainConfig, recipe: Recipe | None = None) -> HybridForCausalLM:
    """The untrained model: its parameters are a function of config and seed.

    Raises:
        ConfigError: see `Recipe.check`.
    """
    recipe = Recipe(config) if recipe is None else recipe
    recipe.check()
    torch.manual_seed(derive(config.seed, "init"))
    return HybridForCausalLM(recipe.model_config)
