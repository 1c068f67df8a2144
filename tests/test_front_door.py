"""The public names, and what a plain import may cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import groundthink
from groundthink.records import command_line

NAMES = [
    *("DeltaMemory", "write", "write_and_read"),
    *("HybridForCausalLM", "ModelConfig", "Snapshot", "TWINS", "load_model", "save_model", "stream"),
    *("load", "load_recipe", "resume", "train"),
    "certify",
]


def test_the_front_door_holds_these_names_and_no_others() -> None:
    assert sorted(NAMES) == groundthink.__all__ == dir(groundthink)
    for name in NAMES:
        assert getattr(groundthink, name).__doc__ or name.isupper()  # a constant is described where it stands


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'wirte'"):
        groundthink.wirte  # noqa: B018


def test_import_needs_neither_torch_nor_triton_nor_matplotlib() -> None:
    heavy = ["torch", "transformers", "triton", "matplotlib", "tyro", "rich", "tokenizers"]
    code = f"import sys, groundthink\nassert not set({heavy!r}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_loads_where_triton_and_matplotlib_are_missing() -> None:
    code = (
        "import sys\n"
        "for name in ('triton', 'matplotlib', 'fla'): sys.modules[name] = None\n"
        "import groundthink\n"
        "for name in groundthink.__all__: getattr(groundthink, name)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_record_names_its_command_without_the_machine_s_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/groundthink", "certify", "runs/x", "--out", "/elsewhere/y.json"])
    assert command_line() == "groundthink certify runs/x --out y.json"
