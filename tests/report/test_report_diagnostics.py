"""Pictures that records carry: drawn, inert, and refused in one line where they are damaged."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from groundthink import report
from groundthink.records import ProbeResult, to_json
from groundthink.report.read import RecordError
from tests.report.synthetic import HOSTILE, records, write_run
from tests.report.test_report import Outline, dangers

LINES = {
    "kind": "lines", "title": "Rank over time", "x_label": "tokens", "y_label": "rank", "log_x": True, "chance": 1.0,
    "y_limits": None,
    "series": [
        {"name": "head 0", "x": [1, 2, 4], "y": [1.0, None, 3.0]},
        {"name": "head 1", "x": [1, 4], "y": [1.0, 2.0], "low": [0.5, 1.0], "high": [1.5, 3.0]},
    ],
}  # fmt: skip
GRID = {
    "kind": "grid", "title": "Cosines", "x_label": "head", "y_label": "", "rows": ["layer 0", "layer 2"],
    "columns": ["0", "1", "2"], "values": [[-0.5, 0.25, None], [1.0, 12.5, 0.0]], "limits": None,
}  # fmt: skip
DOTS = {"kind": "dots", "title": "Gates by kind", "panels": {"beta": {"layer 0": {"key": 0.9, "filler": 0.1}}}}


def probe(*pictures: dict[str, Any], name: str = "state_rank/layer0") -> str:
    result = ProbeResult(name, 3.0, "pass", "Its rank is 3.", 2.5, 3.5, 8, 1.0, 2.0, {"pictures": list(pictures)})
    return to_json({"probe": name, "results": [result], "provenance": {}})


def page_of(folder: Path, content: str, name: str = "state_rank") -> str:
    write_run(folder, only=set())
    for path in folder.rglob("events.jsonl"):
        path.unlink()  # so that no other chart is drawn
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records" / f"probe_{name}.json").write_text(content)
    return report.build(folder).read_text()


def test_a_probe_is_a_table_and_its_pictures(tmp_path: Path) -> None:
    page = page_of(tmp_path, probe(LINES, GRID, DOTS))
    assert re.findall(r"<h2>(Diagnostics)</h2>", page)
    part = page[page.index("<h2>Diagnostics") :].split("</section>")[0]
    assert part.count("<figure>") == 3
    for word in ("2.500 to 3.500", "Its rank is 3.", "✓ pass", "Rank over time", "head 1", "12", "-0.5", "filler"):
        assert word in part, word
    assert dangers(page) == []
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_two_pictures_of_one_name_keep_their_ids_apart(tmp_path: Path) -> None:
    page = page_of(tmp_path, probe(LINES, LINES))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_many_pictures_and_many_cells_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundthink.report.diagnostics.MOST", 2)
    many = [str(i) for i in range(24)]
    big = {**GRID, "rows": many, "columns": many, "values": [[i / 24] * 24 for i in range(24)]}
    page = page_of(tmp_path, probe(big, *[DOTS] * 4))
    assert "3 more pictures" in page
    assert page.count("<figure>") == 2


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    none = [math.nan, math.nan]
    empty = [
        {**LINES, "series": [{"name": "a", "x": [1, 2], "y": none}]},
        {**GRID, "values": [[None] * 3] * 2},
        {**DOTS, "panels": {"beta": {"layer 0": {}}}},
    ]
    page = page_of(tmp_path, probe(*empty))
    assert "<figure>" not in page
    assert "Its rank is 3." in page


def test_a_run_without_single_questions_says_nothing_of_them(tmp_path: Path) -> None:
    assert "Diagnostics" not in report.build(write_run(tmp_path)).read_text()


def test_a_picture_asked_by_itself_stands_in_for_its_record(tmp_path: Path) -> None:
    content = json.dumps({"probe": "gates", "picture": records()["gates"]})
    page = page_of(tmp_path, content, name="gates")
    assert "<h2>Gates</h2>" in page
    assert "<h2>Diagnostics</h2>" not in page
    with pytest.raises(RecordError, match=r"probe_gates\.json, field picture"):
        page_of(tmp_path / "b", json.dumps({"probe": "gates", "picture": {"layers": 3}}), name="gates")


def test_hostile_pictures_are_inert(tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v if k == "kind" else poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(x) for x in value]
        return HOSTILE if isinstance(value, str) else value

    dots = {**DOTS, "panels": {HOSTILE: {HOSTILE: {HOSTILE: 0.5}}}}
    page = page_of(tmp_path, probe(poison(LINES), poison(GRID), dots, name=HOSTILE))
    assert dangers(page) == []
    assert "alert(1)" in "".join(Outline(page).words)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ({**LINES, "kind": "pie"}, "'pie' is not lines, grid or dots"),
        ({**LINES, "series": [{"name": "a", "x": [1, 2], "y": [1]}]}, "not of one length"),
        ({**LINES, "series": [{"name": "a", "x": [0, 2], "y": [1, 2]}]}, "not above 0"),
        ({**LINES, "y_limits": [1, 0]}, "no two ends"),
        ({**GRID, "values": [[1, 2]]}, "not 2 rows by 3 columns"),
        ({**GRID, "values": [["x"] * 3] * 2}, "'x' is not a number"),
        ({**DOTS, "panels": 3}, "field panels"),
        ({"kind": "grid"}, "field title: it is missing"),
    ],
)
def test_a_damaged_picture_is_one_line_with_its_file(tmp_path: Path, picture: dict[str, Any], words: str) -> None:
    with pytest.raises(RecordError) as caught:
        page_of(tmp_path, probe(picture))
    assert words in str(caught.value)
    assert "records/probe_state_rank.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [("[]", "not an object"), ("{}", "results"), ('{"results": [1]}', "[0]")]
)
def test_a_damaged_probe_record_is_named(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(RecordError, match=r"records/probe_state_rank\.json") as caught:
        page_of(tmp_path, content)
    assert words in str(caught.value)
