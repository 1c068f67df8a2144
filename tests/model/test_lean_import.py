"""`import groundthink` needs no kernels, no GPU and no plotting, and brings in nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "matplotlib"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def _python(code: str) -> subprocess.CompletedProcess[str]:
    world = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", BLOCK + code], env=world, capture_output=True, text=True, timeout=120)


def test_import_is_light() -> None:
    done = _python(
        "import groundthink\n"
        "heavy = {'torch', 'transformers', 'triton', 'matplotlib', 'tyro', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


def test_a_model_runs_without_triton_and_matplotlib() -> None:
    done = _python(
        "import torch\n"
        "from groundthink.model import HybridForCausalLM, ModelConfig\n"
        "model = HybridForCausalLM(ModelConfig(pattern='GS', vocab_size=9, d_model=16, head_dim=4, value_dim=4))\n"
        "model(torch.arange(9)[None])\n"
        "assert not {'triton', 'matplotlib'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["triton", "matplotlib.pyplot"])
def test_the_block_works(name: str) -> None:
    """Planted: with these imports the tests above would fail."""
    done = _python(f"import {name}")
    assert done.returncode == 1
    assert "blocked" in done.stderr
