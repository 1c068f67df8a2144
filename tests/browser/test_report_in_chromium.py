"""The report as a browser shows it: nothing on the console, nothing fetched, every label readable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from groundthink import report
from tests.browser.chromium import Chromium
from tests.report.synthetic import HOSTILE, crowded, write_run

pytestmark = pytest.mark.browser
SMALLEST = 10.5  # CSS pixels; the page's own small text is 14, axis labels may be a little smaller

# What a reader could not read, measured in the page: window too narrow, text cut, tiny, or over text.
LAYOUT = """(() => {
  const bad = [], root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) bad.push('page is wider than its window');
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    const scale = frame.width / svg.viewBox.baseVal.width, boxes = [];
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBoundingClientRect(), words = text.textContent;
      if (!box.width) continue;
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
          box.bottom > frame.bottom + 1) bad.push('cut: ' + words);
      const size = parseFloat(getComputedStyle(text).fontSize) * scale;
      if (size < SMALLEST) bad.push('tiny (' + size.toFixed(1) + '): ' + words);
      for (const [other, name] of boxes)
        if (Math.min(box.right, other.right) - Math.max(box.left, other.left) > 2 &&
            Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top) > 3)
          bad.push('overlap: ' + words + ' / ' + name);
      boxes.push([box, words]);
    }
  }
  return bad;
})()""".replace("SMALLEST", str(SMALLEST))


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.build(write_run(tmp_path_factory.mktemp("runs") / "demo"))


@pytest.mark.parametrize("width", [1280, 640, 420])
@pytest.mark.parametrize("dark", [False, True])
def test_report_opens_cleanly_and_is_readable(browser: Chromium, page: Path, width: int, dark: bool) -> None:
    seen = browser.open(page, width=width, dark=dark)
    assert seen.faults == []
    assert seen.requests == [page.resolve().as_uri()]
    assert browser.evaluate(LAYOUT) == []
    assert browser.evaluate("document.querySelectorAll('svg').length") == 10
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    shown = ".narrow" if width <= 640 else ".wide"
    assert browser.evaluate(f"document.querySelector('{shown}').getBoundingClientRect().width > 300")


def test_hostile_records_run_nothing(browser: Chromium, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", sample={"prompt": HOSTILE, "text": HOSTILE})
    seen = browser.open(report.build(folder))
    assert seen.faults == []
    assert browser.evaluate("document.title") == "GroundThink demo"
    assert browser.evaluate("document.querySelector('.prompt').parentElement.textContent") == HOSTILE * 2


@pytest.mark.parametrize("width", [1280, 420])
def test_a_crowded_report_stays_readable(browser: Chromium, tmp_path: Path, width: int) -> None:
    seen = browser.open(report.build(crowded(tmp_path / "a-run-with-a-rather-long-name")), width=width)
    assert seen.faults == []
    assert browser.evaluate(LAYOUT) == []


def test_a_run_without_records_opens_cleanly(browser: Chromium, tmp_path: Path) -> None:
    seen = browser.open(report.build(write_run(tmp_path / "run", only=set())), width=420)
    assert seen.faults == []
    assert browser.evaluate(LAYOUT) == []


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ("<script>console.error('planted')</script>", "console.error: planted"),
        ("<script>nobody.home()</script>", "uncaught: ReferenceError"),
        ("<script>this is not javascript</script>", "uncaught: SyntaxError"),
        ("<script>setTimeout(() => { throw new Error('late') }, 20)</script>", "late"),
        ("<script>Promise.reject(new Error('unhandled'))</script>", "unhandled"),
        ("<img src='gone.png'>", "log error"),
    ],
)
def test_a_planted_fault_is_seen(browser: Chromium, page: Path, tmp_path: Path, planted: str, words: str) -> None:
    """Without the policy that forbids them, faults reach the console, and the check must see each."""
    text = page.read_text().replace("default-src 'none';", "default-src 'unsafe-inline' file:;")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</main>", planted + "</main>"))
    seen = browser.open(broken)
    assert any(words in fault for fault in seen.faults), seen.faults


def test_the_policy_stops_a_script_and_says_so(browser: Chromium, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("</main>", "<script>document.title = 'owned'</script></main>"))
    seen = browser.open(broken)
    assert browser.evaluate("document.title") == "GroundThink demo"
    assert any("Content Security Policy" in fault for fault in seen.faults), seen.faults


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("</main>", "<div style='width:3000px'>x</div></main>", "wider"),
        (
            "</text>",
            " and a good deal more than there is room for in any chart whatsoever" * 3 + "</text>",
            "cut",
        ),
        ("figure svg text {", "figure svg text { font-size: 4px !important;", "tiny"),
        ("figure svg text {", "figure svg text { font-size: 40px !important;", "overlap"),
    ],
)
def test_the_layout_check_sees_planted_faults(
    browser: Chromium, page: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace(old, new))
    browser.open(broken)
    assert any(words in fault for fault in browser.evaluate(LAYOUT))
