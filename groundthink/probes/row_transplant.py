"""K1 and K2: put another episode's memory in; does the answer follow it, and is it the memory that it follows?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from groundthink.probes.bench import Bench, Point
from groundthink.probes.face import derived_seed
from groundthink.probes.intervention import MEMORY
from groundthink.probes.interventions import Transplant
from groundthink.probes.language import paired_bootstrap
from groundthink.probes.prefilled import Prefilled
from groundthink.probes.row import Row
from groundthink.probes.statistics import at_least, at_most
from groundthink.probes.transplant import FOLLOW, KEEP, KINDS, WHO, controls, swapped
from groundthink.records import ProbeResult, Proportion

PHI = 0.80  # share of what following there is that has to be the memory's own
CONV = "conv"


def kinds_at(point: Point) -> tuple[str, ...]:
    """The kinds of donors that a point has."""
    return KINDS if point.kind == "filler" else ("one_key",)


def run_transplant(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """K1: follow and keep for each kind of donor, and the two controls."""
    assert point is not None
    prefilled = bench.prefilled(point)
    layers = prefilled.layers()
    if not layers:
        meaning = "No layer carries a memory, so there is none to transplant."
        yield ProbeResult(f"transplant/none@{point.name}", 0.0, "info", meaning)
        return
    accuracy, chance = prefilled.accuracy(), prefilled.questions.chance["in_context"]
    for kind in kinds_at(point):
        said = swapped(prefilled, kind)
        follow = prefilled.share(said, prefilled.donors(kind).answers)
        keep = prefilled.share(said, prefilled.questions.answers)
        need = FOLLOW * accuracy.rate
        # Where there is no recall, 0.8 x accuracy asks for nothing: following must beat chance besides.
        followed = follow.low >= need and follow.low > chance
        details = {
            "accuracy": accuracy.as_dict(),
            "share": follow.rate / accuracy.rate if accuracy.hits else 0.0,
            "boundary": prefilled.at,
            "layers": list(layers),
        }
        yield ProbeResult(
            f"follow/{kind}@{point.name}", follow.rate, "pass" if followed else "fail",
            f"With the memory of an episode that has {WHO[kind]}, the answer is the donor's in {follow}.",
            low=follow.low, high=follow.high, n=follow.n, chance=chance, threshold=need,
            details={**details, "p": at_least(follow.hits, follow.n, max(need, chance))},
        )  # fmt: skip
        yield ProbeResult(
            f"keep/{kind}@{point.name}", keep.rate, "pass" if keep.high <= chance + KEEP else "fail",
            f"With the memory of an episode that has {WHO[kind]}, the answer is still the old one in {keep}.",
            low=keep.low, high=keep.high, n=keep.n, chance=chance, threshold=chance + KEEP,
            details={**details, "p": at_most(keep.hits, keep.n, chance + KEEP)},
        )  # fmt: skip
    yield from _controls(prefilled, kinds_at(point)[0], point)


def _controls(prefilled: Prefilled, kind: str, point: Point) -> Iterator[ProbeResult]:
    found = controls(prefilled, kind)
    yield ProbeResult(
        f"transplant/sham@{point.name}", found.sham, "pass" if found.sham <= found.allowed else "fail",
        f"Replacing the memory by itself moves a logit by at most {found.sham:.3g}.", threshold=found.allowed,
    )  # fmt: skip
    passed = found.complete <= found.allowed and found.whole <= found.tolerance
    yield ProbeResult(
        f"transplant/complete@{point.name}", found.complete, "pass" if passed else "fail",
        f"Swapping everything the model carries is running the donor's prompt, but for {found.complete:.3g}"
        f" ({found.whole:.2g} of the largest logit against reading it in one go).",
        threshold=found.allowed, details={"against_whole": found.whole, "tolerance": found.tolerance},
    )  # fmt: skip


def groups_of(prefilled: Prefilled) -> dict[str, tuple[str, ...]]:
    """What a snapshot carries: `S` memories, `conv` convolutions, `KV` the rest; groups without a tensor left out."""
    (names,) = prefilled.map(lambda block: {name for layer in block.mine.layers for name in layer}, 1)
    groups = {
        "S": names & set(MEMORY),
        "conv": {name for name in names if name.startswith(CONV)},
        "KV": {name for name in names if name not in MEMORY and not name.startswith(CONV)},
    }
    return {name: tuple(sorted(found)) for name, found in groups.items() if found}


def run_factorial(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """K2: memory, windows and convolutions donated apart and together."""
    assert point is not None
    prefilled = bench.prefilled(point)
    groups = groups_of(prefilled)
    if "S" not in groups:
        return
    kind = kinds_at(point)[0]
    rest = tuple(name for group, names in groups.items() if group != "S" for name in names)
    arms: dict[str, tuple[str, ...]] = {"S": groups["S"], "rest": rest, "all": groups["S"] + rest}
    arms |= {group: names for group, names in groups.items() if group != "S"}
    said = {name: swapped(prefilled, kind, name, Transplant(what=what)) for name, what in arms.items() if what}
    said.setdefault("rest", prefilled.base())
    said["none"] = prefilled.base()
    theirs, mine = prefilled.donors(kind).answers, prefilled.questions.answers
    follow = {name: (answers == theirs).double() for name, answers in said.items()}
    rates = {name: float(x.mean()) for name, x in follow.items()}
    phi_s = 0.5 * ((follow["S"] - follow["none"]) + (follow["all"] - follow["rest"]))
    phi_rest = 0.5 * ((follow["rest"] - follow["none"]) + (follow["all"] - follow["S"]))
    interaction = follow["all"] - follow["S"] - follow["rest"] + follow["none"]
    total = rates["all"] - rates["none"]
    zeros = torch.zeros(len(phi_s)).tolist()
    seed = derived_seed(bench.seed, "phi", point.name)
    mean, low, high = paired_bootstrap(phi_s.tolist(), zeros, seed=seed) if len(zeros) > 1 else (rates["S"], 0.0, 1.0)
    share = [x / total if total > 0 else 0.0 for x in (mean, low, high)]
    keep = Proportion(int((said["all"] == mine).sum()), len(mine))
    chance = prefilled.questions.chance["in_context"]
    details = {
        "follow": rates, "phi_S": mean, "phi_rest": float(phi_rest.mean()), "interaction": float(interaction.mean()),
        "total": total, "groups": {name: list(names) for name, names in groups.items()},
    }  # fmt: skip
    yield ProbeResult(
        f"factorial/phi@{point.name}", share[0], "pass" if share[1] >= PHI and total > chance else "fail",
        f"Of what follows a donor of everything, {100 * share[0]:.1f} % is due to the memory"
        f" ({100 * share[1]:.1f} to {100 * share[2]:.1f} %); windows and convolutions alone: {rates['rest']:.3f}.",
        low=share[1], high=share[2], n=len(mine), threshold=PHI,
        details={**details, "p": at_least(int(follow["S"].sum()), len(mine), max(0.0, min(1.0, PHI * total)))},
    )  # fmt: skip
    yield ProbeResult(
        f"factorial/leak@{point.name}", keep.rate, "pass" if keep.high <= chance + KEEP else "fail",
        f"With everything swapped the answer is still the old one in {keep}.",
        low=keep.low, high=keep.high, n=keep.n, chance=chance, threshold=chance + KEEP,
        details={"p": at_most(keep.hits, keep.n, chance + KEEP)},
    )  # fmt: skip


TRANSPLANT = Row(
    "K1",
    "Donor transplant",
    "Given another text's memory, does it answer from that one?",
    "causal",
    run_transplant,
    each=True,
    core=True,
    kinds=("filler", "text"),
)
FACTORIAL = Row(
    "K2",
    "Which carrier",
    "Is it the memory that it follows, or the windows and convolutions?",
    "causal",
    run_factorial,
    each=True,
    core=True,
    kinds=("filler", "text"),
)
