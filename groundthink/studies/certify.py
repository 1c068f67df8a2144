"""The certificate of anything that can be named: a model, a run, a saved model, a model of somebody else's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from groundthink.errors import ConfigError, TaskError
from groundthink.model import HybridForCausalLM
from groundthink.model.adapters import Adapter, adapt, is_foreign, model_from
from groundthink.probes import Model, no_state
from groundthink.probes import certify as certify_model
from groundthink.probes.face import on_device
from groundthink.records import Certificate, ProbeResult
from groundthink.tasks import Vocabulary

RANGE = 64  # keys, values and filler each where nobody said which ids a foreign model knows


def certify(
    model_or_path: Any,
    *,
    vocabulary: Vocabulary | None = None,
    seed: int = 0,
    attention_window: int | None = None,
    step: bool = False,
    dtype: str = "float32",
    device: str = "",
    **options: Any,
) -> Certificate:
    """Ask a model everything and judge it.

    Args:
        model_or_path: a model with `prefill` and `resume`; a causal language model of transformers; the folder of a
            run, of a saved model or of a transformers checkpoint; or a name on the hub.
        vocabulary: ids of the task. None: those of the run's recipe; for models of others `vocabulary_for`.
        seed: of every episode.
        attention_window, step, dtype: for models of others, see `groundthink.model.adapters.model_from`.
        device: where to run, such as cuda; the model stays where it is if not given.
        options: of `groundthink.probes.certify`.

    Raises:
        CheckpointError: there is no such model, or no adapter for it.
        ConfigError: an option that this model does not have, no vocabulary for a model of ours, or no such device.
        TaskError: the vocabulary does not fit the task or the model.
    """
    model: Any = _model(model_or_path, attention_window=attention_window, step=step, dtype=dtype)
    if device:
        model = on_device(model, device)
    if isinstance(model, Adapter):
        if not model.has_memory:
            return no_state(model, seed=seed)
        ids = vocabulary_for(model.sizes.vocab_size) if vocabulary is None else vocabulary
        return with_terms(certify_model(model, vocabulary=ids, seed=seed, **options), model)
    if vocabulary is None:
        vocabulary = _vocabulary_of_run(model_or_path)
    return certify_model(model, vocabulary=vocabulary, seed=seed, **options)


def vocabulary_for(vocab_size: int) -> Vocabulary:
    """Ids for the task in the middle of a vocabulary: models keep their special tokens at its ends.

    Raises:
        TaskError: the vocabulary is too small.
    """
    needed = Vocabulary(text=0, n_keys=RANGE, n_values=RANGE, n_filler=RANGE).size
    if vocab_size < needed:
        raise TaskError(
            f"a vocabulary of {vocab_size} is too small for the task",
            where="vocabulary",
            fix=f"certify a model with at least {needed} ids, or say which ids it knows",
        )
    text = min(vocab_size // 2, vocab_size - needed)
    return Vocabulary(text=text, n_keys=RANGE, n_values=RANGE, n_filler=RANGE)


def parse_vocabulary(words: str) -> Vocabulary:
    """`text,keys,values,filler` as a vocabulary.

    Raises:
        ConfigError: not four whole numbers.
    """
    numbers = words.split(",")
    if len(numbers) != 4 or not all(number.strip().isdigit() for number in numbers):
        raise ConfigError(f"{words!r}", where="--vocabulary", fix="give text,keys,values,filler: 16,32,64,16")
    text, keys, values, filler = map(int, numbers)
    return Vocabulary(text=text, n_keys=keys, n_values=values, n_filler=filler)


def with_terms(certificate: Certificate, model: Adapter) -> Certificate:
    """The certificate of a model of others, with what it holds for."""
    terms = [f"Family: {model.family}, with the arithmetic of the installed release."]
    if model.attention_window is not None:
        terms.append(f"Its full attention was limited to {model.attention_window} tokens.")
    if model.step:
        terms.append("It was continued token by token, as it generates.")
    broken = any(row.name == "parity" and row.verdict == "fail" for row in certificate.results)
    if broken and not model.step:
        terms.append("If its cache goes wrong only where several tokens continue it, ask again step by step.")
    text = " ".join(terms)
    row = ProbeResult("adapter", 0.0, "info", text, details=describe(model))
    return dataclasses.replace(
        certificate, sentence=f"{certificate.sentence} {text}", results=(row, *certificate.results)
    )


def describe(model: Adapter) -> dict[str, Any]:
    """Family, options and layers, for a record."""
    return {
        "family": model.family,
        "attention_window": model.attention_window,
        "step": model.step,
        "memory_layers": [i for i, sight in enumerate(model.layers) if sight.memory],
        "attention_layers": [i for i, sight in enumerate(model.layers) if sight.window],
    }


def _model(model_or_path: Any, *, attention_window: int | None, step: bool, dtype: str) -> Model | Adapter:
    named = {"attention_window": attention_window, "step": step}
    if isinstance(model_or_path, (str, Path)):
        if is_foreign(model_or_path):
            found: Any = model_from(model_or_path, dtype=dtype, **named)  # type: ignore[arg-type]
            return found
        from groundthink.training import load

        model_or_path = load(model_or_path)
    elif hasattr(model_or_path, "config") and not isinstance(model_or_path, (HybridForCausalLM, Adapter)):
        return adapt(model_or_path, **named)  # type: ignore[arg-type]
    if attention_window is not None or step:
        raise ConfigError("attention_window and step are for models of others", fix="leave them out")
    return model_or_path


def _vocabulary_of_run(path: Any) -> Vocabulary:
    if isinstance(path, (str, Path)) and (Path(path) / "config.yaml").is_file():
        from groundthink.training import load_recipe
        from groundthink.training.sources import Recipe

        recipe = Recipe(load_recipe(Path(path) / "config.yaml"))
        for phase in reversed(recipe.config.phases):
            for item in phase.mix:
                if item.source == "kv_recall":
                    return recipe.task(item).vocabulary
    raise ConfigError("nothing says which ids the model was trained with", where="certify", fix="give vocabulary=")
