"""The main job in small: train a hybrid and its twins, certify its memory, leave every record of it.

The hybrid (recipe `demo`) learns recall through its S layer and then language. Beside it stand a no-read twin (A for S,
parameters within 2 %) on half the language steps, so that all of it fits into minutes: its bits per byte are a weak
test, and every page says so; docs/log.md has the same comparison on equal tokens. A window-only model can recall
nothing beyond the horizon however long it trains, and therefore trains an eighth.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from groundthink.data import TextSource
from groundthink.errors import ConfigError
from groundthink.model import TWINS, HybridForCausalLM, ModelConfig, count_parameters
from groundthink.probes import (
    certify,
    cut_own_reads,
    cut_reads,
    gate_statistics,
    needle_map,
    paired_bootstrap,
    recall_curves,
)
from groundthink.probes.face import predict_with
from groundthink.records import Certificate, to_json, write_whole
from groundthink.tasks import Task
from groundthink.training import TrainConfig, TrainResult, load_recipe, resume, score_text, train
from groundthink.training.sources import Recipe

NO_READ, WINDOW_ONLY = "no-read", "window-only"
HELD_OUT_TOKENS, HELD_OUT_LENGTH = 8192, 256  # of each held-out file, in windows
NEEDLE_DEPTHS, NEEDLE_GROWTH = (0.0, 0.25, 0.5, 0.75, 1.0), (1, 2, 4, 8)
PROMPT, SAMPLE_TOKENS = "def ", 240

OnEvent = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A signal ended the demo while it trained; the same command goes on from there."""

    result: TrainResult


def plan(seed: int = 0, overrides: Sequence[str] = ()) -> dict[str, TrainConfig]:
    """The three trainings by folder below the run's: the hybrid at ".", each twin at "twins/<name>"."""
    config = load_recipe("demo", [*overrides, f"seed={seed}"])
    sizes = Recipe(config).model_config
    return {
        ".": config,
        f"twins/{NO_READ}": _twin(config, TWINS[NO_READ](sizes), language_share=2),
        f"twins/{WINDOW_ONLY}": _twin(config, TWINS[WINDOW_ONLY](sizes), language_share=8, bootcamp_share=8),
    }


def _twin(config: TrainConfig, sizes: ModelConfig, *, language_share: int, bootcamp_share: int = 1) -> TrainConfig:
    """The same run for another pattern, on a share of the steps; its G layers always read, since nobody else does."""
    reads = {"own_read_drop_prob": 0.0} if "G" in sizes.layers else {}
    phases = tuple(
        dataclasses.replace(
            phase,
            steps=max(1, phase.steps // (bootcamp_share if phase.advance else language_share)),
            model_options=reads,
        )
        for phase in config.phases
    )
    return dataclasses.replace(config, model=sizes.to_dict(), phases=phases)


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    n: int = 400,
    overrides: Sequence[str] = (),
    rows: str = "core",
    display: Callable[[str, TrainConfig], Any],
    on_stage: Callable[[str], None],
) -> Certificate | Stopped:
    """Train, certify, record. A folder that a stopped demo left is gone on with.

    Args:
        folder: of the run.
        seed: of data, parameters and episodes.
        n: episodes behind each figure of the certificate.
        overrides: changes to the recipe, as for `load_recipe`.
        rows: of the certificate, `core` or `full`.
        display: (name, config) -> context manager with `on_event`, shown while that model trains.
        on_stage: hears one line when a stage begins.

    Raises:
        ConfigError: the folder holds a finished demo.
    """
    if (folder / "records" / "certificate.json").exists():
        raise ConfigError("holds a finished demo", where=str(folder), fix="name another folder")
    models: dict[str, HybridForCausalLM] = {}
    for place, config in plan(seed, overrides).items():
        on_stage(f"training {'the hybrid' if place == '.' else 'the twin ' + Path(place).name}")
        with display(place, config) as shown:
            result = _train(config, folder / place, shown.on_event)
        if not result.finished:
            return Stopped(result)
        assert isinstance(result.model, HybridForCausalLM)
        models["model" if place == "." else Path(place).name] = result.model.cpu()
    return _prove(folder, models, seed=seed, n=n, rows=rows, on_stage=on_stage)


def _train(config: TrainConfig, folder: Path, on_event: OnEvent) -> TrainResult:
    begun = (folder / "checkpoints").is_dir()
    return resume(folder, on_event=on_event) if begun else train(config, folder, on_event=on_event)


def _prove(
    folder: Path,
    models: dict[str, HybridForCausalLM],
    *,
    seed: int,
    n: int,
    rows: str,
    on_stage: Callable[[str], None],
) -> Certificate:
    """Every record of the trained models; the certificate last, so that its file means the rest is there."""
    recipe = Recipe(load_recipe(folder / "config.yaml"))
    model, twins = models["model"], {name: twin for name, twin in models.items() if name != "model"}
    tasks = {item.label: recipe.task(item) for item in recipe.config.phases[-1].mix if item.source != "text"}
    write = functools.partial(_write, folder / "records")

    on_stage("scoring held-out files")
    language, row = _language(recipe, models, seed)
    write("language", language)
    on_stage(f"certifying, {n} episodes a figure")
    certificate = certify(
        model,
        vocabulary=recipe.vocabulary,
        n_pairs=tasks["kv_recall"].n_pairs,  # type: ignore[attr-defined]
        n=n,
        seed=seed,
        twin=twins,
        rows=rows,
        language=row,
    )
    on_stage("drawing recall against distance, needles, gates and a sample")
    arms: dict[str, Any] = {
        "trained model": (model, None),
        "S reads cut": (model, cut_reads),
        "G's own reads cut": (model, cut_own_reads),
        f"{NO_READ} twin": (twins[NO_READ], None),
        WINDOW_ONLY: (twins[WINDOW_ONLY], None),
    }
    write("recall_curves", recall_curves(arms, vocabulary=recipe.vocabulary, n=max(1, n // 4), seed=seed))
    write("needle", _needles(model, tasks["needle"], n=max(1, n // 16), seed=seed))
    write("gates", gate_statistics(model, _mixed_tokens(recipe, tasks), recipe.vocabulary))
    write("sample", {"prompt": PROMPT, "text": _sample(model, recipe, seed)})
    write("summary", summary(certificate, language, models))
    write("certificate", certificate)
    return certificate


def _write(folder: Path, name: str, record: Any) -> None:
    write_whole(folder / f"{name}.json", to_json(record))


def _language(recipe: Recipe, models: dict[str, HybridForCausalLM], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bits per byte on held-out files, as a record and as the certificate's row against the no-read twin."""
    held_out = TextSource.of(recipe.corpus, "test", recipe.tokenizer)
    scores = {}
    for name, model in models.items():
        windows = held_out.held_out_batches(32, HELD_OUT_LENGTH, max_tokens=HELD_OUT_TOKENS)
        scores[name] = score_text(predict_with(model), windows)
    ours, theirs = (scores[name].per_document.tolist() for name in ("model", NO_READ))
    mean, low, high = paired_bootstrap(ours, theirs, seed=seed)
    bits = {name: score.bits_per_byte for name, score in scores.items()}
    record = {
        "bits_per_byte": bits,
        "difference": {"mean": mean, "low": low, "high": high},
        "documents": len(ours),
    }
    row = {"difference": mean, "low": low, "high": high, "n": len(ours), "against": NO_READ, "details": bits}
    return record, row


def _needles(model: HybridForCausalLM, task: Task, *, n: int, seed: int) -> dict[str, Any]:
    """Recall by depth and length, one question an episode, up to eight times the length of training."""
    trained: int = task.length  # type: ignore[attr-defined]
    lengths = [trained * growth for growth in NEEDLE_GROWTH]
    one = task.with_options(n_queries=1)
    found = needle_map(model, one, depths=NEEDLE_DEPTHS, lengths=lengths, n=n, seed=seed)  # type: ignore[arg-type]
    return {**found, "trained_length": trained}


def _mixed_tokens(recipe: Recipe, tasks: dict[str, Task]) -> torch.Tensor:
    """Rows of both tasks, so that every kind of token occurs."""
    length = recipe.config.phases[-1].length
    return torch.cat([task.batch(0, "test", 0, 32, length).tokens for task in tasks.values()])


def _sample(model: HybridForCausalLM, recipe: Recipe, seed: int) -> str:
    """Text that the model writes; ids outside the text are never drawn."""
    torch.manual_seed(seed)
    ids = torch.tensor([recipe.tokenizer.encode(PROMPT)], device=model.device)
    others = list(range(recipe.tokenizer.vocab_size, model.sizes.vocab_size))
    out = model.generate(  # type: ignore[misc]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=SAMPLE_TOKENS,
        do_sample=True,
        temperature=0.7,
        suppress_tokens=others,
    )
    return recipe.tokenizer.decode(out[0, ids.shape[1] :].tolist())


def summary(certificate: Certificate, language: dict[str, Any], models: dict[str, HybridForCausalLM]) -> dict[str, Any]:
    """What the page and the terminal show first: questions, answers, verdicts."""
    found = {row.name: row for row in certificate.results}

    def answer(question: str, name: str, form: str = "{value:.3f} [{low:.3f}, {high:.3f}]") -> dict[str, str] | None:
        row = found.get(name)
        if row is None:
            return None
        fields = {"value": row.value, "low": row.low or 0.0, "high": row.high or 0.0}
        return {"question": question, "answer": form.format(**fields), "verdict": row.verdict}

    worst = "largest change {value:g}"
    rows = [
        answer("Do later tokens change earlier logits?", "causality/suffix", worst),
        answer("Do whole, split, stepwise and resumed runs agree?", "parity", "relative difference {value:.1e}"),
        *(answer(f"Recall of 16 pairs at {d}", f"recall@{d}") for d in ("R+1", "2R", "8R")),
        answer("Answers follow another episode's memory", "follow/values@8R"),
        answer("Old answers stay in spite of it", "keep/values@8R"),
        answer("Recall at 8R, S reads cut", "recall@8R/S-reads-cut"),
        answer("Recall at 8R, G's own reads cut", "recall@8R/own-reads-cut"),
        answer("Recall at 8R, no-read twin", f"recall@8R/twin:{NO_READ}"),
        answer("Recall at 8R, window-only model", f"recall@8R/twin:{WINDOW_ONLY}"),
        answer(
            "Bits per byte less those of the no-read twin on half the language",
            f"language/{NO_READ}",
            "{value:+.4f} [{low:+.4f}, {high:+.4f}]",
        ),
    ]
    sizes = {name: count_parameters(model.parameters()) for name, model in models.items()}
    bits = language["bits_per_byte"]
    told = ", ".join(f"{name} {sizes[name]:,} ({bits[name]:.3f})" for name in models)
    rows.append({"question": "Parameters (bits per byte)", "answer": told, "verdict": "info"})
    return {"title": f"GroundThink demo: {certificate.verdict}", "rows": [row for row in rows if row is not None]}
