"""Single questions about the parts of a model: none of them moves a certificate. A file and an entry each."""

from __future__ import annotations

from groundthink.probes.diagnostics import cost, gates, gradients, keys, recall, state, writes
from groundthink.probes.row import Row

DIAGNOSTICS: dict[str, Row] = {
    "gate_spread": gates.GATES,
    "retention": gates.RETENTION,
    "key_similarity": keys.SIMILARITY,
    "marker_keys": keys.MARKERS,
    "state_content": state.CONTENT,
    "state_rank": state.RANK_OVER_TIME,
    "interference": writes.INTERFERENCE,
    "memory_capacity": writes.CAPACITY,
    "redundancy": writes.REDUNDANCY,
    "self_retrieval": writes.SELF_RETRIEVAL,
    "needle_grid": recall.NEEDLES,
    "needle_confusion": recall.CONFUSION,
    "state_window": recall.STATE_WINDOW,
    "answer_rank": recall.ANSWER_RANK,
    "gradients": gradients.GRADIENTS,
    "memory_use": cost.MEMORY_USE,
    "speed": cost.SPEED,
}
