"""The README's code runs, its map is the tree, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_every_python_block_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        found = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr


def test_the_map_is_the_tree() -> None:
    mapped = set(re.findall(r"\]\(([^)#:]+)\)", TEXT))
    assert not [path for path in mapped if not (ROOT / path).exists()]
    parts = {f"groundthink/{path.parent.name}" for path in (ROOT / "groundthink").glob("*/__init__.py")}
    assert parts | {"groundthink/recipes", "docs/log.md", "docs/math.md", "examples", "benchmarks"} <= mapped


def test_every_command_is_a_verb() -> None:
    from groundthink.cli.main import VERBS

    named = set(re.findall(r"`groundthink ([a-z]+)", TEXT))
    assert named == set(VERBS) - {"demo"}


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
