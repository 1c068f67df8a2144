"""K6: without the writes at the pairs there is nothing to recall; with the filler frozen out nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from groundthink.probes.bench import Bench, Point
from groundthink.probes.cuts import layers_with
from groundthink.probes.face import read_on
from groundthink.probes.gating import BETA, block_writes, freeze_memory, span
from groundthink.probes.prefilled import Block
from groundthink.probes.row import Row, not_run
from groundthink.probes.statistics import MARGIN, Paired
from groundthink.probes.transplant import KEEP
from groundthink.records import ProbeResult


def run_writes(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """At the shortest certified length: writes blocked at the pairs, memory frozen over the filler."""
    if not layers_with(bench.model, BETA):
        yield not_run("writes", "the model shows no gates")
        return
    prefilled, end = bench.prefilled(bench.shortest), 1 + 2 * bench.task.n_pairs

    def blocked(block: Block) -> Tensor:
        """Under `block_writes` up to the last pair, as ever from there."""
        head = block.prompts[:, :end]
        with block_writes(block.model, span(head, 1, end)):
            snapshot = read_on(block.model, head)[1]
        return block.said(snapshot, block.prompts[:, end:])

    def frozen(block: Block) -> Tensor:
        """Nothing written and nothing forgotten between the last pair and the boundary."""
        snapshot = read_on(block.model, block.prompts[:, :end])[1]
        for part in block.prompts[:, end : prefilled.at].split(block.segment, 1):
            with freeze_memory(block.model, span(part, 0, part.shape[1])):
                snapshot = read_on(block.model, part, snapshot)[1]
        return block.said(snapshot)

    answers, chance = prefilled.questions.answers, prefilled.questions.chance["in_context"]
    base = prefilled.share(prefilled.base(), answers)
    if base.low <= chance + KEEP:
        yield not_run(f"writes/blocked@{bench.shortest.name}", f"there is no recall to take away: {base}")
    else:
        without = prefilled.share(prefilled.said("blocked", blocked), answers)
        yield ProbeResult(
            f"writes/blocked@{bench.shortest.name}", without.rate, "pass" if without.high <= chance + KEEP else "fail",
            f"With no write at the pairs it is right in {without}.",
            low=without.low, high=without.high, n=without.n, chance=chance, threshold=chance + KEEP,
        )  # fmt: skip
    said = prefilled.said("frozen", frozen)
    kept = prefilled.share(said, answers)
    pair = Paired.of((prefilled.base() == answers).tolist(), (said == answers).tolist())
    low, high = pair.interval()
    yield ProbeResult(
        f"writes/frozen@{bench.shortest.name}", kept.rate, "pass" if pair.upper() <= MARGIN else "fail",
        f"With the memory frozen over the filler it is right in {kept}: the filler costs"
        f" {-100 * pair.difference:.1f} points ({-100 * high:.1f} to {-100 * low:.1f}).",
        low=kept.low, high=kept.high, n=kept.n, chance=chance, threshold=MARGIN,
        details={"gain": -pair.difference, "mcnemar": pair.mcnemar(), "upper_loss": pair.upper()},
    )  # fmt: skip


WRITES = Row(
    "K6", "Writes blocked", "Is there nothing to recall when the facts are never written?", "causal", run_writes
)
