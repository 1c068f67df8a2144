"""K9: when does the memory hold the answer? Donated before the fact it must change nothing, after it everything."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from groundthink.probes.bench import Bench, Point
from groundthink.probes.interventions import Transplant
from groundthink.probes.prefilled import Block, read
from groundthink.probes.row import Row, not_run
from groundthink.probes.transplant import FOLLOW
from groundthink.records import ProbeResult, Proportion


def run_time(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Follow rate by the time of the swap, apart for facts that are before it and facts that are yet to come."""
    prefilled = bench.prefilled(bench.shortest)
    if not prefilled.layers():
        yield not_run("time", "no layer carries a memory")
        return
    n = max(1, min(len(prefilled), bench.n // 4))
    end, horizon = 1 + 2 * bench.task.n_pairs, bench.horizon
    times = sorted({1, end // 2, end, min(end + horizon + 1, prefilled.at), prefilled.at})
    donors = prefilled.donors("one_key")
    placed = [q.revealed_at for (q,) in (episode.queries for episode in prefilled.questions.episodes[:n])]
    revealed = torch.tensor([at if at is not None else -1 for at in placed])
    answers, before, after = donors.answers[:n], Proportion(0, 0), {}
    swap = Transplant()
    for t in times:

        def arm(block: Block, t: int = t) -> Tensor:
            theirs = donors.prompts[block.rows, :t].to(block.prompts.device)
            mine, given = (read(block.model, ids, block.segment)[1] for ids in (block.prompts[:, :t], theirs))
            return block.said(swap(mine, given), block.prompts[:, t:])

        hit = prefilled.said(f"time {t}", arm, n=n) == answers
        past = revealed < t
        early = hit[~past]
        before = Proportion(before.hits + int(early.sum()), before.n + len(early))
        if past.any():
            after[t] = Proportion(int(hit[past].sum()), int(past.sum()))
    last, need = after[prefilled.at], FOLLOW * prefilled.share(prefilled.base()[:n], prefilled.questions.answers).rate
    passed = before.hits <= prefilled.questions.chance["in_context"] * before.n and last.rate >= need and last.hits > 0
    yield ProbeResult(
        f"time@{bench.shortest.name}", last.rate, "pass" if passed else "fail",
        f"Donated before the fact, the memory decides {before.hits} of {before.n} answers; after it "
        + ", ".join(f"{share.rate:.2f} at token {t}" for t, share in after.items()) + ".",
        low=last.low, high=last.high, n=last.n, threshold=need,
        details={"before": before.as_dict(), "after": {str(t): share.as_dict() for t, share in after.items()}},
    )  # fmt: skip


TIME = Row(
    "K9", "When it is written", "Does the memory hold the answer from the fact on, and not before?", "causal", run_time
)
