"""Run folders made of invented numbers, for the tests of whatever reads records."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from groundthink.records import Certificate, ProbeResult, Proportion, to_json

HORIZON = 62
HOSTILE = "</pre><script>document.title='owned';console.error('owned')</script><img src=x onerror=alert(1)>&\"'"


def certificate(verdict: str = "CERTIFIED") -> Certificate:
    """A certificate with one result of every sort."""
    rows = [
        ProbeResult("causality", 0.0, "pass", "Later tokens change no earlier logit.", threshold=0.0, n=64),
        ProbeResult("parity", 3.1e-7, "pass", "Whole, chunked and stepwise logits agree.", threshold=1e-5),
    ]
    for name, hits, chance in [("R+1", 398, 1 / 64), ("2R", 395, 1 / 64), ("8R", 391, 1 / 64)]:
        p = Proportion(hits, 400)
        meaning = f"Recall of 16 pairs at distance {name}."
        rows.append(ProbeResult(f"recall@{name}", p.rate, "pass", meaning, p.low, p.high, 400, chance, threshold=0.9))
    rows.append(ProbeResult("no-read twin@8R", math.nan, "info", "Stands beside, asks nothing.", n=400))
    rows.append(ProbeResult("keep@2R", 0.21, "fail", "The old answer stays too often.", 0.17, 0.25, 400, 1 / 64))
    rows = [dataclasses.replace(r, details={"row": "B1" if r.name.startswith("recall") else "C0"}) for r in rows]
    asked = {
        "C0": {"title": "Causality", "question": "Does a later token change earlier logits?", "group": "precondition"},
        "B1": {"title": "Recall", "question": "Does it answer when only a memory can?", "group": "behaviour"},
        "K1": {"title": "Transplant", "question": "Was this never asked?", "group": "causal"},
    }
    lengths = [
        {"point": "2x", "length": 256, "verdict": verdict, "reason": "it is right in 0.988 of 400 episodes."},
        {"point": "text-2x", "length": 256, "verdict": "NOT-PROVEN", "reason": "recall is not above chance."},
    ]
    return Certificate(
        verdict,
        f"{verdict}. The answer came from the memory: recall at 8R is 0.978 and follows a transplanted memory.",
        HORIZON,
        tuple(rows),
        0,
        {
            "commit": "0123456789ab",
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "hardware": "Test CPU, 2 cores",
            "command": "groundthink demo",
        },
        tuple(lengths),
        {"CAUSALLY-SUPPORTED": {"holds": True, "because": "answers follow a transplanted memory"}},
        {"questions": asked, "notes": ["twin: not supplied."]},
    )


def _curve(name: str, rates: list[float]) -> dict[str, Any]:
    points = []
    distances = [16, 32, HORIZON + 1, 2 * HORIZON, 4 * HORIZON, 8 * HORIZON]
    for distance, rate in zip(distances, rates, strict=True):
        points.append({"distance": distance, **Proportion(round(400 * rate), 400).as_dict()})
    return {"name": name, "points": points}


def records() -> dict[str, Any]:
    """Every record a page can show, by file name."""
    flat = [0.016, 0.018, 0.014, 0.02, 0.012, 0.015]
    return {
        "certificate": dataclasses.asdict(certificate()),
        "recall_curves": {
            "horizon": HORIZON,
            "window": 32,
            "chance": 1 / 64,
            "curves": [
                _curve("trained model", [1.0, 1.0, 0.995, 0.9875, 0.985, 0.9775]),
                _curve("S reads cut", [0.99, 0.4, *flat[2:]]),
                _curve("G's own reads cut", [1.0, 0.99, 0.985, 0.98, 0.975, 0.96]),
                _curve("no-read twin", [1.0, 0.97, 0.31, 0.22, 0.15, 0.09]),
                _curve("window-only", [0.98, 0.35, *flat[2:]]),
            ],
        },
        "needle": {
            "depths": [0.0, 0.25, 0.5, 0.75, 1.0],
            "lengths": [64, 128, 256, 512, 1024, 2048],
            "rates": [[max(0.0, 1 - 0.1 * max(0, j - 2) * (1.5 - i / 4)) for j in range(6)] for i in range(5)],
            "n": 40,
            "chance": 1 / 256,
            "trained_length": 256,
        },
        "gates": {
            "layers": [
                {
                    "layer": i,
                    "beta": {"facts": 0.9 - 0.1 * i, "filler": 0.12 + 0.05 * i, "text": 0.4},
                    "decay": {"facts": 0.97, "filler": 0.999 - 0.02 * i, "text": 0.93},
                }
                for i in range(3)
            ]
        },
        "language": {
            "bits_per_byte": {"model": 1.925, "no-read twin": 1.946},
            "difference": {"mean": -0.021, "low": -0.034, "high": -0.008},
            "documents": 120,
        },
        "sample": {"prompt": "def read(self", "text": ", path):\n    return self._read(path)\n"},
        "summary": {
            "title": "GroundThink demo",
            "rows": [
                {
                    "question": "Is the model causal?",
                    "answer": "largest change is exactly 0",
                    "verdict": "pass",
                },
                {"question": "Does it recall beyond R?", "answer": "0.978 at 8R", "verdict": "pass"},
                {"question": "Which layer reads?", "answer": "the S layer; see the cuts", "verdict": "info"},
            ],
        },
    }


def events(steps: int = 600, twin: bool = False) -> list[dict[str, Any]]:
    """Events of a run with three phases, evaluations and one fault."""
    lines: list[dict[str, Any]] = []
    starts = {0: "bootcamp", steps // 5: "more pairs", steps // 2: "integration"}
    phase = ""
    for step in range(steps):
        if step in starts:
            phase = starts[step]
            lines.append({"event": "phase", "phase": phase, "step": step})
        recall = 4.2 / (1 + math.exp((step - steps / 3) / 30)) + (1.4 if twin else 0.02)
        sources = {"kv_recall": recall}
        if phase == "integration":
            sources["text"] = 2.0 + 3.0 * math.exp(-(step - steps / 2) / 80)
        lines.append(
            {
                "event": "step",
                "step": step,
                "phase": phase,
                "loss": sum(sources.values()) / len(sources),
                "learning_rate": 2e-3,
                "tokens": 6144 * (step + 1),
                "tokens_per_second": 14_500.0 + step % 7,
                "grad_norm": 0.8,
                "source_losses": sources,
            }
        )
        if step % 50 == 49:
            share = 1 / (1 + math.exp(-(step - steps / 3) / 30))
            metrics = {"kv_recall": share, "kv_recall@2R": 0.97 * share, "bits_per_byte": 8 - 5 * share}
            lines.append({"event": "evaluation", "step": step, "metrics": metrics})
    lines.append({"event": "fault", "step": 17, "what": "gradient is not finite", "parameter": "blocks.0.q"})
    lines.append({"event": "done", "step": steps})
    return lines


def write_run(folder: Path, only: set[str] | None = None, **changed: Any) -> Path:
    """A run folder. `only` names the records to write (all if None); `changed` replaces records by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("model:\n  pattern: GS\n  window_size: 32\nseed: 0\n")
    write_events(folder / "events.jsonl", events())
    write_events(folder / "twins" / "no-read" / "events.jsonl", events(twin=True))
    for name, record in {**records(), **changed}.items():
        if only is None or name in only:
            path = folder / "records" / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(to_json(record))
    return folder


def write_events(path: Path, lines: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def crowded(folder: Path) -> Path:
    """A run with more lines, longer names and more cells than a page likes."""
    curves = []
    for i in range(9):
        points = [
            {"distance": d, **Proportion(round(400 * max(0.01, 1 - 0.02 * i * j)), 400).as_dict()}
            for j, d in enumerate([8, 16, 32, 63, 96, 124, 186, 248, 372, 496, 992, 1984, 16384])
        ]
        curves.append({"name": f"reader number {i} with a name far too long for its place", "points": points})
    lengths = [64 * 2**i for i in range(12)]
    kinds = ["keys", "values", "filler", "queries", "natural text", "document starts"]
    layers = [
        {
            "layer": i,
            "beta": {k: (i + j) / 14 for j, k in enumerate(kinds)},
            "decay": dict.fromkeys(kinds, 0.9),
        }
        for i in range(9)
    ]
    write_run(
        folder,
        recall_curves={"horizon": HORIZON, "window": 32, "chance": 1 / 64, "curves": curves},
        needle={
            "depths": [i / 10 for i in range(11)],
            "lengths": lengths,
            "rates": [[1 - j / 12 for j in range(12)] for _ in range(11)],
            "n": 40,
            "chance": 1 / 256,
            "trained_length": 64 * 2**9,
        },
        gates={"layers": layers},
    )
    lines = [e for e in events() if e["event"] != "phase"]
    phases = [{"event": "phase", "phase": f"phase number {i}", "step": 40 * i} for i in range(15)]
    names = [f"some_task_{i}/recall_by_distance@{2**i}R" for i in range(10)]
    found = [
        {"event": "evaluation", "step": s, "metrics": {n: s / 700 + i / 100 for i, n in enumerate(names)}}
        for s in range(0, 600, 100)
    ]
    write_events(folder / "events.jsonl", [*lines, *phases, *found])
    return folder
