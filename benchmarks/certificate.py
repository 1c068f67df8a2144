"""How long does a full certificate take here?

    python benchmarks/certificate.py --size small                 # 2 layers, d 128; bar 3 minutes on two cores
    python benchmarks/certificate.py --size 125M --device cuda   # 12 layers, d 768; bar 2 minutes on one H200

The model first learns recall, so that every row is asked of something that answers; a certificate that ends early
because there is nothing to certify would be quick for nothing, and the command then ends with code 1. `--model FOLDER`
takes a trained run instead. Training is not part of the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import groundthink as gt
from groundthink.probes import certify
from groundthink.records import provenance, to_json, write_whole
from groundthink.tasks import Vocabulary

LENGTH = 112  # the bootcamp's rows: what multiples are of
SIZES: dict[str, list[str]] = {
    "small": [],
    "125M": [
        "model.pattern=GGGS*3", "model.vocab_size=50304", "model.d_model=768", "model.d_ff=2048", "model.n_heads=6",
        "model.head_dim=128", "model.value_dim=128", "optimizer.learning_rate=1.0e-3", "phases[0].rows=96",
        # Twelve layers of which nine never read their own memory learn recall in a thousand steps, these in fifty.
        "phases[0].model_options.own_read_drop_prob=0.5",
    ],
}  # fmt: skip


def learn(size: str, changes: list[str], seed: int, steps: int, device: str, folder: Path) -> gt.HybridForCausalLM:
    """The demo's bootcamp alone: recall through the S layers, no language."""
    own = [*SIZES[size], f"seed={seed}", f"device={device}", f"phases[0].steps={steps}"]
    recipe = gt.load_recipe("demo", [*own, *changes])
    recipe = dataclasses.replace(recipe, phases=recipe.phases[:1])
    total = gt.train(recipe, folder, on_event=_tell)
    print(f"trained for {total.step} steps: {total.metrics}", flush=True)
    return gt.load(folder)


def _tell(event: dict[str, Any]) -> None:
    if event["event"] == "evaluation":
        print(f"step {event['step']}: {event['metrics']}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe, as for groundthink train")
    parser.add_argument("--model", type=Path, help="a trained run, in place of training one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--steps", type=int, default=200, help="of the bootcamp, at most: it ends when recall is learned"
    )
    parser.add_argument("--multiples", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    flags = parser.parse_args()
    vocabulary = Vocabulary(**gt.load_recipe("demo").vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        given = flags.model or Path(folder) / "run"
        wanted = (flags.size, flags.set, flags.seed, flags.steps, flags.device)
        model = gt.load(given) if flags.model else learn(*wanted, given)
    model = model.to(flags.device)
    start = time.perf_counter()
    marks: list[tuple[str, float]] = []

    def mark(event: str, told: Any) -> None:
        if event == "row":
            marks.append((told["id"], time.perf_counter()))

    certificate = certify(
        model, vocabulary=vocabulary, n=flags.n, seed=flags.seed, trained_length=LENGTH, multiples=flags.multiples,
        on_event=mark,
    )  # fmt: skip
    if flags.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    verdicts = Counter(result.verdict for result in certificate.results)
    print(f"{certificate.verdict} in {seconds:.1f} s: {certificate.sentence}")
    print("rows:", dict(verdicts))
    taken: Counter[str] = Counter()
    for (name, began), (_, ended) in itertools.pairwise([*marks, ("", start + seconds)]):
        taken[name] += ended - began  # type: ignore[assignment]
    print("seconds:", {name: round(value, 1) for name, value in taken.most_common()})
    record = {
        "what": "seconds of a full certificate, training outside",
        "seconds": seconds,
        "verdict": certificate.verdict,
        "rows": dict(verdicts),
        "seconds_by_row": {name: round(value, 2) for name, value in taken.most_common()},
        "multiples": flags.multiples,
        "n": flags.n,
        "seed": flags.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if flags.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "provenance": provenance(),
    }
    if flags.output:
        write_whole(flags.output, to_json(record))
    return int(certificate.verdict in ("INVALID", "TASK-FAIL"))


if __name__ == "__main__":
    sys.exit(main())
