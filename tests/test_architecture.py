"""The import table of docs/architecture.md, held by force."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "groundthink"
PARTS = {
    "ops",
    "layers",
    "model",
    "data",
    "tasks",
    "training",
    "probes",
    "scaling",
    "report",
    "studies",
    "cli",
}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "ops": {"errors"},
    "layers": {"ops", "errors"},
    "model": {"layers", "ops", "errors"},
    "data": {"errors"},
    "tasks": {"data", "errors", "records"},
    "training": {"model", "data", "tasks", "records", "errors"},
    "probes": {"model", "layers", "ops", "tasks", "records", "errors"},
    "scaling": {"model", "training", "tasks", "records", "errors"},
    "report": {"records", "errors"},
    "studies": PARTS - {"cli"} | {"errors", "records"},
    "cli": PARTS | {"errors", "records"},
    "recipes": set(),
    "__init__": PARTS | {"errors", "records"},
}
# Who alone may import what from outside; the value lists parts or single files.
ONLY: dict[str, set[str]] = {
    "triton": {"ops/_triton"},
    "fla": {"ops/backends", "model/adapters/fla"},
    "transformers": {"model"},
    "tokenizers": {"data"},
    "datasets": {"data"},
    "torch.distributed": {"training"},
    "scipy": {"scaling"},
    "matplotlib": {"report"},
    "tyro": {"cli"},
    "rich": {"cli"},
}
LINES_PER_FILE = 450
LINES_PER_FUNCTION = 70


def imports_of(source: str) -> set[str]:
    """Every module named by an import statement, at any depth of the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            if node.module == "groundthink":
                found |= {f"groundthink.{alias.name}" for alias in node.names}
    return found


def problems(relative: str, source: str) -> list[str]:
    """What this file may not import."""
    part = relative.split("/")[0].removesuffix(".py")
    bad = []
    for name in imports_of(source):
        words = name.split(".")
        if words[0] == "groundthink" and len(words) > 1:
            if words[1] != part and words[1] not in MAY_IMPORT[part]:
                bad.append(f"{relative} may not import {name}")
            continue
        for outside, owners in ONLY.items():
            owned = name == outside or name.startswith(outside + ".")
            if owned and not any(relative.startswith(owner) for owner in owners):
                bad.append(f"{relative} may not import {name}: only {sorted(owners)} may")
    if part in ("report", "errors", "records") and any(n.split(".")[0] == "torch" for n in imports_of(source)):
        bad.append(f"{relative} may not import torch")
    return bad


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    assert problems(str(path.relative_to(PACKAGE)), path.read_text()) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("ops/memory.py", "from groundthink.layers import mixer"),
        ("ops/memory.py", "import triton"),
        ("report/page.py", "import torch"),
        ("training/loop.py", "from groundthink import probes"),
        ("tasks/needle.py", "import groundthink.model.hybrid"),
        ("layers/x.py", "from transformers import PreTrainedModel"),
    ],
)
def test_a_planted_violation_is_seen(where: str, line: str) -> None:
    assert problems(where, f"def f():\n    {line}\n")


def test_relative_imports_are_not_used() -> None:
    """`imports_of` reads absolute imports; a relative one would slip through the table."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_size_budget(path: Path) -> None:
    """A file tells one story, a function fits a screen; kernels are exempt."""
    if "_triton" in path.name:
        return
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_PER_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LINES_PER_FUNCTION, f"{path.name}: {node.name}"
