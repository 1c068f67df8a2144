"""One binding at a time: rewrite or erase the asked key of every memory; do the other keys stay as they were?

The key is the G layer's own, heard at the value of the asked pair, where the pair is written. A rewrite takes the
value from a donor's memory along that key, so it carries the decay that it would have had. Both act at the boundary t*
of the transplant, beyond the horizon of the pairs and of the question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from groundthink.errors import StateError, TaskError
from groundthink.model import Snapshot
from groundthink.probes.cuts import hooked, layers_with
from groundthink.probes.face import Model, derived_seed, read_on
from groundthink.probes.interventions import Erase, KeyIntervention, Rewrite
from groundthink.probes.prefilled import Block, Prefilled
from groundthink.probes.recall import Questions
from groundthink.probes.statistics import Paired
from groundthink.records import ProbeResult, Proportion

KEYS = "mixer.hook_k"
FOLLOW = 0.60  # what the lower bound of following a rewritten value has to reach
DROP = 0.05  # what the upper bound of the other keys' loss may be
GONE = 0.05  # what the upper bound of recalling an erased value may exceed chance by
STAY = 0.90  # share of the other keys' accuracy that its lower bound after an erasure has to reach


@dataclasses.dataclass(frozen=True)
class Edited:
    """What an edit of one key did to that key and to another one of the same episode.

    Attributes:
        before: right answers to the asked key without the edit.
        right: answers to the asked key that are still the recipient's value.
        follow: answers to the asked key that are the donor's value; the recipient's where there is no donor.
        other_before, other: right answers to the other key without and with the edit.
        other_pairs: the same as pairs; the first arm is without the edit.
    """

    before: Proportion
    right: Proportion
    follow: Proportion
    other_before: Proportion
    other: Proportion
    other_pairs: Paired


def write_keys(
    model: Model, prompts: Tensor, positions: Tensor, *, layers: tuple[int, ...] | None = None
) -> tuple[dict[int, Tensor], Snapshot]:
    """The keys [B,H,K] under which layers write at one position of each row, and the snapshot after the prompts.

    Args:
        model: with blocks.
        prompts: [B,T] int64.
        positions: [B] int64, of the token at which a pair is written: its value.
        layers: None means every layer that writes.

    Raises:
        ConfigError: a layer that writes no memory.
        StateError: no layer writes.
    """
    chosen = layers_with(model, KEYS) if layers is None else layers
    if not chosen:
        raise StateError("no layer writes a memory, so there is no key to edit", where="write_keys")
    found: dict[int, Tensor] = {}

    def catch(layer: int, keys: Tensor) -> None:
        found[layer] = keys[torch.arange(len(keys), device=keys.device), positions.to(keys.device)]

    with hooked(model, KEYS, chosen, catch):
        snapshot = read_on(model, prompts)[1]
    return found, snapshot


def other_questions(questions: Questions, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Another pair of each episode: prompts [n,T] that ask for it, its values [n], positions of the asked values [n].

    Raises:
        TaskError: an episode with one pair, or without the pair that is asked for.
    """
    prompts, answers, places = questions.prompts.clone(), [], []
    generator = torch.Generator().manual_seed(derived_seed(seed, "other key"))
    for row, episode in enumerate(questions.episodes):
        (query,) = episode.queries
        end = 1 + 2 * len(query.in_context_values)
        pairs = list(zip(episode.tokens[1:end:2].tolist(), episode.tokens[2:end:2].tolist(), strict=True))
        others = [pair for pair in pairs if pair[0] != query.key[-1]]
        if query.revealed_at is None or len(others) != len(pairs) - 1 or not others:
            raise TaskError("an edit needs an asked pair and another one", where="other_questions", fix="n_pairs >= 2")
        key, value = others[int(torch.randint(len(others), (1,), generator=generator))]
        prompts[row, -1] = key
        answers.append(value)
        places.append(query.revealed_at)
    return prompts, torch.tensor(answers), torch.tensor(places)


def edited(
    prefilled: Prefilled, edit: KeyIntervention, *, giver: str | None = None, seed: int = 0, n: int | None = None
) -> Edited:
    """Edit along the asked pair's keys at the boundary, go on with the question and with another one, count.

    Args:
        prefilled: questions at a distance that leaves room for the boundary; its model has blocks.
        edit: `Rewrite` or `Erase`, restricted as wished.
        giver: kind of the donors, for a rewrite.
        seed: of the choice of other keys.
        n: the first so many questions; None for all.

    Raises:
        TaskError: the boundary lies before a pair, or a donor differs after it.
        StateError: the model writes no memory, or the edit does not fit or changes nothing.
    """
    questions, at = prefilled.questions, prefilled.at
    asked_other, other_answers, places = other_questions(questions, seed=seed)
    if int(places.max()) >= at:
        raise TaskError(f"the boundary {at} lies before the pair that is edited", where=edit.name)
    head = int(places.max()) + 1

    def ask_both(block: Block) -> dict[str, Tensor]:
        keys = write_keys(block.model, block.prompts[:, :head], places[block.rows], layers=edit.layers)[0]
        changed = edit(block.mine, None if giver is None else block.snapshot(giver), keys=keys)
        other = asked_other[block.rows].to(block.prompts.device)[:, at:]
        return {
            "before": block.said(block.mine),
            "after": block.said(changed),
            "other_before": block.said(block.mine, other),
            "other": block.said(changed, other),
        }

    parts = prefilled.map(ask_both, n)
    said = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    donated = None if giver is None else prefilled.donors(giver)
    return _count(said, questions, donated, other_answers)


def rewrite_rows(prefilled: Prefilled, *, seed: int, edit: Rewrite | None = None) -> tuple[ProbeResult, ProbeResult]:
    """K3 as records: the asked key follows a donor's value, and the other keys lose at most five points.

    Args:
        prefilled: the questions; its donors of the kind `one_key` give the values.
        seed: of the other keys.
        edit: restricted to layers and heads that were chosen on other questions; None for all of them.
    """
    one = Rewrite() if edit is None else edit
    found = edited(prefilled, one, giver="one_key", seed=seed)
    chance, details = prefilled.questions.chance["in_context"], _details(found, one, prefilled.at)
    loss = found.other_pairs.upper()
    low, high = found.other_pairs.interval()
    return (
        ProbeResult(
            "rewrite/follow", found.follow.rate, _judge(found.follow.low >= FOLLOW),
            f"With one key of the memory rewritten, the answer is the new value in {found.follow}.",
            low=found.follow.low, high=found.follow.high, n=found.follow.n, chance=chance, threshold=FOLLOW,
            details=details,
        ),
        ProbeResult(
            "rewrite/others", found.other_pairs.difference, _judge(loss <= DROP),
            f"With one key of the memory rewritten, recall of the others falls by"
            f" {100 * found.other_pairs.difference:.1f} points, at most {100 * loss:.1f} (one-sided 95 %).",
            low=low, high=high, n=found.other.n, chance=chance, threshold=DROP, details={**details, "upper": loss},
        ),
    )  # fmt: skip


def erase_rows(prefilled: Prefilled, *, seed: int, edit: Erase | None = None) -> tuple[ProbeResult, ProbeResult]:
    """K4 as records: the asked key is forgotten, and nine tenths of the others' recall stay. As `rewrite_rows`."""
    one = Erase() if edit is None else edit
    found = edited(prefilled, one, seed=seed)
    chance, details = prefilled.questions.chance["in_context"], _details(found, one, prefilled.at)
    # Where nothing was recalled, nothing was erased: the target must have been above what is allowed now.
    erased = found.right.high <= chance + GONE and found.before.low > chance + GONE
    stays = STAY * found.other_before.rate
    return (
        ProbeResult(
            "erase/target", found.right.rate, _judge(erased),
            f"With one key of the memory erased, its value is still the answer in {found.right};"
            f" before, it was in {found.before}.",
            low=found.right.low, high=found.right.high, n=found.right.n, chance=chance, threshold=chance + GONE,
            details=details,
        ),
        ProbeResult(
            "erase/others", found.other.rate, _judge(found.other.low >= stays and found.other.low > chance),
            f"With one key of the memory erased, the others are right in {found.other};"
            f" before, in {found.other_before}.",
            low=found.other.low, high=found.other.high, n=found.other.n, chance=chance, threshold=stays,
            details=details,
        ),
    )  # fmt: skip


def _count(said: Mapping[str, Tensor], questions: Questions, giver: Questions | None, others: Tensor) -> Edited:
    n = len(said["before"])
    others = others[:n]

    def share(name: str, answers: Tensor) -> Proportion:
        return Proportion(int((said[name] == answers[:n]).sum()), n)

    return Edited(
        before=share("before", questions.answers),
        right=share("after", questions.answers),
        follow=share("after", questions.answers if giver is None else giver.answers),
        other_before=share("other_before", others),
        other=share("other", others),
        other_pairs=Paired.of((said["other_before"] == others).tolist(), (said["other"] == others).tolist()),
    )


def _details(found: Edited, edit: KeyIntervention, at: int) -> dict[str, object]:
    shares = {name: getattr(found, name).as_dict() for name in ("before", "right", "follow", "other_before", "other")}
    pairs = dataclasses.asdict(found.other_pairs)
    return {**shares, "other_pairs": pairs, "mcnemar": found.other_pairs.mcnemar(), "boundary": at, **edit.to_dict()}


def _judge(passed: bool) -> str:
    return "pass" if passed else "fail"
