"""`groundthink doctor`: what this machine is, which backend each operation gets and why, where kernels are kept."""

from __future__ import annotations

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Flags:
    """Look at this machine, its libraries and its backends."""


def run(flags: Flags) -> int:
    """Print one fact a line; 0 always."""
    del flags
    found = facts()
    width = max(len(name) for name, _ in found)
    for name, value in found:
        print(f"{name:<{width}} {value}")
    return 0


def facts() -> list[tuple[str, str]]:
    """(name, value) pairs, in the order to show them."""
    import torch

    from groundthink.ops import warm
    from groundthink.records import provenance

    here = provenance()
    found = [(name, str(version)) for name, version in here["versions"].items()]
    found += [("commit", str(here["commit"])), ("hardware", str(here["hardware"]))]
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        usable = os.cpu_count() or 1
    found.append(("threads", f"{torch.get_num_threads()} of {usable} usable cores"))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            found.append((f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    else:
        why = "torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        found.append(("cuda", f"none: {why}"))
    for row in warm.describe_operations():
        found.append((f"{row['operation']} on {row['device']}", f"{row['backend']}: {row['reason']}"))
    return [*found, ("kernel cache", str(warm.kernel_cache()))]
