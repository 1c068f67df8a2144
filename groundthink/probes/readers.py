"""Reader transplant: who reads the answer, the layer that writes the memory or a later one?

Two states with the same writes: S_t = A_t S_{t-1} + beta_t k_t v_t^T is linear in the state that it starts from, so the
keys, values and gates of one pass carry a second state along. The writer's own read sees the one, the reads of later
layers see the other; only one of the two is a donor's. Without that, "a later layer reads the memory" is unproven: what
follows a transplanted memory could be the writer's own read.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor

from groundthink import ops
from groundthink.errors import StateError
from groundthink.layers import Mixed
from groundthink.model import Snapshot
from groundthink.probes.cuts import S_READ, hooked, layers_with
from groundthink.probes.face import Model, exactness, gap, read_on
from groundthink.probes.intervention import MEMORY, carriers
from groundthink.probes.interventions import Transplant
from groundthink.probes.prefilled import Block, Prefilled
from groundthink.probes.recall import top
from groundthink.probes.transplant import FOLLOW
from groundthink.records import ProbeResult, Proportion

MIXER = "mixer"
INPUTS = ("hook_k", "hook_v", "hook_log_decay", "hook_beta")
SIDES = ("readers", "writer")


@contextlib.contextmanager
def second_memory(model: Model, memories: Mapping[int, Tensor]) -> Iterator[None]:
    """While inside, later layers read memories that continue these states; the writers' own reads are as ever.

    The second states see every write of the first and are carried from one call of the model to the next: the first
    call inside continues the states given, and must be a `resume`. Packed documents are not supported.

    Args:
        model: with blocks.
        memories: layer to [B,H,K,V]. Layers that are not named are read as ever.

    Raises:
        ConfigError: a layer that writes no memory.
        StateError: nothing is named; inside: a state that does not fit the memory.
    """
    if not memories:
        raise StateError("no layer is given a second memory", where="second_memory")
    carried, inputs = dict(memories), dict[tuple[int, str], Tensor]()

    def swap(layer: int, mixed: Mixed) -> Mixed:
        assert mixed.memory is not None
        second, first = carried[layer], mixed.memory.final_state
        if second.shape != first.shape:
            raise StateError(f"the second memory of layer {layer} is {tuple(second.shape)}, not {tuple(first.shape)}")
        keys, values, log_decay, beta = (inputs[layer, name] for name in INPUTS)
        config = model.blocks[layer].mixer.config  # type: ignore[attr-defined]
        memory = ops.write(
            keys,
            values,
            log_decay=log_decay,
            beta=beta,
            initial_state=second.to(first),
            error=config.error,
            backend=config.backend,
        )
        carried[layer] = memory.final_state
        return mixed._replace(memory=memory)

    def catch(name: str) -> contextlib.AbstractContextManager[None]:
        def keep(layer: int, output: Tensor) -> None:
            inputs[layer, name] = output

        return hooked(model, f"{MIXER}.{name}", carried, keep)

    with contextlib.ExitStack() as stack:
        for name in INPUTS:
            stack.enter_context(catch(name))
        stack.enter_context(hooked(model, MIXER, carried, swap))  # type: ignore[arg-type]
        yield


@dataclasses.dataclass(frozen=True)
class ReaderTransplanted:
    """What donating to one side did.

    Attributes:
        side: `readers` (the reads of later layers) or `writer` (the writer's own read, and what is carried on).
        accuracy: of the recipients, untouched.
        follow: answers that are the donor's value.
        keep: answers that are still the recipient's value.
    """

    side: str
    accuracy: Proportion
    follow: Proportion
    keep: Proportion


def resume_split(
    model: Model, mine: Snapshot, theirs: Snapshot, rest: Tensor, *, side: str, last: bool = False
) -> Tensor:
    """Logits [B,T,vocabulary] of `rest` where one side reads the donor's memories and the other the recipient's.

    With `last`, those of the last token alone, [B,vocabulary].

    Raises:
        StateError: the model carries no memory, or there is no such side.
    """
    layers = carriers(mine)
    if side not in SIDES or not layers:
        raise StateError(f"no side {side!r} of {len(layers)} memories", fix=f"sides: {', '.join(SIDES)}")
    swapped = Transplant()(mine, theirs)
    own, other = (mine, swapped) if side == "readers" else (swapped, mine)
    with second_memory(model, {layer: other.layers[layer][MEMORY[0]] for layer in layers}):
        return read_on(model, rest, own)[0] if last else model.resume(own, rest)[0]


def reader_transplanted(prefilled: Prefilled, kind: str) -> tuple[tuple[ReaderTransplanted, ...], float, float]:
    """Donate to one side at a time. Returns the outcomes, the sham control's largest change, and what it may be.

    The sham splits the memory into two equal ones: that must change nothing.
    """
    theirs, mine = prefilled.donors(kind).answers, prefilled.questions.answers
    done = []
    for side in SIDES:

        def donate(block: Block, side: str = side) -> Tensor:
            return top(resume_split(block.model, block.mine, block.snapshot(kind), block.rest, side=side, last=True))

        said = prefilled.said(f"{side}/{kind}", donate)
        follow, keep = prefilled.share(said, theirs), prefilled.share(said, mine)
        done.append(ReaderTransplanted(side, prefilled.accuracy(), follow, keep))

    def sham(block: Block) -> tuple[float, float]:
        base = block.after(block.mine)
        twice = resume_split(block.model, block.mine, block.mine, block.rest, side="readers", last=True)
        return gap(twice, base), exactness(base)

    return (tuple(done), *prefilled.map(sham, 1)[0])


def reader_rows(prefilled: Prefilled) -> tuple[ProbeResult, ...]:
    """The reader transplant as records: `readers/follow` passes if later layers alone carry the recall.

    Args:
        prefilled: the questions, with donors of the kind `deranged`.
    """
    if not layers_with(prefilled.model, S_READ):
        return (ProbeResult("readers/none", 0.0, "info", "No later layer reads a memory: the writers do it alone."),)
    questions, at = prefilled.questions, prefilled.at
    done, sham, allowed = reader_transplanted(prefilled, "deranged")
    rows, chance = [], questions.chance["in_context"]
    for found in done:
        who = {"readers": "the reads of later layers", "writer": "the writers' own reads"}[found.side]
        need = FOLLOW * found.accuracy.rate
        passed = found.follow.low >= need and found.follow.low > chance
        judged = "info" if found.side == "writer" else "pass" if passed else "fail"
        rows.append(
            ProbeResult(
                f"{found.side}/follow", found.follow.rate, judged,
                f"With another episode's memory for {who} only, the answer is the donor's in {found.follow}"
                f" and still the old one in {found.keep}.",
                low=found.follow.low, high=found.follow.high, n=found.follow.n, chance=chance, threshold=need,
                details={"accuracy": found.accuracy.as_dict(), "keep": found.keep.as_dict(), "boundary": at},
            )
        )  # fmt: skip
    meaning = f"Two equal memories instead of one move a logit by at most {sham:.3g}."
    verdict = "pass" if sham <= allowed else "fail"
    return (*rows, ProbeResult("readers/sham", sham, verdict, meaning, threshold=allowed))
