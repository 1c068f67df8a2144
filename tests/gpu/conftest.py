"""What torch's compiler says of itself is not our warning, so it is no error here."""

from __future__ import annotations

from pathlib import Path

import pytest

# torch 2.11: it uses a deprecated part of torch, products in float32 could be rounded, it looked for a gradient.
COMPILER = (
    "ignore:.*script_method.* is deprecated:DeprecationWarning",
    "ignore:TensorFloat32 tensor cores:UserWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for warning in COMPILER:
                item.add_marker(pytest.mark.filterwarnings(warning))
