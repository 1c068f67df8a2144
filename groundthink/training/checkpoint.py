"""Checkpoints: folders of safetensors and JSON, whole or absent, verified before anything is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from groundthink.errors import CheckpointError
from groundthink.records import provenance, to_json, write_whole
from groundthink.training.optimizer import named_moments, restore_moments

FOLDER, STATE = "checkpoints", "state.json"
MODEL, OPTIMIZER, CARRIED = "model.safetensors", "optimizer.safetensors", "carried.safetensors"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: its folder.
        state: the counters and digests that the run stored.
        model, optimizer, carried: tensors by name, on the CPU.
    """

    path: Path
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    carried: dict[str, Tensor]


def save_checkpoint(
    run: Path,
    *,
    step: int,
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    carried: Mapping[str, Tensor],
    keep_last: int = 0,
) -> Path:
    """Write `checkpoints/step_00000100` beside its final place, flush it to the disk, then rename it.

    Args:
        run: folder of the run.
        step: optimizer steps taken; names the folder.
        state: JSON values to store.
        model, optimizer: whose tensors are stored.
        carried: tensors of the carried snapshots, by name.
        keep_last: older checkpoints beyond this many are removed afterwards; 0 keeps all.

    Raises:
        CheckpointError: it could not be written, as when the disk is full; earlier ones are untouched.
    """
    final = run / FOLDER / f"step_{step:08d}"
    temporary: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final.parent)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide the checkpoint from the user's group
        _write_model(model, temporary)
        for name, tensors in ((OPTIMIZER, named_moments(optimizer)), (CARRIED, dict(carried))):
            save_file(_storable(tensors), temporary / name)
        files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        body = {**state, "step": step, "format": FORMAT, "files": files, "versions": provenance()["versions"]}
        body = json.loads(to_json(body))
        write_whole(temporary / STATE, to_json({**body, "digest": _digest(body)}))
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if final.exists():
            final.rename(Path(tempfile.mkdtemp(dir=final.parent, prefix=".replaced.")) / final.name)
        temporary.rename(final)
        _sync(final.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"could not be written: {reason}",
            where=str(final),
            fix="free space on that disk, then resume; earlier checkpoints are untouched",
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
    _prune(final.parent, keep_last)
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first, found by looking."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step_\d{8,}", path.name) and (path / STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(
            "there is no checkpoint",
            where=str(run),
            fix="name the folder of a run, or train it again under a new name",
        )
    return found[-1]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after verifying every file against its digest.

    Raises:
        CheckpointError: a file is missing, truncated, changed, or of another format.
    """
    state = _read_state(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, digest in state["files"].items():
        if Path(name).name != name:
            raise CheckpointError(f"{name!r} is no file name", where=str(path / STATE), fix=_other(path))
        file = path / name
        try:
            found = _sha256(file)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", where=str(file), fix=_other(path)) from error
        if found != digest:
            raise CheckpointError(
                "is damaged or truncated: its SHA-256 is not the one stored",
                where=str(file),
                fix=_other(path),
            )
        if name.endswith(".safetensors"):
            try:
                tensors[name] = load_file(file)
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"is not safetensors: {error}", where=str(file), fix=_other(path)) from error
    for name in (MODEL, OPTIMIZER, CARRIED):
        if name not in tensors:
            raise CheckpointError(f"lacks {name}", where=str(path), fix=_other(path))
    return Checkpoint(path, state, tensors[MODEL], tensors[OPTIMIZER], tensors[CARRIED])


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
    """Put parameters, buffers and moments back, in place.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    own = model.state_dict()
    given = checkpoint.model
    problems = [f"unknown tensor {name!r}" for name in sorted(set(given) - set(own))]
    stored = {_place(own[name]) for name in given if name in own}
    problems += [f"no {name!r}" for name, x in own.items() if name not in given and _place(x) not in stored]
    for name in sorted(set(given) & set(own)):
        mine, theirs = own[name], given[name]
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            problems.append(f"{name} is {theirs.dtype} {tuple(theirs.shape)}, the model's {tuple(mine.shape)}")
    if not problems:
        problems = restore_moments(optimizer, checkpoint.optimizer)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"is of another model: {'; '.join(problems[:3])}{more}",
            where=str(checkpoint.path),
            fix="resume with the config that wrote it",
        )
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)


def weights_digest(model: nn.Module) -> str:
    """Of a model's tensors, by name: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _write_model(model: nn.Module, folder: Path) -> None:
    if hasattr(model, "save_pretrained"):
        from groundthink.model import save_model  # type: ignore[attr-defined]  # brings transformers, which a stand-in model does without

        save_model(model, folder)  # type: ignore[arg-type]
        return
    unique: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        unique.setdefault(_place(tensor), (name, tensor))
    save_file(_storable(dict(unique.values())), folder / MODEL, metadata={"format": "pt"})


def _place(tensor: Tensor) -> Any:
    """What tied tensors have in common."""
    if not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Clones: safetensors refuses tensors that share memory, as views of one carried state may.
    return {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}


def _read_state(path: Path) -> dict[str, Any]:
    file = path / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(file), fix=_other(path)) from error
    except ValueError as error:
        raise CheckpointError("is not JSON: damaged or truncated", where=str(file), fix=_other(path)) from error
    body = {key: value for key, value in state.items() if key != "digest"} if isinstance(state, dict) else {}
    if not body or state.get("digest") != _digest(body):
        raise CheckpointError("was changed or is not of this program", where=str(file), fix=_other(path))
    if body.get("format") != FORMAT or not isinstance(body.get("files"), dict):
        found = body.get("format")
        raise CheckpointError(
            f"format {found!r}, known is {FORMAT}", where=str(file), fix="use the version that wrote it"
        )
    return body


def _other(path: Path) -> str:
    others = [str(p.name) for p in list_checkpoints(path.parent.parent) if p != path]
    return f"remove {path} and resume from {others[-1]}" if others else "train again under a new name"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(dict(body)).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(folder: Path, keep_last: int) -> None:
    for old in list_checkpoints(folder.parent)[:-keep_last] if keep_last else []:
        # Renamed first: a removal that is cut short must not leave something that looks complete.
        with contextlib.suppress(OSError):
            old.rename(folder / f".removed.{old.name}")
    _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove what an interrupted save or removal left."""
    for path in folder.iterdir():
        if path.is_dir() and re.match(r"\.(step_\d+|removed|replaced)\.", path.name):
            shutil.rmtree(path, ignore_errors=True)
