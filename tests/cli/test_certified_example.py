"""The shipped checkpoint: small, certified at every length that its certificate names, and quick to try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from groundthink.cli.subject import Subject, lengths, subject_of
from groundthink.probes import certify
from groundthink.records import Certificate, certificate_from_dict
from groundthink.training import load_recipe

SHIPPED = Path(__file__).parent.parent.parent / "examples" / "certified"
MULTIPLES, TEXT_MULTIPLES = (2, 8, 32, 128), (2, 16)
POINTS = [*(f"{m}x" for m in MULTIPLES), *(f"text-{m}x" for m in TEXT_MULTIPLES)]


def subject() -> Subject:
    return subject_of(SHIPPED, task="kv_recall", documents=0, trained_length=None, device="")


def asked(**options: Any) -> Certificate:
    shipped = subject()
    return certify(shipped.model, **shipped.options, **options)


def test_it_is_small_and_of_the_shipped_recipe() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.glob("*")) <= 3_000_000
    config, recipe = load_recipe(SHIPPED / "config.yaml"), load_recipe("certified", ["device=cpu", "precision=float32"])
    assert config == recipe
    assert {phase.length for phase in config.phases} == {64}  # what the multiples are multiples of
    needle = subject().options["needle"]
    assert (needle.alphabet, needle.marked, needle.n_needles) == ("text", True, 4)


def test_its_certificate_names_every_length() -> None:
    found = certificate_from_dict(json.loads((SHIPPED / "certificate.json").read_text()))
    assert found.verdict == "CERTIFIED"
    assert [item["point"] for item in found.lengths] == POINTS
    assert {item["verdict"] for item in found.lengths} == {"CERTIFIED"}
    assert (found.setting["n"], found.setting["pairs"]) == (400, 16)
    assert all(statement["holds"] for statement in found.statements.values())


def test_it_leaves_room_for_the_default_lengths() -> None:
    assert lengths(subject(), None, None) == {"multiples": (2, 8), "text_multiples": (2,)}


def test_it_is_certified_again_in_short() -> None:
    # 60 episodes are the fewest whose interval of 0 in n lies below chance + 0.03 with room for Holm's correction.
    found = asked(n=60, seed=1, rows="core", multiples=(2,), text_multiples=(2,))
    assert found.verdict == "CERTIFIED", found.sentence
    assert {item["point"] for item in found.lengths} == {"2x", "text-2x"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_is_certified_again_in_full() -> None:
    found = asked(n=400, seed=0, rows="core", multiples=MULTIPLES, text_multiples=TEXT_MULTIPLES)
    assert [(item["point"], item["verdict"]) for item in found.lengths] == [(p, "CERTIFIED") for p in POINTS]
