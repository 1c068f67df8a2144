"""The command line: quick help, one line for every fault of the input, honest exit codes."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import importlib
import os
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from groundthink.cli import common, main
from groundthink.cli.certify import EXIT_CODES
from groundthink.errors import CheckpointError, ConfigError
from groundthink.records import certificate_from_dict
from tests.report.synthetic import certificate, write_run

# The demo is checked by its own tests.


def run_it(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "groundthink.cli.main", *words], capture_output=True, text=True, **more
    )


def one_line(text: str) -> str:
    """The single line on standard error; fails on none, several, or a traceback."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    assert lines[0].startswith("groundthink")
    return lines[0]


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom groundthink.cli.main import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'tyro', 'rich', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        assert found.returncode == 0, found.stderr
        assert all(f"  {verb} " in found.stdout for verb in main.VERBS)
    assert statistics.median(seconds) < 0.5  # the promise of `groundthink --help`, interpreter start included


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_has_help_without_torch(verb: str) -> None:
    code = (
        f"import sys\nfrom groundthink.cli.main import main\nassert main([{verb!r}, '--help']) == 0\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert f"usage: groundthink {verb}" in found.stdout


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_is_frozen_flags_with_docstrings_and_a_run(verb: str) -> None:
    module = importlib.import_module(main.VERBS[verb][0])
    assert dataclasses.is_dataclass(module.Flags)
    assert module.Flags.__dataclass_params__.frozen
    assert module.Flags.__doc__
    assert callable(module.run)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["tran"], ["no verb 'tran'", "did you mean train?"]),
        (["--seed", "3"], ["no verb '--seed'"]),
        (["train", "demo", "--sed", "3"], ["groundthink train", "no flag --sed", "did you mean --seed?"]),
        (["train", "demo", "--sed=3"], ["no flag --sed=3", "did you mean --seed?"]),
        (["train", "demo", "--seed", "three"], ["groundthink train", "--seed", "three", "--help"]),
        (["train", "demo", "--seed"], ["groundthink train", "--seed"]),
        (["train"], ["groundthink train", "RECIPE"]),
        (["report", "a", "b"], ["'b' is one word too many"]),
        (["report", "nowhere"], ["nowhere", "is not a folder", "Fix:"]),
        (["report", "nowhere\nat\nall"], ["nowhere at all", "is not a folder"]),
        (["evaluate", "x", "--split", "train"], ["--split", "train", "valid", "test"]),
        (["certify", "nowhere"], ["nowhere", "no such folder", "hub cannot be reached", "Fix:"]),
        (["certify", "no/such/run"], ["no/such/run", "neither a run", "Fix:"]),
        (["train", "demo", "--set", "seed=1", "--set", "seed=2"], ["--set is given twice", "after one --set"]),
        (["evaluate", "nowhere"], ["nowhere", "neither a run"]),
        (["resume", "nowhere"], ["nowhere", "there is no run"]),
        (["generate", "nowhere", "--tokens", "0"], ["tokens 0", "at least 1"]),
        (["generate", "nowhere", "--temperature", "nan"], ["temperature nan"]),
        (["generate", "nowhere"], ["nowhere", "neither a run"]),
        (["bench", "--heads", "0", "--runs", "-1"], ["heads, runs must be positive"]),
        (["bench", "--heads", "4", "--value-heads", "6"], ["6 value heads are not a multiple of 4"]),
        (["bench", "--backend", "tritn"], ["no backend 'tritn'", "triton"]),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str],
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, load_recipe=None, resume=None)
    assert main.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for part in parts:
        assert part in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_process_says_one_line_too(tmp_path: Path) -> None:
    found = run_it("report", str(tmp_path / "nowhere"))
    assert found.returncode == 2
    assert "is not a folder" in one_line(found.stderr)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["x", "--seed", "three"], "--seed: ['three'] is not INT Fix:"),
        ([], "RECIPE"),
        (["x", "--stop-at"], "--stop-at"),
    ],
)
def test_complaints_read_the_same_on_every_terminal(encoding: str, words: list[str], part: str) -> None:
    """tyro draws another box where the terminal does not speak UTF-8."""
    found = run_it("train", *words, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert found.returncode == 2
    line = one_line(found.stderr)
    assert part in line
    assert not set("│╭╮╰╯─") & set(line)


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    assert "usage: groundthink <verb>" in capsys.readouterr().out
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("groundthink 0")


def test_report_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", only={"sample"})
    assert main.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "<!doctype html>" in (folder / "report.html").read_text()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_disk_at_fault_is_one_line_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    folder = write_run(tmp_path / "run", only={"sample"})
    (folder / "report.html").write_text("earlier")

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fail)
    assert main.main(["report", str(folder)]) == 2
    line = one_line(capsys.readouterr().err)
    assert str(folder / "report.html") in line
    assert os.strerror(code) in line
    assert "Fix:" in line
    assert (folder / "report.html").read_text() == "earlier"


def test_a_real_write_limit_is_one_line(tmp_path: Path) -> None:
    """The kernel itself refuses the write: what a full disk does, without filling one."""
    folder = write_run(tmp_path / "run", only={"sample"})
    code = (
        "import resource, sys\nfrom groundthink.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"sys.exit(main(['report', {str(folder)!r}]))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 2, found.stderr
    assert "File too large" in found.stderr.splitlines()[-1]
    assert "report.html" in found.stderr.splitlines()[-1]
    assert not (folder / "report.html").exists()
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_page_cannot_go_over_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", only={"sample"})
    (tmp_path / "out").mkdir()
    assert main.main(["report", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out'}: Is a directory" in one_line(capsys.readouterr().err)


def verb_that(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The verb `doctor` raises `error`."""
    from groundthink.cli import doctor

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", fail)


def test_the_keyboard_leaves_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    verb_that(monkeypatch, KeyboardInterrupt())
    assert main.main(["doctor"]) == 130
    assert "interrupted" in one_line(capsys.readouterr().err)


def test_a_reader_that_leaves_is_no_fault(tmp_path: Path) -> None:
    """`groundthink --help | head -0`: the pipe breaks, nobody complains."""
    program = f"{sys.executable} -m groundthink.cli.main --help | true"
    found = subprocess.run(["sh", "-c", program], capture_output=True, text=True)
    assert found.stderr == ""


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), OSError("no number")])
def test_a_fault_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    verb_that(monkeypatch, error)
    with pytest.raises(type(error)):
        main.main(["doctor"])


def test_the_exit_code_of_an_error_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(ConfigError):
        exit_code = 7

    verb_that(monkeypatch, Other("what\nis wrong.", where="here", fix="this."))
    assert main.main(["doctor"]) == 7
    assert one_line(capsys.readouterr().err) == "groundthink: here: what is wrong. Fix: this."


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str = "training", **names: Any) -> None:
    """Names of a part replaced, so that a verb is tested without training anything."""
    part = importlib.import_module(f"groundthink.{module}")
    for name, value in names.items():
        monkeypatch.setattr(part, name, value, raising=False)


@pytest.mark.parametrize(("reason", "code"), [("done", 0), ("stop_at", 0), ("SIGINT", 130), ("SIGTERM", 143)])
def test_train_hands_on_what_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reason: str,
    code: int,
) -> None:
    seen: dict[str, Any] = {}
    phases = [types.SimpleNamespace(name="p", steps=3)]

    def load_recipe(source: str, overrides: list[str]) -> Any:
        seen.update(source=source, overrides=overrides)
        return types.SimpleNamespace(phases=phases)

    def train(config: Any, folder: Path, *, on_event: Any, stop_at: int | None) -> Any:
        seen.update(folder=folder, stop_at=stop_at)
        on_event({"event": "step", "step": 1, "phase": "p", "loss": 1.0})
        return types.SimpleNamespace(finished=reason == "done", reason=reason, step=3)

    stand_in(monkeypatch, load_recipe=load_recipe, train=train)
    words = ["train", "demo", "--seed", "3", "--set", "a=1", "b=2", "--stop-at", "9", "--quiet"]
    assert main.main([*words, "--folder", str(tmp_path)]) == code
    assert seen == {
        "source": "demo",
        "overrides": ["a=1", "b=2", "seed=3"],
        "folder": tmp_path,
        "stop_at": 9,
    }
    out, err = capsys.readouterr()
    assert str(tmp_path) in out
    assert err == ""


@pytest.mark.parametrize("verdict", EXIT_CODES)
def test_certify_says_its_verdict_and_leaves_with_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict: str
) -> None:
    from groundthink.cli.subject import Subject

    seen: dict[str, Any] = {}

    def certify(model: Any, twin: Any, *, vocabulary: Any, n_pairs: int, n: int, seed: int, **others: Any) -> Any:
        seen.update(model=model, task=(vocabulary, n_pairs), twins=twin, n=n, seed=seed, **others)
        others["on_event"]("row", {"id": "K1", "title": "Donor transplant", "point": "2x"})
        others["on_event"]("progress", {"where": "2x"})
        others["on_event"]("probe", {"name": "recall@8R"})
        assert "recall@8R" in (tmp_path / "records" / "certificate.partial.json").read_text()
        return certificate(verdict)

    model = SimpleNamespace(horizon=18.0, sizes=SimpleNamespace(window_size=16))
    options = {"vocabulary": "ids", "n_pairs": 16, "trained_length": 50, "needle": "needles"}
    subject = Subject(model, {"no-read": model}, options, tmp_path / "records")
    stand_in(monkeypatch, "probes", certify=certify)
    monkeypatch.setattr("groundthink.cli.subject.subject_of", lambda path, **flags: subject)
    code = main.main(["certify", str(tmp_path), "--n", "50", "--seed", "4"])
    assert code == EXIT_CODES[verdict]
    assert (seen["model"], seen["twins"]) == (model, {"no-read": model})
    assert (seen["multiples"], seen["text_multiples"]) == ((2, 8), (2,)), "those that leave room"
    assert seen["rows"] == ("full",)
    assert not (tmp_path / "records" / "certificate.partial.json").exists()
    assert (seen["task"], seen["n"], seen["seed"]) == (("ids", 16), 50, 4)
    out = capsys.readouterr().out
    assert verdict in out
    assert "recall@8R" in out
    import json

    saved = certificate_from_dict(json.loads((tmp_path / "records" / "certificate.json").read_text()))
    assert saved.verdict == verdict


def test_too_little_memory_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from groundthink.cli.subject import Subject
    from groundthink.errors import ResourceError

    def certify(model: Any, twin: Any, **options: Any) -> Any:
        options["on_event"]("probe", {"name": "parity"})
        raise ResourceError("out of memory after parity", where="certify", fix="ask for shorter texts")

    model = SimpleNamespace(horizon=18.0, sizes=SimpleNamespace(window_size=16))
    stand_in(monkeypatch, "probes", certify=certify)
    subject = Subject(model, {}, {"vocabulary": "ids"}, tmp_path)
    monkeypatch.setattr("groundthink.cli.subject.subject_of", lambda path, **flags: subject)
    assert main.main(["certify", str(tmp_path), "--quiet"]) == 2
    partial = tmp_path / "certificate.partial.json"
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "out of memory after parity" in err
    assert str(partial) in err
    assert '"parity"' in partial.read_text()
    assert not (tmp_path / "certificate.json").exists()


def test_a_saved_model_is_certified_without_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An untrained one: the task fails, the record is there, and single questions can be asked."""
    import json

    import torch

    from groundthink.model import HybridForCausalLM, ModelConfig, save_model

    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 1, "head_dim": 8, "value_dim": 8, "window_size": 4, "d_ff": 16}
    save_model(HybridForCausalLM(ModelConfig(pattern="GS", vocab_size=256, **sizes)), tmp_path)
    words = ["certify", str(tmp_path), "--n", "20", "--rows", "core", "--quiet"]
    assert main.main(words) == 13
    saved = json.loads((tmp_path / "records" / "certificate.json").read_text())
    assert saved["verdict"] == "TASK-FAIL"
    assert saved["setting"]["points"][-1]["name"] == "8R"
    assert main.main(["probe", "gates", str(tmp_path), "--n", "8"]) == 0
    assert main.main(["probe", "attention", str(tmp_path), "--n", "8"]) == 0
    assert main.main(["probe", "recall", str(tmp_path), "--n", "8"]) == 0
    out = capsys.readouterr().out
    assert "layer 1 reads layer 0, head 0" in out
    assert "recall@8R" in out
    assert json.loads((tmp_path / "records" / "probe_recall.json").read_text())["probe"] == "recall"
    save_model(HybridForCausalLM(ModelConfig(pattern="GS", vocab_size=64, **sizes)), tmp_path / "small")
    assert main.main(["certify", str(tmp_path / "small")]) == 2
    assert "64 ids are too few" in capsys.readouterr().err


def test_probe_lists_what_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["probe"]) == 0
    out = capsys.readouterr().out
    for name in ("causality", "parity", "recall", "transplant", "curves", "gates", "attention", "readers"):
        assert f"\n{name} " in f"\n{out}"
    assert main.main(["probe", "transplan", "x"]) == 2
    assert "did you mean transplant?" in capsys.readouterr().err
    assert main.main(["probe", "parity"]) == 2
    assert "no model is named" in capsys.readouterr().err


def test_exit_codes_are_those_of_the_design() -> None:
    codes = {"CERTIFIED": 0, "PARTIAL": 10, "NOT-PROVEN": 11, "REFUTED": 12, "TASK-FAIL": 13, "INVALID": 14}
    assert codes == EXIT_CODES


def test_tasks_of_a_recipe_are_those_of_its_last_phases() -> None:
    def item(source: str, label: str, hard: int) -> Any:
        return types.SimpleNamespace(source=source, label=label, hard=hard)

    phases = [
        types.SimpleNamespace(mix=[item("kv_recall", "easy", 1), item("kv_recall", "kv_recall", 1)]),
        types.SimpleNamespace(mix=[item("text", "text", 0), item("kv_recall", "kv_recall", 2)]),
    ]
    recipe = types.SimpleNamespace(config=types.SimpleNamespace(phases=phases), task=lambda item: item.hard)
    assert common.tasks_of(recipe, "") == {"easy": 1, "kv_recall": 2}
    assert common.tasks_of(recipe, "easy") == {"easy": 1}
    with pytest.raises(CheckpointError, match="its tasks: easy, kv_recall"):
        common.tasks_of(recipe, "needle")


def test_generate_draws_only_known_ids_and_repeats_itself() -> None:
    import groundthink as gt
    from groundthink.cli.generate import Flags, draw

    sizes = {"vocab_size": 8, "d_model": 16, "n_heads": 2, "head_dim": 4, "value_dim": 4, "d_ff": 16, "window_size": 4}
    model = gt.HybridForCausalLM(gt.ModelConfig(pattern="GS", init_std=0.5, **sizes)).eval()

    def drawn(**given: Any) -> list[int]:
        return list(draw(model, [1, 2], 5, Flags(Path("x"), **given)))

    assert len(drawn(tokens=6, temperature=0)) == 6
    first = drawn(tokens=40, temperature=4.0, seed=3)
    assert first == drawn(tokens=40, temperature=4.0, seed=3)
    assert set(first) == set(range(5))
    assert first != drawn(tokens=40, temperature=4.0, seed=4)


def test_generate_prints_letters_as_they_become_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from groundthink.cli import generate
    from groundthink.data import load_tokenizer

    tokenizer = load_tokenizer("bytes")
    text = "aé€𝄞b"
    assert list(generate.pieces(tokenizer.encode(text), tokenizer)) == list(text)
    broken = [0xE2, 0x82, 97, 0xF0]
    assert "".join(generate.pieces(broken, tokenizer)) == tokenizer.decode(broken)
    assert len(list(generate.pieces([0xFF] * 40, tokenizer))) == 3
    stand_in(monkeypatch, load=lambda folder: None)
    monkeypatch.setattr(generate, "find_recipe", lambda folder: SimpleNamespace(tokenizer=tokenizer))
    monkeypatch.setattr(generate, "draw", lambda model, ids, vocab_size, flags: iter([*ids, vocab_size - 256 + 33]))
    assert main.main(["generate", str(tmp_path), "--prompt", "oh"]) == 0
    assert capsys.readouterr().out == "ohoh!\n"


def test_help_survives_a_machine_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of torch is an error here, as where it is not installed."""
    real = builtins.__import__

    def refuse(name: str, *more: Any, **named: Any) -> Any:
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main.main(["--help"]) == 0
    for verb in main.VERBS:
        assert main.main([verb, "--help"]) == 0
