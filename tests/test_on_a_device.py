"""Everything that meets a model, on a device that is not the CPU: nothing stays behind, and the numbers are the CPU's.

The device is pretended, see `pretend_device`: it computes to the bit as the CPU, so results are equal, not near.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import groundthink as gt
from groundthink.cli.main import main
from groundthink.errors import ConfigError
from groundthink.layers import MIXERS
from groundthink.model.adapters import adapt
from groundthink.probes import (
    DIAGNOSTICS,
    PICTURES,
    Bench,
    ask,
    ask_row,
    certify,
    make_bench,
    no_state,
    pictures,
    row_causality,
    row_leak,
)
from groundthink.probes import curves as curves_module
from groundthink.probes.face import on_device, predict_with
from groundthink.probes.recall import recall
from groundthink.probes.verdict import NEAR
from groundthink.records import Certificate, ProbeResult
from groundthink.studies import demo, parts
from groundthink.tasks import Vocabulary
from groundthink.tasks.kv_recall import KvRecall
from groundthink.tasks.needle import Needle
from groundthink.training import load_recipe, read_events, resume, train
from groundthink.training import run as training_run
from groundthink.training.config import MixItem, TrainConfig
from groundthink.training.losses import LOSSES
from groundthink.training.smoke import smoke_form
from groundthink.training.sources import Recipe, build_model
from tests.model.adapters.small_models import CONFIGS, build
from tests.pretend_device import moved, pretend

VOCABULARY = Vocabulary(text=16, n_keys=32, n_values=64, n_filler=16)
TEXT = np.random.default_rng(0).integers(0, 16, 1200)
SIZES: dict[str, Any] = {
    "d_model": 16, "n_heads": 2, "head_dim": 8, "value_dim": 8, "d_ff": 16, "window_size": 4, "init_std": 0.2,
    "local_drop_prob": 0.3, "own_read_drop_prob": 0.3,
}  # fmt: skip
# Of transformers' own code: experts are counted in an integer histogram everywhere but on the CPU.
UNHEARD = {"memory_consistency"}  # losses that listen to other layers than G and S
CLOCKS = {"elapsed", "tokens_per_second", "seconds", "provenance"}
FOREIGN = [name for name in CONFIGS if name not in ("qwen3_next", "jamba")]


@pytest.fixture
def device() -> Iterator[torch.device]:
    with pretend() as found:
        yield found


def hybrid(pattern: str = "GSA", **options: Any) -> gt.HybridForCausalLM:
    torch.manual_seed(1)
    config = {"vocab_size": VOCABULARY.size, **SIZES, **options}
    return gt.HybridForCausalLM(gt.ModelConfig(pattern=pattern, **config)).eval()


def both(pattern: str = "GSA", **options: Any) -> tuple[gt.HybridForCausalLM, gt.HybridForCausalLM]:
    """The same model on the CPU and on the device."""
    return hybrid(pattern, **options), moved(hybrid(pattern, **options))


def some_ids(rows: int, length: int, below: int = VOCABULARY.size) -> Tensor:
    return torch.randint(1, below, (rows, length), generator=torch.Generator().manual_seed(length))


def asked_of() -> dict[str, Any]:
    """Few, short questions of every kind: over filler, in text, about text."""
    return {
        "vocabulary": VOCABULARY, "n_pairs": 4, "n": 6, "seed": 1, "trained_length": 32, "multiples": (1,),
        "needle": Needle(VOCABULARY, dict.fromkeys(("train", "valid", "test"), TEXT), length=64, n_needles=4),
        "text_multiples": (2,), "text": [torch.from_numpy(TEXT[i : i + 400]) for i in (0, 400, 800)],
    }  # fmt: skip


def found(results: Sequence[ProbeResult]) -> list[tuple[str, float, str, str]]:
    return [(row.name, row.value, row.verdict, row.meaning) for row in results]


def test_a_certificate_of_every_row(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Untrained models understand no task; that is overlooked, or most rows would not be asked."""
    monkeypatch.setattr(importlib.import_module("groundthink.probes.certify"), "NEAR", "")
    monkeypatch.setattr(row_leak, "TOKENS", 2000)  # read one by one, a pass each
    monkeypatch.setattr(row_causality, "shortest_text", lambda window: window)  # every token costs some passes
    here, there = (
        certify(model, twin, rows="full", language=None, **asked_of())
        for model, twin in zip(both(), both("GA"), strict=True)
    )
    rows = {row.details["row"] for row in there.results}
    assert {"C0", "C0n", "C1", "K1", "K2", "K3", "K5", "K9", "N1", "T3"} <= rows
    assert any(row.name == NEAR and row.verdict == "fail" for row in there.results)
    assert any(row.name == "follow/one_key@text-2x" for row in there.results)
    assert {row.name for row in there.results} >= {"causality/documents", "causality/gradient", "text/all"}
    assert found(there.results) == found(here.results)
    assert there.verdict == here.verdict


@pytest.fixture(scope="module")
def benches() -> tuple[Bench, Bench]:
    """Of a model on the CPU, and of the same one on the device."""
    with pretend():
        here, there = (make_bench(model, {}, **asked_of()) for model in both())
    return here, there


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostics(name: str, benches: tuple[Bench, Bench], device: torch.device) -> None:
    here, there = (list(ask_row(bench, name)) for bench in benches)
    assert there
    assert not any("not_run" in row.details for row in there)
    if name == "speed":  # seconds are never the same
        assert [row.name for row in there] == [row.name for row in here]
    else:
        assert found(there) == found(here)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(
    name: str, benches: tuple[Bench, Bench], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves_module, "curve_distances", lambda horizon, window: [2, 20])
    monkeypatch.setattr(pictures, "DEPTHS", (0.5,))
    draw = PICTURES[name][1]
    assert draw(benches[1]) == draw(benches[0])


@pytest.mark.parametrize("letter", MIXERS)
def test_a_layer_of_every_kind(letter: str, device: torch.device) -> None:
    """In one go, in pieces, packed, padded, backward, and token by token, with the layer above a G."""
    here, there = both(f"G{letter}")
    ids = some_ids(3, 40)
    documents = (torch.arange(40) >= torch.tensor([[5], [20], [33]])).int()

    def outcome(model: gt.HybridForCausalLM, move: Any) -> list[Tensor]:
        logits, snapshot = model.prefill(move(ids[:, :23]))
        packed = model.prefill(move(ids), documents=move(documents))[0]
        total, _, _ = model.loss(move(ids), move(ids), documents=move(documents))
        model.zero_grad()
        total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        new: dict[str, Any] = {"max_new_tokens": 5, "graph": False}
        with torch.no_grad():
            streamed = torch.stack(list(gt.stream(model, ids, **new)), 1)
            drawn = torch.stack(list(gt.stream(model, ids, temperature=1.0, top_p=0.9, eos=3, **new)), 1)
            padded = torch.cat([torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 38, dtype=torch.int64)], 1)
            hidden = torch.stack(list(gt.stream(model, ids, attention_mask=padded, **new)), 1)
            made = model.generate(move(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)  # type: ignore[operator]
            assert torch.equal(made[:, 40:].cpu(), streamed)
        return [logits, model.resume(snapshot, move(ids[:, 23:]))[0], packed, *gradients, streamed, drawn, hidden]

    wanted, got = outcome(here, lambda x: x), outcome(there, lambda x: x.to(device))
    assert all(x.device == device for x in got[:-3])
    assert all(x.device.type == "cpu" for x in got[-3:]), "a stream gives tokens to the host"
    for x, y in zip(got, wanted, strict=True):
        assert torch.equal(x.cpu(), y)


@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_others(name: str, device: torch.device) -> None:
    ids = some_ids(3, 30, 256)
    mask = torch.cat([torch.zeros(3, 4, dtype=torch.int64), torch.ones(3, 16, dtype=torch.int64)], 1)

    def outcome(move: Any, place: Any) -> list[Tensor]:
        model = adapt(place(build(name)))
        with torch.no_grad():
            logits, snapshot = model.prefill(move(ids[:, :20]))
            padded, hidden = model.prefill(move(ids[:, :20]), attention_mask=move(mask))
            return [logits, padded, *(model.resume(s, move(ids[:, 20:]))[0] for s in (snapshot, hidden))]

    wanted, got = outcome(lambda x: x, lambda x: x), outcome(lambda x: x.to(device), moved)
    for x, y in zip(got, wanted, strict=True):
        assert x.device == device
        assert torch.equal(x.cpu(), y)


@pytest.mark.parametrize("row", ["near", "transplant", "factorial"])
def test_rows_of_a_model_of_others(row: str, device: torch.device) -> None:
    options = {"vocabulary": Vocabulary(text=16, n_keys=64, n_values=64, n_filler=16), "n_pairs": 4, "n": 4}
    here, there = (
        list(ask_row(make_bench(adapt(place(build("qwen3_5_pure"))), {}, **options), row))  # type: ignore[arg-type]
        for place in (lambda x: x, moved)
    )
    assert found(there) == found(here)


def test_models_of_others_go_where_they_are_told(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []

    def certify_model(model: Any, **options: Any) -> Certificate:
        places.append(model.device)
        return no_state(model)

    module = importlib.import_module("groundthink.studies.certify")
    monkeypatch.setattr(module, "certify_model", certify_model)
    monkeypatch.setattr(module, "is_foreign", lambda path: True)
    monkeypatch.setattr(module, "model_from", lambda path, **options: adapt(build("qwen3_5_pure")))
    out = str(tmp_path / "found.json")
    for place in ([], ["--device", str(device)]):
        main(["certify", "somebody/model", "--vocabulary", "16,64,64,16", "--quiet", "--out", out, *place])
    assert places == [torch.device("cpu"), device]


def test_questions_and_the_parts_of_studies(device: torch.device) -> None:
    here, there = both()
    task = KvRecall(VOCABULARY, n_pairs=4, distance="fixed:9")
    questions = ask(task, n=5, seed=1)
    assert recall(there, questions) == recall(here, questions)
    assert parts.asked(there, task, "asked", n=5, seed=1) == parts.asked(here, task, "asked", n=5, seed=1)
    ids = some_ids(2, 40)
    assert torch.equal(predict_with(there)(ids).cpu(), predict_with(here)(ids))
    for last_seen in (None, 39):
        assert torch.equal(parts.nats(there, ids, last_seen), parts.nats(here, ids, last_seen))


def small_training() -> TrainConfig:
    """The demo's phases in a few steps, with the losses that its layers know beside that of the tokens."""
    sizes = ["d_model=16", "d_ff=16", "head_dim=8", "value_dim=8", "window_size=4"]
    recipe = load_recipe("demo", [f"model.{size}" for size in sizes])
    first, *others = recipe.phases
    losses = dict.fromkeys(sorted(set(LOSSES) - UNHEARD), 0.1)
    first = dataclasses.replace(first, losses=losses, mix=(*first.mix, MixItem(loss_weight=0)))  # text to hold on to
    return smoke_form(dataclasses.replace(recipe, phases=(first, *others)), 4)


def trained(folder: Path) -> tuple[gt.HybridForCausalLM, list[Any]]:
    """A run that is stopped and gone on with, as far as its events are the same on every machine."""
    config = small_training()
    train(config, folder, model=build_model(config), stop_at=2)  # handed over: one of the losses holds on to it
    resume(folder, model=build_model(config))
    kept = [event for event in read_events(folder) if event["event"] in ("step", "evaluation", "phase")]
    return gt.load(folder), [{k: v for k, v in event.items() if k not in CLOCKS} for event in kept]


def test_training_and_what_is_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Losses, gradients, optimizer, checkpoints and evaluations: the same numbers in the log, the same weights."""
    here, wanted = trained(tmp_path / "here")
    places = []
    monkeypatch.setattr(training_run, "choose_device", lambda name: places.append(name) or device)
    there, got = trained(tmp_path / "there")
    assert places == ["cpu", "cpu"]
    assert got == wanted
    assert any(event["event"] == "evaluation" for event in got)
    for (name, p), q in zip(there.named_parameters(), here.parameters(), strict=True):
        assert torch.equal(p.cpu(), q), name


def test_held_out_text_and_a_sample(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "HELD_OUT_TOKENS", 4096)
    monkeypatch.setattr(demo, "SAMPLE_TOKENS", 20)
    config = small_training()
    recipe, pair = Recipe(config), both(vocab_size=512)
    assert parts.bits_per_byte(pair[1], config, documents=2, length=64) == parts.bits_per_byte(
        pair[0], config, documents=2, length=64
    )
    here, there = (demo._language(recipe, {"model": model, "no-read": model}, 0) for model in pair)
    assert there == here
    here, there = (demo._sample(model, recipe, 0) for model in pair)
    assert there == here


@pytest.mark.parametrize("name", ["cudda", "cuda:99"])
def test_a_device_that_is_not_there(name: str) -> None:
    """Nowhere are there a hundred GPUs."""
    with pytest.raises(ConfigError, match=f"device: '{name}' is no device here"):
        on_device(hybrid(), name)
