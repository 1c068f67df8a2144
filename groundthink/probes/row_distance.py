"""B2, B3 and B4: is recall more than the window's share, does it hang on the window, how does it fall with distance?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from groundthink.probes.bench import Bench, Point
from groundthink.probes.curves import ask_exactly
from groundthink.probes.cuts import hooked, layers_with
from groundthink.probes.face import Model
from groundthink.probes.recall import Recalled, answers_of, ask, recall
from groundthink.probes.row import Row, not_run
from groundthink.probes.statistics import MARGIN, Paired, at_least
from groundthink.records import ProbeResult, Proportion
from groundthink.tasks import n50

LEVEL = 0.01  # of the test against the window's share
LOCAL = "mixer.hook_local"
CLIFF = 0.20  # a fall between neighbouring distances that is worth a flag
FURTHEST = 4  # horizons, of the mixed distances


def run_share(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """B2: mixed distances against a model that sees R tokens back and guesses otherwise."""
    horizon = bench.horizon
    furthest = max(4, FURTHEST * horizon)
    groups = []
    for part in range(4):  # questions of one length are asked together: four lengths stand for all
        distance = max(2, 2 + part * (furthest - 2) // 3)
        task = bench.task.with_options(distance=f"fixed:{distance}")
        groups.append(ask(task, n=max(1, bench.n // 4), seed=bench.seed_of(f"share {part}")))
    answered = [recall(bench.model, questions) for questions in groups]
    total: Recalled = sum(answered[1:], start=answered[0])
    inside = sum(int((questions.distances <= horizon).sum()) for questions in groups)
    share, chance = inside / total.right.n, bench.task.chance().in_context
    null = share + (1 - share) * chance
    p = at_least(total.right.hits, total.right.n, null)
    right = total.right
    yield ProbeResult(
        "window-share", right.rate, "pass" if p < LEVEL else "fail",
        f"Over mixed distances it is right in {right}; one that sees {horizon} tokens back and guesses otherwise would"
        f" be right in {null:.3f} (exact p {p:.2g}).",
        low=right.low, high=right.high, n=right.n, chance=chance, threshold=null,
        details={"p": p, "inside": share, "level": LEVEL},
    )  # fmt: skip


@contextlib.contextmanager
def narrowed(model: Model, window: int) -> Iterator[None]:
    """While inside, window layers see so many tokens, the present one included; 0 cuts what they see to nothing."""
    layers = [i for i in layers_with(model, LOCAL) if hasattr(model.blocks[i].mixer, "config")]  # type: ignore[attr-defined]
    mixers = [model.blocks[i].mixer for i in layers]  # type: ignore[attr-defined]
    before = [mixer.config for mixer in mixers]
    with contextlib.ExitStack() as stack:
        if window < 1:
            stack.enter_context(hooked(model, LOCAL, layers, lambda _layer, output: torch.zeros_like(output)))
        else:
            for mixer, config in zip(mixers, before, strict=True):
                mixer.config = dataclasses.replace(config, window_size=window)
        try:
            yield
        finally:
            for mixer, config in zip(mixers, before, strict=True):
                mixer.config = config


def run_windows(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """B3: the same weights with half the window, a quarter, none: recall beyond the horizon must not hang on it."""
    if not layers_with(bench.model, LOCAL):
        yield not_run("windows", "the model has no window that can be narrowed")
        return
    questions = bench.asked(bench.points[1])
    full = bench.model.sizes.window_size

    def right(said: Tensor) -> list[bool]:
        return (said == questions.answers).tolist()

    base = right(answers_of(bench.model, questions.prompts))
    for window in dict.fromkeys((full // 2, full // 4, 0)):
        bench.progress("windows")
        with narrowed(bench.model, window):
            arm = right(answers_of(bench.model, questions.prompts))
        pair, share = Paired.of(base, arm), Proportion(sum(arm), len(arm))
        low, high = pair.interval(0.90)
        p = pair.tost()
        yield ProbeResult(
            f"windows/{window}", pair.difference, "pass" if p <= 0.05 else "fail",
            f"With windows of {window} tokens instead of {full} it is right in {share}: recall falls by"
            f" {100 * pair.difference:.1f} points (90 % interval {100 * low:.1f} to {100 * high:.1f}).",
            low=low, high=high, n=len(arm), threshold=MARGIN, details={"tost": p, "recall": share.as_dict()},
        )  # fmt: skip


def run_curve(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """B4: recall against distance, the distance at which it is half, and a flag where it falls off a cliff."""
    window, horizon = bench.model.sizes.window_size, bench.horizon
    wanted = {2, window // 2, window - 1, window + 1, horizon, horizon + 1, 2 * horizon, 4 * horizon, 8 * horizon}
    found: dict[int, Proportion] = {}
    for distance in sorted(d for d in wanted if d >= 2):
        groups = ask_exactly(bench.task, distance, n=max(4, bench.n // 4), seed=bench.seed_of("curve"))
        answered = [recall(bench.model, questions) for questions in groups]
        found[distance] = sum(answered[1:], start=answered[0]).right
        bench.progress("distance curve")
    fit = n50(found, seed=bench.seed)
    cliffs = [
        f"from {a} to {b} tokens"
        for (a, near), (b, far) in zip(list(found.items())[:-1], list(found.items())[1:], strict=True)
        if near.rate - far.rate > CLIFF and near.low > far.high and (a <= window < b or a <= horizon < b)
    ]
    half = "never within them" if fit is None else f"at {fit.n50:.0f} tokens [{fit.low:.0f}, {fit.high:.0f}]"
    yield ProbeResult(
        "distance-curve", list(found.values())[-1].rate, "fail" if cliffs else "info",
        f"From {min(found)} to {max(found)} tokens recall is "
        + ", ".join(f"{share.rate:.2f} at {distance}" for distance, share in found.items())
        + f"; half of it {half}" + (f". A cliff at the window or the horizon: {', '.join(cliffs)}." if cliffs else "."),
        n=sum(share.n for share in found.values()),
        details={"points": [{"distance": d, **s.as_dict()} for d, s in found.items()], "cliffs": cliffs,
                 "d50": None if fit is None else dataclasses.asdict(fit)},
    )  # fmt: skip


SHARE = Row("B2", "Window share", "Is recall more than what the window alone would give?", "behaviour", run_share)
WINDOWS = Row("B3", "Narrower windows", "Does recall of far facts hang on the window?", "behaviour", run_windows)
CURVE = Row("B4", "Distance", "How does recall fall with distance?", "behaviour", run_curve)
