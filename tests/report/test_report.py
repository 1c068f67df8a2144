"""The report page: whole, inert, honest about what is missing, one line where a record is damaged."""

from __future__ import annotations

import html.parser
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from groundthink import report
from groundthink.report import html as pieces
from groundthink.report.read import RecordError, read_run
from tests.report.synthetic import HOSTILE, records, write_events, write_run


class Outline(html.parser.HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def dangers(page: str) -> list[str]:
    """Whatever could run or fetch something: scripts, handlers, addresses outside the page."""
    outline = Outline(page)
    bad = [tag for tag in outline.tags if tag in ("script", "iframe", "img", "object", "embed", "form", "base")]
    for name, value in outline.attributes:
        local = value.startswith(("#", "data:"))
        if name.startswith("on") or (name in ("src", "href", "xlink:href", "action") and not local):
            bad.append(f"{name}={value}")
    return bad + re.findall(r"@import|url\((?!#)[^)]*\)", page)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.build(write_run(tmp_path_factory.mktemp("runs") / "demo")).read_text()


def test_every_section_is_there(page: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "In short",
        "Verdicts",
        "What was asked",
        "Recall against distance",
        "Certificate",
        "Training",
        "Measured during training",
        "Needle in text",
        "Gates",
        "Language",
        "Text sample",
    ]
    assert "not in this run" not in page
    assert page.index("CERTIFIED") < page.index("<h2>")
    assert page.count('<div class="wide"') == page.count('<div class="narrow"') == 5


def test_certificate_row_shows_all_its_numbers(page: str) -> None:
    row = page[page.index("recall@8R") :].split("</tr>")[0]
    for number in ("0.978", "0.958 to 0.988", "400", "0.0156", "0.900", "pass"):
        assert number in row


def test_the_certificate_is_told_in_plain_words(page: str) -> None:
    words = " ".join(" ".join(Outline(page).words).split())
    assert "CERTIFIED means: the answers came from the memory." in words
    assert "text-2x 256 ✗ NOT-PROVEN recall is not above chance." in words
    assert "CAUSALLY-SUPPORTED ✓ yes answers follow a transplanted memory" in words
    assert "twin: not supplied." in words
    asked = words[words.index("What was asked") : words.index("Recall against distance")]
    assert "Does it answer when only a memory can? ✓ pass" in asked
    assert "(3 of 3 tests passed)" in asked
    assert "Was this never asked?" not in asked, "a row without results is no answer"


def test_an_old_certificate_has_no_plain_words(tmp_path: Path) -> None:
    old = {k: v for k, v in records()["certificate"].items() if k not in ("lengths", "statements", "setting")}
    page = report.build(write_run(tmp_path, only={"certificate"}, certificate=old)).read_text()
    assert "<h2>Verdicts</h2>" not in page
    assert "<h2>Certificate</h2>" in page


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lengths", 3),
        ("lengths", [7]),
        ("lengths", [{"point": "2x", "length": "long", "verdict": "A", "reason": "b"}]),
        ("statements", {"X": 1}),
        ("setting", []),
        ("setting", {"questions": {"C0": 5}}),
    ],
)
def test_damage_in_the_plain_part_is_named(tmp_path: Path, field: str, value: Any) -> None:
    broken = {**records()["certificate"], field: value}
    folder = write_run(tmp_path, only={"certificate"}, certificate=broken)
    with pytest.raises(RecordError, match=r"certificate\.json"):
        report.build(folder)


def test_horizon_chance_and_multiples_are_drawn(page: str) -> None:
    chart = page[page.index("Recall against distance:") :].split("</svg>")[0]
    for word in ("R = 62", ">8R<", ">R+1<", "chance", "no-read twin", "trained model"):
        assert word in chart


def test_page_fetches_and_runs_nothing(page: str) -> None:
    assert dangers(page) == []
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in page


def test_the_danger_check_sees_planted_dangers(page: str) -> None:
    for planted in (
        "<script>1</script>",
        '<a href="https://x.example/">x</a>',
        '<p onclick="f()">x</p>',
        "<style>@import 'x.css'</style>",
        '<p style="background:url(x.png)">x</p>',
    ):
        assert dangers(page.replace("</main>", planted + "</main>")), planted


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'xlink:href="#([^"]*)"|url\(#([^)]*)\)', page):
        assert (used[0] or used[1]) in ids


def test_colours_follow_the_page(page: str) -> None:
    assert "var(--ink)" in page
    assert "var(--series-0)" in page
    assert "#0a0b" not in page  # a placeholder that was not replaced


def test_same_records_give_the_same_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "demo")
    assert report.build(folder).read_bytes() == report.build(folder, tmp_path / "b.html").read_bytes()


def poison(value: Any, text: str) -> Any:
    """Every string and every name in a record replaced by `text` (names keep a number to stay apart)."""
    if isinstance(value, dict):
        free = {"bits_per_byte", "beta", "decay", "versions"}
        return {
            k: {f"{text}{i}": poison(x, text) for i, x in enumerate(v.values())}
            if k in free and isinstance(v, dict)
            else (v if k == "verdict" and v in ("pass", "fail", "info") else poison(v, text))
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [poison(v, text) for v in value]
    return text if isinstance(value, str) else value


def test_hostile_text_is_inert_wherever_it_stands(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<script>x<", **poison(json.loads(json.dumps(records())), HOSTILE))
    (folder / "config.yaml").write_text(json.dumps({"name": HOSTILE}))
    write_events(
        folder / "events.jsonl",
        [
            {"event": "phase", "phase": HOSTILE, "step": 0},
            *({"event": "step", "step": i, "source_losses": {HOSTILE: 1.0 + i}} for i in range(3)),
            {"event": "evaluation", "step": 2, "metrics": {HOSTILE: 0.5, "$\\frac": 0.25}},
            {"event": "fault", "step": 1, "what": HOSTILE},
        ],
    )
    page = report.build(folder).read_text()
    assert dangers(page) == []
    shown = "".join(Outline(page).words)
    assert shown.count("alert(1)") > 20  # the text is there, as text
    assert "$\\frac" in shown


def test_each_missing_record_is_one_line(tmp_path: Path) -> None:
    page = report.build(write_run(tmp_path / "bare", only=set())).read_text()
    lines = re.findall(r'<p class="missing">(.*?)</p>', page)
    files = {"summary", "recall_curves", "certificate", "needle", "gates", "language", "sample"}
    assert {name for name in files if any(f"records/{name}.json" in line for line in lines)} == files
    assert "NOT CERTIFIED YET" in page
    assert "<h2>Training</h2>" in page


def test_a_folder_with_one_record_and_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", only={"sample"})
    for name in ("config.yaml", "events.jsonl", "twins/no-read/events.jsonl"):
        (folder / name).unlink()
    page = report.build(folder).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Text sample"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("needle", "{", "is not JSON"),
        ("needle", "[1, 2]", "is not an object"),
        ("needle", '{"depths": [0], "lengths": [1, 2], "rates": [[1]]}', "not 1 depths by 2 lengths"),
        ("needle", '{"depths": ["x"], "lengths": [1], "rates": [[1]]}', "'x' is not a number"),
        ("needle", '{"depths": [0], "lengths": [1], "rates": [[2]]}', "2 is not a share"),
        ("gates", '{"layers": {}}', "field layers"),
        ("gates", '{"layers": [{"layer": 0, "beta": 3}]}', "field layers[0], field beta"),
        ("recall_curves", '{"curves": [{"name": "a", "points": [{"distance": 0}]}]}', "no distance above 0"),
        ("recall_curves", '{"horizon": true, "curves": []}', "True is not a number"),
        ("certificate", '{"verdict": "CERTIFIED"}', "field sentence"),
        ("certificate", '{"verdict": "A", "sentence": "b", "results": [], "x": 1}', "not a certificate"),
        ("sample", '{"prompt": "a"}', "field text"),
        ("summary", '{"rows": [3]}', "rows[0]"),
        ("language", '{"bits_per_byte": {"model": "many"}}', "'many' is not a number"),
        ("language", "[" * 100_000, "is not JSON"),
    ],
)
def test_a_damaged_record_is_named_in_one_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    folder = write_run(tmp_path / "run", only=set())
    earlier = folder / "report.html"
    earlier.write_text("earlier")
    (folder / "records").mkdir()
    (folder / "records" / f"{name}.json").write_text(content)
    with pytest.raises(RecordError) as caught:
        report.build(folder)
    message = str(caught.value)
    assert f"records/{name}.json" in message
    assert words in message
    assert "Fix:" in message
    assert "\n" not in message
    assert len(message) < 300
    assert earlier.read_text() == "earlier"


def test_damaged_events_name_file_and_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", only=set())
    (folder / "events.jsonl").write_text('{"event": "step"}\n{"event": \n{}\n')
    with pytest.raises(RecordError, match=r"events\.jsonl line 2: is not JSON"):
        report.build(folder)


def test_a_resumed_run_counts_each_step_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", only=set())
    steps = [{"event": "step", "step": i, "loss": 1.0, "tokens": 10 * i} for i in range(1, 9)]
    lines = [json.dumps(e) for e in steps] + ['{"event": "st', '{"event": "resume", "step": 4}']
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    found = read_run(folder).events
    assert [e.raw["step"] for e in found if e.raw["event"] == "step"] == [1, 2, 3, 4]
    report.build(folder)


def test_provenance_of_a_run_without_certificate_is_that_of_its_start(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", only=set())
    start = {"event": "start", "step": 0, "provenance": {"commit": "feedc0ffee", "versions": {"torch": "2"}}}
    write_events(folder / "events.jsonl", [start])
    page = report.build(folder).read_text()
    assert "feedc0ffee" in page
    assert "torch 2" in page


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", only=set())
    (folder / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"config\.yaml: cannot be read: it is not UTF-8 text"):
        report.build(folder)


def test_a_line_cut_by_a_crash_is_left_out_and_noted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", only=set())
    with (folder / "events.jsonl").open("a") as stream:
        stream.write('{"event": "st')
    assert "events.jsonl: the last line was cut off" in report.build(folder).read_text()


@pytest.mark.parametrize("name", ["nothing-here", "empty"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="Fix:"):
        report.build(tmp_path / name)
    assert not (tmp_path / name / "report.html").exists()


def test_a_full_disk_leaves_the_earlier_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", only={"sample"})
    (folder / "report.html").write_text("earlier")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        report.build(folder)
    assert (folder / "report.html").read_text() == "earlier"
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


UNMEASURED = st.one_of(
    st.none(), st.just(math.nan), st.just(math.inf), st.floats(0, 1), st.integers(0, 10**400).map(int)
)


# A page takes about a second, so the examples are few; each varies every number at once.
# Without shrinking: it would redraw the page for minutes.
@settings(deadline=None, max_examples=6, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
@example(values=[1e300, 1e300, 1e300, -5.0, 2.0, 1e300, 7, 3.0, -1e300, 1e300, 1e300, 1e300])
@example(values=[1e300, 1e-300, 10**400, 0.0, 1.0, None, 1, 0, 0.5, math.inf, 0.0, 1.0])
@given(values=st.lists(UNMEASURED, min_size=12, max_size=12))
def test_unmeasured_numbers_never_break_a_page(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("runs") / "run"
    points = [{"distance": 2**i, "rate": v, "low": v, "high": None} for i, v in enumerate(values)]
    write_run(
        folder,
        only={"recall_curves", "needle", "gates"},
        recall_curves={
            "horizon": values[0],
            "chance": values[1],
            "curves": [{"name": "m", "points": points}],
        },
        needle={"depths": [0, 1], "lengths": values[:6], "rates": [values[:6], values[6:]]},
        gates={"layers": [{"layer": values[2], "beta": {"a": values[3], "b": values[4]}}]},
    )
    steps = [{"event": "step", "step": i, "loss": v} for i, v in enumerate(values)]
    found = [{"event": "evaluation", "step": values[5], "metrics": {"r": v}} for v in values]
    text = "".join(json.dumps(line) + "\n" for line in [*steps, *found])
    (folder / "events.jsonl").write_text(text)
    try:
        page = report.build(folder).read_text()
    except RecordError:
        return  # a share above 1, a distance below 0: refused in one line
    assert dangers(page) == []
    assert ">nan<" not in page.lower()


def test_show_never_rounds_a_share_to_all_or_nothing() -> None:
    assert pieces.show(0.9999) == "0.9999"
    assert pieces.show(1.0) == "1"
    assert pieces.show(0.0001) == "0.0001"
    assert pieces.show(math.nan) == pieces.show(None) == "–"
    assert pieces.show(0.9775) in ("0.978", "0.977")  # the last digit hangs on binary rounding


def test_importing_the_report_is_cheap() -> None:
    code = (
        "import sys, groundthink.report\n"
        "heavy = {'torch', 'matplotlib', 'numpy', 'yaml', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_needs_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    code = (
        "import sys, pathlib\nfrom groundthink import report\n"
        f"report.build(pathlib.Path({str(folder)!r}))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
