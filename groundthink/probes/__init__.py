"""Questions to a trained model, each with a verdict, and the certificate that puts them together."""

from groundthink.probes.bench import Bench, Point, make_bench
from groundthink.probes.causality import causality
from groundthink.probes.certify import certify, result_json
from groundthink.probes.curves import gate_statistics, needle_map, recall_curves
from groundthink.probes.cuts import cut_own_reads, cut_reads
from groundthink.probes.diagnostics import DIAGNOSTICS
from groundthink.probes.diagnostics.gradients import GradientReport, gradient_report, gradient_result
from groundthink.probes.effective_attention import attention_of, effective_attention
from groundthink.probes.face import Model
from groundthink.probes.gating import block_writes, freeze_memory
from groundthink.probes.intervention import Intervention
from groundthink.probes.interventions import (
    Erase,
    LowRank,
    Mean,
    Noise,
    Quantise,
    Rewrite,
    ShuffleRows,
    Transplant,
    WindowLimit,
    Zero,
    intervention_from_dict,
    shuffle_rows,
    transplant,
    zero,
)
from groundthink.probes.key_edits import edited, erase_rows, rewrite_rows, write_keys
from groundthink.probes.language import language, paired_bootstrap
from groundthink.probes.parity import parity
from groundthink.probes.pictures import PICTURES
from groundthink.probes.prefilled import Prefilled
from groundthink.probes.readers import reader_rows, resume_split, second_memory
from groundthink.probes.recall import Questions, Recalled, ask, recall
from groundthink.probes.row import Row
from groundthink.probes.rows import ROWS, ask_row
from groundthink.probes.stateless import no_state
from groundthink.probes.statistics import Paired, cluster_bootstrap, detectable, holm
from groundthink.probes.transplant import at_boundary
from groundthink.probes.verdict import VERDICTS, Judgement, judge

__all__ = [
    "DIAGNOSTICS",
    "PICTURES",
    "ROWS",
    "VERDICTS",
    "Bench",
    "Erase",
    "GradientReport",
    "Intervention",
    "Judgement",
    "LowRank",
    "Mean",
    "Model",
    "Noise",
    "Paired",
    "Point",
    "Prefilled",
    "Quantise",
    "Questions",
    "Recalled",
    "Rewrite",
    "Row",
    "ShuffleRows",
    "Transplant",
    "WindowLimit",
    "Zero",
    "ask",
    "ask_row",
    "at_boundary",
    "attention_of",
    "block_writes",
    "causality",
    "certify",
    "cluster_bootstrap",
    "cut_own_reads",
    "cut_reads",
    "detectable",
    "edited",
    "effective_attention",
    "erase_rows",
    "freeze_memory",
    "gate_statistics",
    "gradient_report",
    "gradient_result",
    "holm",
    "intervention_from_dict",
    "judge",
    "language",
    "make_bench",
    "needle_map",
    "no_state",
    "paired_bootstrap",
    "parity",
    "reader_rows",
    "recall",
    "recall_curves",
    "result_json",
    "resume_split",
    "rewrite_rows",
    "second_memory",
    "shuffle_rows",
    "transplant",
    "write_keys",
    "zero",
]
