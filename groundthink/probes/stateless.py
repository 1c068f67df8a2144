"""The honest answer for a model without a recurrent state: there is nothing to certify."""

from __future__ import annotations

import math

from groundthink.probes.face import Model
from groundthink.records import Certificate, ProbeResult, provenance


def no_state(model: Model, *, seed: int = 0) -> Certificate:
    """NOT-PROVEN, because there is no state that could carry anything.

    Args:
        model: one of whose layers none carries a memory.
        seed: for the record; nothing is drawn.
    """
    finite = math.isfinite(model.horizon)
    horizon = int(model.horizon) if finite else None
    reach = f"{horizon} tokens back" if finite else "back without end"
    meaning = f"No layer carries a recurrent memory; keys and values reach {reach}."
    row = ProbeResult("state", 0.0, "info", meaning, details={"memory_layers": [], "reach": horizon})
    sentence = f"NOT-PROVEN. There is no state to certify: {meaning[0].lower()}{meaning[1:]}"
    return Certificate("NOT-PROVEN", sentence, horizon, (row,), seed, provenance())
