"""The certificate for a reader who is no specialist: what was asked, in words, and what came out at each length."""

from __future__ import annotations

from groundthink.records import ProbeResult
from groundthink.report import html
from groundthink.report.read import Record, Run, as_record

WHERE = "records/certificate.json"
GROUPS = {
    "precondition": "Can the test be trusted?",
    "behaviour": "Does it remember?",
    "causal": "Is it the memory that answers?",
    "text": "Does the memory help with natural text?",
    "beside": "What stands beside",
}
MEANING = {
    "CERTIFIED": "the answers came from the memory",
    "PARTIAL": "a part of the answers came from the memory, or at some lengths only",
    "NOT-PROVEN": "nothing shows that a memory carried the answers",
    "REFUTED": "it recalls, but not from its memory",
    "TASK-FAIL": "it cannot do the task even with the fact in view, so nothing is said of memory",
    "INVALID": "a precondition fails, so no figure means anything",
}


def lengths(run: Run) -> str:
    """The verdict at each length, what else may be said, and what the reader has to know; empty in old records."""
    found = run.certificate
    if found is None or not (found.lengths or found.statements):
        return ""
    items = [as_record(item, f"{WHERE}, field lengths[{i}]") for i, item in enumerate(found.lengths)]
    rows = [
        [
            html.escape(item.text("point")),
            html.escape(html.show(item.number("length"))),
            html.badge(item.text("verdict")),
            html.escape(item.text("reason")),
        ]
        for item in items
    ]
    meaning = MEANING.get(found.verdict)
    body = f"<p>{html.escape(f'{found.verdict} means: {meaning}.')}</p>" if meaning else ""
    if rows:
        body += html.table(["length", "tokens", "verdict", "meaning"], rows, numeric=["tokens"])
    said = Record(dict(found.statements), f"{WHERE}, field statements")
    told = []
    for name in found.statements:
        one = said.record(name)
        answer = "yes" if one.raw.get("holds") is True else "no"
        told.append([html.escape(name), html.badge(answer), html.escape(one.text("because"))])
    if told:
        body += html.table(["statement", "holds", "meaning"], told)
    notes = _setting(run).raw.get("notes")
    for note in notes if isinstance(notes, list) else []:
        body += f'<p class="note">{html.escape(note)}</p>'
    return html.section("Verdicts", body)


def questions(run: Run) -> str:
    """Every question that was asked with how its tests came out, in groups; empty in old records."""
    found = run.certificate
    if found is None or "questions" not in found.setting:
        return ""
    asked = _setting(run).record("questions")
    by_row: dict[str, list[ProbeResult]] = {}
    for result in found.results:
        by_row.setdefault(str(result.details.get("row")), []).append(result)
    body = ""
    for group, title in GROUPS.items():
        rows = []
        for row_id in asked.raw:
            one = asked.record(row_id)
            if one.text("group") == group and row_id in by_row:
                rows.append(_question(one, by_row[row_id]))
        if rows:
            body += f"<h3>{html.escape(title)}</h3>" + html.table(["question", "verdict", "meaning"], rows)
    return html.section("What was asked", body) if body else ""


def _question(row: Record, results: list[ProbeResult]) -> list[str]:
    """One line: the question, pass or fail, and the sentence of the test that decides."""
    judged = [r for r in results if r.verdict in ("pass", "fail")]
    failed = [r for r in judged if r.verdict == "fail"]
    verdict = "fail" if failed else "pass" if judged else "info"
    shown = (failed or judged or results)[0]
    count = f" ({len(judged) - len(failed)} of {len(judged)} tests passed)" if len(judged) > 1 else ""
    return [html.escape(row.text("question")), html.badge(verdict), html.escape(f"{shown.meaning}{count}")]


def _setting(run: Run) -> Record:
    assert run.certificate is not None
    return as_record(run.certificate.setting, f"{WHERE}, field setting")
