"""How many tokens a second does `gt.stream` write at batch 1, at contexts up to 256K, beside fla's generate?

    python benchmarks/decode.py --output benchmarks/results/decode_<hardware>_<date>.json
    python benchmarks/decode.py --quick          # 12 layers, three contexts, fla at a short one: about a minute

Gated delta net layers alone, the same sizes in both models, random bf16 weights, greedy. First the accuracy gate: the
graph's logits are those of the same steps without a graph, and stream writes what `generate` writes; a red gate prints
no speed and ends with code 1. fla is measured where it is installed; its rate is the time of a long call of `generate`
less that of a short one, so its prefill does not count. Ours is timed from the eighth token of a stream on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import groundthink as gt
from groundthink.model.decoder import Decoder, Mode
from groundthink.records import provenance, to_json, write_whole

BAR = 1e-3  # RMS(graph - eager) / RMS(eager) of the logits: the same kernels in the same order, so 0 is expected
SKIPPED = 8  # tokens before the clock starts
HEAD = 128


def our_model(flags: argparse.Namespace) -> gt.HybridForCausalLM:
    """`flags.layers` G layers, bf16 weights, float32 gates."""
    torch.manual_seed(0)
    heads = max(1, flags.width // HEAD)
    config = gt.ModelConfig(
        pattern=f"G*{flags.layers}",
        vocab_size=flags.vocabulary,
        d_model=flags.width,
        n_heads=heads,
        head_dim=flags.width // heads,
        value_dim=flags.width // heads,
        tie_embeddings=False,
        decay="mamba",
        backend=flags.backend,
    )
    model = gt.HybridForCausalLM(config)
    model.to(flags.device, torch.bfloat16 if flags.device == "cuda" else torch.float32)
    return model.eval()


def fla_model(flags: argparse.Namespace, ours: gt.HybridForCausalLM) -> Any:
    """fla's model of the same sizes."""
    from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM

    torch.manual_seed(0)
    sizes = ours.sizes
    config = GatedDeltaNetConfig(
        hidden_size=flags.width,
        expand_v=1.0,
        head_dim=sizes.head_dim,
        num_heads=sizes.n_heads,
        intermediate_size=sizes.ff_dim,
        num_hidden_layers=flags.layers,
        vocab_size=flags.vocabulary,
        tie_word_embeddings=False,
    )
    model = GatedDeltaNetForCausalLM(config).to("cuda", torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def prompt(flags: argparse.Namespace, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, flags.vocabulary, (1, length), generator=generator).to(flags.device)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def gate(model: gt.HybridForCausalLM, flags: argparse.Namespace) -> dict[str, float]:
    """Difference of the logits after 32 tokens with and without a graph; share of tokens unlike `generate`."""
    ids = prompt(flags, 100)
    with torch.no_grad():
        logits, snapshot = model.prefill(ids)
    decoders = [Decoder(snapshot, "greedy", flags.vocabulary, Mode(ids.device)) for _ in range(2)]
    if flags.device == "cuda":
        decoders[1].capture(model)
    for decoder in decoders:
        decoder.load(snapshot, logits[:, -1])
        for _ in range(32):
            decoder.step(model)
    eager, graph = (decoder.logits.double() for decoder in decoders)
    streamed = torch.cat(list(gt.stream(model, ids, max_new_tokens=32)))
    out = model.generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=0)
    assert isinstance(out, Tensor)
    unlike = (streamed != out[0, ids.shape[1] :].cpu()).double().mean()
    return {"logits": float((graph - eager).norm() / eager.norm()), "tokens unlike generate": float(unlike)}


def peak(flags: argparse.Namespace) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**20 if flags.device == "cuda" else None


def measure_stream(
    model: gt.HybridForCausalLM, flags: argparse.Namespace, context: int, graph: bool | None
) -> dict[str, Any]:
    """Tokens a second after `context` tokens, seconds to the first token, MiB at the peak of it all."""
    ids, rates, firsts = prompt(flags, context), [], []
    if flags.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(flags.repeats):
        wait(flags.device)
        start = time.perf_counter()
        tokens = gt.stream(model, ids, max_new_tokens=SKIPPED + flags.tokens, graph=graph)
        next(tokens)
        firsts.append(time.perf_counter() - start)
        for _ in range(SKIPPED - 1):
            next(tokens)
        start = time.perf_counter()
        made = sum(1 for _ in tokens)
        rates.append(made / (time.perf_counter() - start))
    return {
        "tokens_per_second": median(rates),
        "all": rates,
        "first_token_seconds": min(firsts),
        "peak_MiB": peak(flags),
    }


def measure_fla(model: Any, flags: argparse.Namespace, context: int) -> dict[str, Any]:
    """The same of fla's generate."""
    ids = prompt(flags, context)

    def seconds(new: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True)
        torch.cuda.synchronize()
        assert out.shape[1] == context + new
        return time.perf_counter() - start

    seconds(2)  # compiles and tunes
    torch.cuda.reset_peak_memory_stats()
    rates, firsts = [], []
    for _ in range(flags.repeats):
        short, long = seconds(SKIPPED), seconds(SKIPPED + flags.tokens)
        rates.append(flags.tokens / (long - short))
        firsts.append(short)
    return {
        "tokens_per_second": median(rates),
        "all": rates,
        "eight_tokens_seconds": min(firsts),
        "peak_MiB": peak(flags),
    }


def attempt(peer: Any, flags: argparse.Namespace, context: int) -> dict[str, Any]:
    """`measure_fla`. A peer that fails is a result too; ours is not caught."""
    try:
        return measure_fla(peer, flags, context)
    except Exception as error:
        torch.cuda.empty_cache()
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def show(row: dict[str, Any]) -> None:
    name = f"{row['who']:<22} {row['context']:>7}"
    if "failed" in row:
        print(f"{name}  failed: {row['failed']}", flush=True)
        return
    memory = "" if row["peak_MiB"] is None else f"  peak {row['peak_MiB']:8.0f} MiB"
    print(f"{name}  {row['tokens_per_second']:8.1f} tokens/s{memory}", flush=True)


def flags_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller model, fewer contexts and tokens")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--contexts", type=int, nargs="+")
    parser.add_argument("--fla-contexts", type=int, nargs="*", help="contexts for fla; none: not at all")
    parser.add_argument("--tokens", type=int, help="tokens timed")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--backend", default="triton", help="of the memory operator")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this file out")
    parser.add_argument("--output", type=Path, help="where the results go, as JSON")
    parser.add_argument("--commit", help="the commit measured, where git cannot say")
    flags = parser.parse_args(words)
    full = {"layers": 24, "width": 1024, "contexts": [1024, 4096, 16384, 65536, 262144], "tokens": 512, "repeats": 3}
    quick = {"layers": 12, "width": 768, "contexts": [1024, 16384, 262144], "tokens": 200, "repeats": 2}
    for name, value in (quick if flags.quick else full).items():
        if getattr(flags, name) is None:
            setattr(flags, name, value)
    if flags.fla_contexts is None:
        flags.fla_contexts = [64] if flags.quick else flags.contexts
    return flags


def measure_all(flags: argparse.Namespace, model: gt.HybridForCausalLM) -> tuple[list[dict[str, Any]], int | None]:
    """Rows of both, and fla's parameters."""
    rows: list[dict[str, Any]] = []

    def add(who: str, context: int, found: dict[str, Any]) -> None:
        rows.append({"who": who, "context": context, **found})
        show(rows[-1])

    list(gt.stream(model, prompt(flags, 5000), max_new_tokens=2))  # compiles: two segments
    for context in flags.contexts:
        add("gt.stream", context, measure_stream(model, flags, context, None))
    add("gt.stream, no graph", flags.contexts[0], measure_stream(model, flags, flags.contexts[0], False))
    peer_parameters = None
    if flags.fla_contexts and flags.device == "cuda":
        try:
            peer = fla_model(flags, model)
        except ImportError as error:
            print(f"fla is not measured: {error}")
            return rows, None
        peer_parameters = parameters(peer)
        for context in flags.fla_contexts:
            add("fla generate", context, attempt(peer, flags, context))
    return rows, peer_parameters


def main() -> int:
    flags = flags_of()
    model = our_model(flags)
    errors = gate(model, flags)
    print("accuracy:", {name: f"{error:.1e}" for name, error in errors.items()}, flush=True)
    if not (errors["logits"] < BAR and errors["tokens unlike generate"] == 0):
        print(f"the accuracy gate is red (bars {BAR} and 0): no speed")
        return 1
    rows, peer_parameters = measure_all(flags, model)
    ours = [row["tokens_per_second"] for row in rows if row["who"] == "gt.stream"]
    theirs = [row["tokens_per_second"] for row in rows if row["who"] == "fla generate" and "failed" not in row]
    print(f"slowest context over fastest: {min(ours) / max(ours):.3f}")
    if theirs:
        print(f"{min(ours) / max(theirs):.2f} times fla at its best, at our slowest context")
    if flags.output:
        record = {
            "what": "decoding at batch 1, bf16, greedy, G layers alone; medians of repeats",
            "flags": {name: value for name, value in vars(flags).items() if name not in ("output", "commit")},
            "hardware": torch.cuda.get_device_name() if flags.device == "cuda" else flags.device,
            "parameters": {"groundthink": parameters(model), "fla": peer_parameters},
            "errors": errors,
            "rows": rows,
            "date": time.strftime("%Y-%m-%d"),
            "provenance": {**provenance(), **({"commit": flags.commit} if flags.commit else {})},
        }
        write_whole(flags.output, to_json(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
