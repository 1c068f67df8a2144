"""Run a study: its cells one after another or side by side, each recorded when it is done and never done twice."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch

from groundthink.errors import ConfigError, GroundThinkError
from groundthink.records import ProbeResult, provenance, to_json, write_whole
from groundthink.studies.registry import find
from groundthink.studies.study import Interrupted, Study, Work, by_name
from groundthink.studies.table import table
from groundthink.training.config import DataConfig
from groundthink.training.run import choose_device
from groundthink.training.stop import StopSignal, stop_signals

CELLS, TRAININGS, RECORD = "cells", "trainings", "study"
OnStage = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run and how.

    Attributes:
        study, size: which.
        folder: where everything goes.
        seeds: which seeds.
        device: where the models are trained.
        jobs: cells at a time, each a process of its own if above 1; on several GPUs they are spread evenly.
        data: corpus and tokenizer of studies with text.
        arms: which of the study's; none for all. Cells are the same either way, so the others can be done later.
    """

    study: str
    size: str
    folder: Path
    seeds: tuple[int, ...]
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    jobs: int = 1
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    arms: tuple[str, ...] = ()

    @property
    def chosen(self) -> Study:
        """The study with the arms of this plan."""
        return find(self.study).only(self.arms)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm under one seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def stem(self) -> str:
        """The cell as a file name."""
        return f"{self.arm.replace(' ', '-').replace('/', '-')}.seed{self.seed}"


def plan_of(
    name: str,
    size: str,
    folder: Path,
    *,
    seeds: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    jobs: int = 1,
    data: DataConfig | None = None,
    arms: Sequence[str] = (),
) -> Plan:
    """A checked plan.

    Args:
        name, size: which study; `seeds` None takes the size's own number.
        arms: some of the study's, all if none is named.

    Raises:
        ConfigError: no such study or arm, a number below 1, or text for a study that reads none.
        BackendError: the device is not there.
    """
    study = find(name).only(arms)
    if jobs < 1 or (seeds is not None and seeds < 1):
        raise ConfigError(f"jobs {jobs} and seeds {seeds} must be at least 1", where="study", fix="raise them")
    if data is not None and not study.text:
        raise ConfigError(f"study {name} reads no text", where="study", fix="leave corpus and tokenizer out")
    choose_device(device)
    count = study.sizes[size].seeds if seeds is None else seeds
    return Plan(
        study=name, size=size, folder=folder, seeds=tuple(range(count)), device=device, jobs=jobs,
        data=data if data is not None else DataConfig(), arms=tuple(arms),
    )  # fmt: skip


def run_study(plan: Plan, *, on_stage: OnStage, on_event: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """Run what is not done yet, and write the table to `records/study.json`.

    Args:
        plan: as `plan_of` makes it.
        on_stage: hears one line for each cell.
        on_event: hears the events of trainings, where cells run in this process.

    Returns:
        The record, a dictionary; None if a signal stopped it: the same plan goes on from there.

    Raises:
        ConfigError: the folder holds something else.
        GroundThinkError: a cell could not be done; the others were.
    """
    study = plan.chosen
    digest = study.digest(plan.size, plan.data)
    _claim(plan, digest)
    cells = [Cell(arm, seed) for seed in plan.seeds for arm in study.arms]
    open_cells = [cell for cell in cells if read_cell(plan, cell, digest) is None]
    if len(open_cells) < len(cells):
        on_stage(f"{len(cells) - len(open_cells)} of {len(cells)} cells are done already")
    run = _side_by_side if plan.jobs > 1 and len(open_cells) > 1 else _in_turn
    if not run(plan, open_cells, digest, on_stage, on_event):
        return None
    found = {(cell.arm, cell.seed): read_cell(plan, cell, digest) for cell in cells}
    done = {key: raw for key, raw in found.items() if raw is not None}
    results = {key: by_name(ProbeResult(**item) for item in raw["results"]) for key, raw in done.items()}
    record = table(study, plan.size, plan.seeds, results)
    record |= {
        "title": f"Study {plan.study}, {plan.size}",
        "settings": study.sizes[plan.size].settings,
        "arms": list(study.arms),
        "data": plan.data if study.text else None,
        "seconds": sum(raw["seconds"] for raw in done.values()),
        "hardware": sorted({raw["hardware"] for raw in done.values()}),
        "commits": sorted({raw["commit"] for raw in done.values()}),
        "versions": _distinct(raw.get("versions", {}) for raw in done.values()),
        "provenance": provenance(),
    }
    write_whole(plan.folder / "records" / f"{RECORD}.json", to_json(record))
    return json.loads(to_json(record))


def do_cell(plan: Plan, cell: Cell, digest: str, on_event: Callable[[dict[str, Any]], None] | None) -> float:
    """Train and measure one cell, and write its record; seconds.

    Raises:
        Interrupted: a signal stopped a training.
    """
    study = find(plan.study)
    work = Work(
        settings=study.sizes[plan.size].settings,
        seed=cell.seed,
        folder=plan.folder / TRAININGS / cell.stem,
        device=plan.device,
        data=plan.data,
        on_event=on_event,
    )
    began = time.monotonic()
    torch.manual_seed(cell.seed)
    results = by_name(study.arms[cell.arm](work))
    seconds = time.monotonic() - began
    record = {
        "digest": digest, "arm": cell.arm, "seed": cell.seed, "seconds": seconds, "results": list(results.values()),
        "hardware": hardware(plan.device), "commit": provenance()["commit"], "versions": provenance()["versions"],
    }  # fmt: skip
    write_whole(_path(plan, cell), to_json(record))
    return seconds


def read_cell(plan: Plan, cell: Cell, digest: str) -> dict[str, Any] | None:
    """The record of a finished cell; None if there is none.

    Raises:
        ConfigError: the file is damaged, or of other settings.
    """
    path = _path(plan, cell)
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        fits = raw["digest"] == digest and isinstance(raw["seconds"], float)
        for item in raw["results"]:  # NaN is written as null
            item["value"] = float("nan") if item["value"] is None else item["value"]
            ProbeResult(**item)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path), fix="delete it; that cell runs again") from error
    if not fits:
        raise ConfigError("was made with other settings", where=str(path), fix="name another folder, or delete it")
    return dict(raw)


def _distinct(found: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Each set of versions once, of cells that say theirs."""
    return [dict(items) for items in sorted({tuple(sorted(versions.items())) for versions in found if versions})]


def hardware(device: str) -> str:
    """Name of what a cell ran on."""
    if choose_device(device).type == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{provenance()['hardware']}, {torch.get_num_threads()} threads a cell"


def _path(plan: Plan, cell: Cell) -> Path:
    return plan.folder / CELLS / f"{cell.stem}.json"


def _claim(plan: Plan, digest: str) -> None:
    """Write down what the folder is for; refuse a folder that is for something else."""
    mark = plan.folder / "plan.json"
    mine = {"study": plan.study, "size": plan.size, "digest": digest}
    if mark.is_file():
        try:
            theirs = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError("cannot be read", where=str(mark), fix="name another folder") from error
        if theirs != mine:
            raise ConfigError(
                "holds another study or other settings", where=str(plan.folder), fix="name another folder"
            )
        return
    if plan.folder.exists() and (not plan.folder.is_dir() or any(plan.folder.iterdir())):
        raise ConfigError("is not empty and holds no study", where=str(plan.folder), fix="name another folder")
    write_whole(mark, to_json(mine))


def _in_turn(
    plan: Plan,
    cells: Sequence[Cell],
    digest: str,
    on_stage: OnStage,
    on_event: Callable[[dict[str, Any]], None] | None,
) -> bool:
    """One cell after another in this process; False if a signal stopped it."""
    for cell in cells:
        try:
            seconds = do_cell(plan, cell, digest, on_event)
        except Interrupted:
            return False
        on_stage(f"{cell}: {seconds:.1f} s")
    return True


def _side_by_side(plan: Plan, cells: Sequence[Cell], digest: str, on_stage: OnStage, on_event: object) -> bool:
    """`plan.jobs` cells at a time, each in a process of its own; False if a signal stopped them."""
    del on_event  # the trainings are in other processes, and write their own events.jsonl
    waiting = list(cells)
    cards = torch.cuda.device_count() if choose_device(plan.device).type == "cuda" else 0
    running: dict[Connection, tuple[Cell, Any, int | None]] = {}
    failures: list[str] = []
    stopped = False
    with stop_signals() as signal:
        while waiting or running:
            if signal.name and not stopped:
                stopped = True
                waiting.clear()
                for _, process, _ in running.values():
                    process.terminate()  # a training that hears it leaves a checkpoint
            while waiting and len(running) < plan.jobs:
                cell = waiting.pop(0)
                card = idlest(cards, [card for _, _, card in running.values()])
                mine, process = _start(plan, cell, digest, card)
                running[mine] = cell, process, card
            for connection in list(wait(list(running), timeout=0.2)):
                assert isinstance(connection, Connection)
                cell, process, _ = running.pop(connection)
                said, seconds = _hear(connection, process)
                stopped |= said == "stopped"
                if said == "done":
                    on_stage(f"{cell}: {seconds:.1f} s")
                elif said != "stopped" and not stopped:
                    failures.append(f"{cell}: {said}")
    if failures:
        raise GroundThinkError(
            f"{len(failures)} of {len(cells)} cells could not be done: {'; '.join(failures)}",
            where=f"study {plan.study}",
            fix="mend the cause and give the same command: finished cells are kept",
        )
    return not stopped


def idlest(cards: int, busy: Sequence[int | None]) -> int | None:
    """Index of the GPU with the fewest cells; None where there is none."""
    return min(range(cards), key=busy.count, default=None)


def _start(plan: Plan, cell: Cell, digest: str, card: int | None) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")  # CUDA cannot be carried over a fork
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, plan, cell, digest, card))
    process.start()
    theirs.close()
    return mine, process


def _hear(connection: Connection, process: Any) -> tuple[str, float]:
    """What a finished process said, and its seconds."""
    try:
        said, seconds = connection.recv()
    except EOFError:
        said, seconds = "", 0.0
    connection.close()
    process.join()
    return said or f"the process ended with code {process.exitcode}", seconds


def _child(connection: Connection, plan: Plan, cell: Cell, digest: str, card: int | None) -> None:
    """One cell in a process of its own."""
    if card is not None:
        torch.cuda.set_device(card)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // plan.jobs))
    # A signal between trainings is noted here and stops the process where the next training would begin.
    with stop_signals() as signal:
        try:
            seconds = do_cell(plan, cell, digest, _stop_if(signal))
            connection.send(("done", seconds))
        except Interrupted:
            connection.send(("stopped", 0.0))
        except GroundThinkError as error:
            connection.send((str(error), 0.0))


def _stop_if(signal: StopSignal) -> Callable[[dict[str, Any]], None]:
    def hear(_event: dict[str, Any]) -> None:
        if signal.name:
            raise Interrupted(signal.name)

    return hear


def finished(plan: Plan) -> Iterator[Path]:
    """Files of the finished cells."""
    yield from sorted((plan.folder / CELLS).glob("*.json"))
