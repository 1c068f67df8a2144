"""D3 and D4: are the keys of different tokens apart, and are the keys of one token apart in different contexts?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundthink.probes import drawn
from groundthink.probes.bench import Bench, Point, random_tokens
from groundthink.probes.heard import KEYS, Heard, heard
from groundthink.probes.mechanics import cosines, expected_similarity, similarity
from groundthink.probes.row import Row, not_run
from groundthink.probes.statistics import mean_interval
from groundthink.records import ProbeResult

TEXTS, LENGTH = 16, 48  # random texts whose keys are compared, and their tokens
SHOWN = 16  # keys of the map that is drawn
TIMES = 2.0  # what the similarity of keys may exceed that of random directions by
SAME = 0.9  # mean cosine from which the keys of one token count as the same in every context
CONTEXTS, BEFORE = 24, 12  # random contexts of a marker, and tokens of each


def run_similarity(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Mean |cosine| of keys of different tokens of random texts, and of the keys under which pairs are stored."""
    texts = random_tokens(bench, "key_similarity", TEXTS, LENGTH)
    prompts = bench.asked(bench.points[0]).prompts[:TEXTS]
    places = torch.arange(bench.task.n_pairs) * 2 + 2  # a pair is written at its value
    for name, tokens, at in (("tokens", texts, slice(None)), ("pairs", prompts, places)):
        found = {layer: x[KEYS][:, at] for layer, x in heard(bench.model, tokens, (KEYS,)).items()}
        if not found:
            yield not_run("key_similarity", "the model shows no keys")
            return
        ids = tokens[:, at]
        same = torch.eye(ids.shape[1], dtype=torch.bool)
        yield _similarity(name, found, (ids[:, :, None] != ids[:, None]) if name == "tokens" else ~same.expand(
            len(ids), -1, -1))  # fmt: skip


def _similarity(name: str, found: dict[int, Tensor], apart: Tensor) -> ProbeResult:
    by_layer = {layer: similarity(keys, apart) for layer, keys in found.items()}  # [R,H]
    chance = expected_similarity(next(iter(found.values())).shape[-1])
    mean, low, high = mean_interval(torch.stack([x.mean(1) for x in by_layer.values()]).mean(0).tolist())
    heads = {layer: x.mean(0).tolist() for layer, x in by_layer.items()}
    worst_layer = max(heads, key=lambda layer: max(heads[layer]))
    worst = int(torch.tensor(heads[worst_layer]).argmax())
    n_heads = max(map(len, heads.values()))
    cells = [row + [float("nan")] * (n_heads - len(row)) for row in heads.values()]
    one = cosines(found[worst_layer][:1, :SHOWN])[0, worst]
    labels = [str(i) for i in range(len(one))]
    what = "different tokens of random texts" if name == "tokens" else "the pairs of an episode"
    return ProbeResult(
        f"key_similarity/{name}", mean, "pass" if high <= TIMES * chance else "fail",
        f"Keys of {what} have a mean |cosine| of {mean:.3f}, random directions {chance:.3f};"
        f" the most alike are those of layer {worst_layer}, head {worst} ({heads[worst_layer][worst]:.3f}).",
        low=low, high=high, n=len(apart), chance=chance, threshold=TIMES * chance,
        details={"heads": {str(layer): row for layer, row in heads.items()}, "pictures": [
            drawn.grid(cells, [f"layer {i}" for i in heads], [str(h) for h in range(n_heads)],
                       title=f"Mean |cosine| of the keys of {what}", x_label="head", y_label="", limits=(0.0, 1.0)),
            drawn.grid(one.tolist(), labels, labels, title=f"Cosines of the keys of one text, layer {worst_layer},"
                       f" head {worst}", x_label="key", y_label="key", limits=(-1.0, 1.0)),
        ]},
    )  # fmt: skip


def run_markers(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """Cosine of the keys of one token behind different random contexts, one result a layer."""
    v = bench.task.vocabulary
    contexts = random_tokens(bench, "marker_keys", CONTEXTS, BEFORE)
    found: dict[str, Heard] = {}
    for name, token in (("marker", v.marker), ("query", v.query), ("value", v.values.start)):
        tokens = torch.cat([contexts, torch.full((CONTEXTS, 1), token)], 1)
        found[name] = heard(bench.model, tokens, (KEYS,))
    layers = list(found["marker"])
    if not layers:
        yield not_run("marker_keys", "the model shows no keys")
        return
    for layer in layers:
        heads = {name: _across(x[layer][KEYS][:, -1]) for name, x in found.items()}  # [contexts,H] each
        mean, low, high = mean_interval(torch.stack(list(heads.values())).mean((0, 2)).tolist())
        cells = [x.mean(0).tolist() for x in heads.values()]
        alike = high < SAME
        yield ProbeResult(
            f"marker_keys/layer{layer}", mean, "pass" if alike else "fail",
            f"Behind different contexts the keys of one token have a mean |cosine| of {mean:.3f}: what stands before it"
            f" {'is in' if alike else 'is not in'} the key"
            + ("." if alike else ", so that all values behind one marker go to one place."),
            low=low, high=high, n=CONTEXTS, chance=expected_similarity(found["marker"][layer][KEYS].shape[-1]),
            threshold=SAME, details={"heads": dict(zip(heads, cells, strict=True)), "pictures": [_markers(
                layer, list(heads), cells)]},
        )  # fmt: skip


def _across(keys: Tensor) -> Tensor:
    """Mean |cosine| of each context's key with those of the others, [C,H], for keys [C,H,K]."""
    cos = cosines(keys[None])[0].abs()  # [H,C,C]
    return ((cos.sum(-1) - 1) / (len(keys) - 1)).T


def _markers(layer: int, names: list[str], cells: list[list[float]]) -> dict[str, Any]:
    return drawn.grid(
        cells, names, [str(h) for h in range(len(cells[0]))], title=f"Keys of one token across contexts, layer {layer}",
        x_label="head", y_label="token", limits=(0.0, 1.0),
    )  # fmt: skip


SIMILARITY = Row("D3", "Key similarity", "Are the keys of different tokens apart?", "diagnostic", run_similarity)
MARKERS = Row("D4", "Marker keys", "Do the keys of one token differ by context?", "diagnostic", run_markers)
