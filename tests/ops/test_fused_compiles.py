"""Every fused kernel through Triton's compiler for Hopper, which needs no GPU: the interpreter knows no types."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = r"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from groundthink.ops import _triton_conv as conv, _triton_cross_entropy as loss, _triton_gates as gates
from groundthink.ops import _triton_norms as norms, _triton_pointwise as pointwise

FLOATS = {"weight", "log_decay", "beta", "d_log_decay", "d_beta", "d_weight", "d_bias", "losses", "beta_bias",
          "decay_bias", "a_log"}
NUMBERS = {"T", "chunks", "CK", "CV", "sxb", "sxt", "rows", "D", "share", "F", "tiles", "H", "size", "stride"}
CONV = {"W": 4, "K": 64, "KP": 64, "HEADS": 2, "PARTS": 2, "STEPS": 64}
GATES = {"ROWS": 64, "HP": 16, "BLOCK": 64}
ROWS = {"ROWS": 1, "BLOCK": 1024}
CASES = [
    *((k, CONV | {"HAS_STATE": s, "HAS_DOCS": d} | ({} if s else {"state": None}) | ({} if d else {"documents": None}))
      for k in (conv.conv_forward_kernel, conv.conv_backward_kernel) for s, d in ((False, False), (True, True))),
    (norms.norm_forward_kernel, ROWS | {"ADD": True}),
    (norms.norm_forward_kernel, ROWS | {"ADD": False, "branch": None}),
    (norms.norm_backward_kernel, ROWS | {"HAS_D_TOTAL": True, "SPLIT": True}),
    (norms.norm_backward_kernel, ROWS | {"HAS_D_TOTAL": False, "SPLIT": False, "d_total": None}),
    (norms.gated_forward_kernel, ROWS), (norms.gated_backward_kernel, ROWS),
    (pointwise.swiglu_forward_kernel, {"BLOCK": 1024}), (pointwise.swiglu_backward_kernel, {"BLOCK": 1024}),
    *((k, GATES | ({"MAMBA": True} if m else {"MAMBA": False, "a_log": None}))
      for k in (gates.gates_forward_kernel, gates.gates_backward_kernel) for m in (False, True)),
    *((loss.cross_entropy_kernel, {"IGNORE": -100, "BLOCK": 4096, "SLOPE": s}) for s in (False, True)),
]

def kind(name, half):
    if name in NUMBERS:
        return "i32"
    if name in ("eps", "beta_range"):
        return "fp32"
    if name in ("documents", "labels"):
        return "*i64"
    return "*fp32" if name in FLOATS else half

for kernel, constants in CASES:
    for half in ("*bf16", "*fp32"):
        names = kernel.arg_names
        signature = {n: "constexpr" if n in constants else kind(n, half) for n in names}
        fixed = {(names.index(n),): x for n, x in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert "wgmma" in compiled.asm["ptx"] or "global" in compiled.asm["ptx"]
print("compiled", len(CASES))
"""


@pytest.mark.slow
def test_every_kernel_compiles(tmp_path: object) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = os.path.join(str(tmp_path), "compile.py")
    with open(script, "w") as file:
        file.write(SCRIPT)
    answer = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert answer.stdout.startswith("compiled")
