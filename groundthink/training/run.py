"""A run in progress: phases, evaluations, decisions, checkpoints, stops."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import CheckpointError, ConfigError, GroundThinkError
from groundthink.records import provenance
from groundthink.training.checkpoint import FOLDER, Checkpoint, restore, save_checkpoint, weights_digest
from groundthink.training.config import MixItem, Phase, TrainConfig
from groundthink.training.events import Event, EventLog
from groundthink.training.knobs import Knobs
from groundthink.training.losses import Auxiliary
from groundthink.training.mixture import Measurement, Mixture, Source, derive
from groundthink.training.optimizer import build_optimizer
from groundthink.training.progress import Progress, judge, unmet
from groundthink.training.schedule import learning_rate
from groundthink.training.step import Carry, Stepper, StepReport, autocast
from groundthink.training.stop import stop_signals

Hook = Callable[[Event, nn.Module], None]
SourceFactory = Callable[[MixItem], Source]


class Run:
    """A run in progress. What can be refused is refused in the constructor, before files are written."""

    def __init__(
        self, config: TrainConfig, folder: Path, *, sources: SourceFactory | None, model: nn.Module | None
    ) -> None:
        self.config, self.folder = config, folder
        given = model is not None
        self.device = choose_device(config.device)
        if sources is None or model is None:
            from groundthink.training.sources import Recipe, build_model  # brings transformers

            recipe = Recipe(config)
            model = build_model(config, recipe) if model is None else model
            sources = recipe.source if sources is None else sources
        self.sources = [{item.label: sources(item) for item in phase.mix} for phase in config.phases]
        self.model = model.to(self.device)
        held = any(phase.losses.get("anchor") for phase in config.phases)
        self.anchor = copy.deepcopy(self.model).eval().requires_grad_(False) if given and held else None
        self.anchor_digest = None if self.anchor is None else weights_digest(self.anchor)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.knobs = Knobs(self.model)
        for i, phase in enumerate(config.phases):
            self.knobs.apply(phase.model_options, f"phases[{i}]")
            self.auxiliary = self._listen(i, phase)
        loss: Any = self.model.loss
        if config.compile:
            loss = torch.compile(loss)
        self.stepper = Stepper(
            model=self.model,
            loss=loss,
            optimizer=self.optimizer,
            device=self.device,
            precision=config.precision,
            clip_norm=config.optimizer.clip_norm,
        )
        self.progress, self.carry = Progress(), Carry()
        self.metrics: dict[str, float] = {}
        self.saved_step: int | None = None

    def _listen(self, index: int, phase: Phase) -> Auxiliary:
        return Auxiliary(self.model, phase.losses, f"phases[{index}].losses", anchor=self.anchor)

    @property
    def finished(self) -> bool:
        """All phases are done."""
        return self.progress.phase >= len(self.config.phases)

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self.config.phases[self.progress.phase]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the data of every item, by phase and item."""
        return {
            f"{phase.name}/{label}": source.fingerprint
            for phase, sources in zip(self.config.phases, self.sources, strict=True)
            for label, source in sources.items()
        }

    def open(self, hooks: Sequence[Hook], on_event: Callable[[Event], None] | None) -> None:
        """Open the event log and connect the listeners."""
        listeners: list[Callable[[Event], None]] = [] if on_event is None else [on_event]
        listeners += [lambda event, hook=hook: hook(event, self.model) for hook in hooks]  # type: ignore[misc]
        self.log = EventLog(self.folder, listeners)
        self.mark = self.log_mark = time.monotonic()
        self.log_tokens = self.progress.tokens

    def announce(self, event: str) -> None:
        """Write down what is trained, where and with what."""
        groups: dict[str, int] = {}
        for group in self.optimizer.param_groups:
            name = f"weight_decay_{group['weight_decay']}"
            groups[name] = groups.get(name, 0) + len(group["names"])
        self.log.write(
            event,
            step=self.progress.step,
            parameters=sum(p.numel() for p in self.model.parameters()),
            tensors=groups,
            device=str(self.device),
            threads=torch.get_num_threads(),
            config_digest=self.config.digest,
            data=self.fingerprints,
            provenance=provenance(),
        )

    # --- state on disk -------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint, unless this step has one."""
        if self.saved_step == self.progress.step:
            return
        began = time.monotonic()
        carried: dict[str, Tensor] = {
            f"{key}/{name}": x for key, snapshot in self.carry.items() for name, x in snapshot.tensors().items()
        }
        path = save_checkpoint(
            self.folder,
            step=self.progress.step,
            state={
                "progress": dataclasses.asdict(self.progress),
                "metrics": self.metrics,
                "config_digest": self.config.digest,
                "data": self.fingerprints,
                **({} if self.anchor_digest is None else {"anchor": self.anchor_digest}),
            },
            model=self.model,
            optimizer=self.optimizer,
            carried=carried,
            keep_last=self.config.keep_last,
        )
        self.saved_step = self.progress.step
        seconds = time.monotonic() - began
        self.log.write("checkpoint", step=self.progress.step, path=f"{FOLDER}/{path.name}", seconds=seconds)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint's tensors and counters.

        Raises:
            CheckpointError: it is of another model or other data.
        """
        for name, fingerprint in self.fingerprints.items():
            if checkpoint.state["data"].get(name) != fingerprint:
                raise CheckpointError(
                    f"the data of {name} are not those that it was trained on",
                    where=str(checkpoint.path),
                    fix="bring the same files and versions, or train under a new name",
                )
        if checkpoint.state.get("anchor") != self.anchor_digest:
            raise CheckpointError(
                "the model to hold on to (losses.anchor) is not the one that this training began with",
                where=str(checkpoint.path),
                fix="hand that one to resume(..., model=...)",
            )
        restore(checkpoint, self.model, self.optimizer)
        raw = dict(checkpoint.state["progress"])
        self.progress = Progress(**{**raw, "patience": tuple(raw["patience"])})
        self.metrics = dict(checkpoint.state["metrics"])
        self.saved_step = self.progress.step
        grouped: dict[str, dict[str, Tensor]] = {}
        for full, tensor in checkpoint.carried.items():
            key, _, name = full.partition("/")
            grouped.setdefault(key, {})[name] = tensor
        kind = _snapshot_class(self.model) if grouped else None
        self.carry = {key: kind.from_tensors(named).to(self.device) for key, named in grouped.items() if kind}

    # --- the loop ------------------------------------------------------------------------------------------

    def go(self, stop_at: int | None) -> str:
        """Take steps until all phases are done or somebody stops the run; says which; leaves a checkpoint."""
        if self.finished:
            return "done"
        self._enter_phase(resumed=self.saved_step is not None)
        with stop_signals() as signal:
            while not self.finished:
                if signal.name or (stop_at is not None and self.progress.step >= stop_at):
                    return self._stop(signal.name or "stop_at")
                self._advance()
        here = self.progress
        self.log.write(
            "done",
            step=here.step,
            tokens=here.tokens,
            elapsed=here.elapsed,
            skips=here.skips,
            metrics=self.metrics,
        )
        return "done"

    def _stop(self, reason: str) -> str:
        self.save()
        self.log.write("stop", step=self.progress.step, reason=reason)
        return reason

    def _advance(self) -> None:
        """One step and all that follows from it."""
        report, rate = self._take_step()
        ended = self._decide()
        if report.fault is None and (ended or self.progress.step % self.config.log_every == 0):
            self._log_step(report, rate)
        if ended:
            self._leave_phase(ended)
        every = self.config.checkpoint_every
        if self.finished or (every and self.progress.step % every == 0):
            self.save()

    def _enter_phase(self, *, resumed: bool) -> None:
        index = self.progress.phase
        self.knobs.apply(self.phase.model_options, f"phases[{index}]")
        self.auxiliary = self._listen(index, self.phase)
        self.mixture = Mixture(seed=self.config.seed, index=index, phase=self.phase, sources=self.sources[index])
        if not resumed:
            patience = (0,) * len(self.phase.advance)
            self._update(step_in_phase=0, phase_elapsed=0.0, patience=patience)
            self.log.write("phase", action="begin", step=self.progress.step, phase=self.phase.name)

    def _take_step(self) -> tuple[StepReport, float]:
        here, phase = self.progress, self.phase
        spent = min(1.0, here.phase_elapsed / phase.max_seconds) if phase.max_seconds else 0.0
        rate = learning_rate(self.config.optimizer.learning_rate, phase, here.step_in_phase, spent=spent)
        parts = self.mixture.parts(here.step_in_phase)
        self.model.train()
        torch.manual_seed(derive(self.config.seed, "step", here.step))  # dropout is a function of the step too
        report, self.carry = self.stepper.take(
            parts,
            self.carry,
            learning_rate=rate,
            accumulate=phase.accumulate,
            normalise=phase.normalise,
            auxiliary=self.auxiliary,
        )
        in_a_row = 0 if report.fault is None else here.skips_in_a_row + 1
        self._update(
            step=here.step + 1,
            step_in_phase=here.step_in_phase + 1,
            tokens=here.tokens + report.tokens,
            skips=here.skips + (report.fault is not None),
            skips_in_a_row=in_a_row,
        )
        if report.fault is not None:
            self.carry = {}  # a state that saw the fault may hold it; the streams start from the empty state
            self._report_fault(report.fault, in_a_row)
        return report, rate

    def _report_fault(self, fault: str, in_a_row: int) -> None:
        give_up = in_a_row >= self.config.max_skips
        self.log.write(
            "fault",
            step=self.progress.step,
            phase=self.phase.name,
            what=fault,
            action="stop" if give_up else "skip",
            in_a_row=in_a_row,
        )
        if give_up:
            raise GroundThinkError(
                f"{in_a_row} steps in a row were not finite: {fault}",
                where=f"step {self.progress.step}, phase {self.phase.name}",
                fix="lower the learning rate or lengthen the warm-up, and train under a new name",
            )

    def _decide(self) -> str | None:
        """Evaluate where it is due; why the phase ends now ("threshold", "cap", "time"), or None."""
        phase, every = self.phase, self.config.evaluate_every
        self._update()
        ended = "cap" if self.progress.step_in_phase >= phase.steps else None
        if ended is None and phase.max_seconds and self.progress.phase_elapsed >= phase.max_seconds:
            ended = "time"
        if not every or not (ended or self.progress.step_in_phase % every == 0):
            return ended
        measured = self._evaluate()
        self.metrics = {name: m.value for name, m in measured.items()}
        self.progress = judge(self.progress, phase, measured)
        self._update()
        self.log.write(
            "evaluation",
            step=self.progress.step,
            phase=phase.name,
            metrics=self.metrics,
            intervals={name: [m.low, m.high, m.n] for name, m in measured.items()},
            elapsed=self.progress.elapsed,
        )
        return "threshold" if phase.advance and not unmet(self.progress, phase) else ended

    def _evaluate(self) -> dict[str, Measurement]:
        self.model.eval()
        measured: dict[str, Measurement] = {}
        for item in self.phase.mix:
            asked = [t.n for t in self.phase.advance if t.n and t.metric.partition(".")[0] == item.label]
            source = self.sources[self.progress.phase][item.label]
            found: Mapping[str, Measurement] = source.measure(
                self._predict,
                n=max(asked, default=self.config.evaluation_n),
                seed=derive(self.config.seed, "validation", item.label),
                length=self.phase.length,
            )
            measured |= {f"{item.label}.{name}": m for name, m in found.items()}
        return measured

    @torch.no_grad()
    def _predict(self, tokens: Tensor) -> Tensor:
        with autocast(self.device, self.config.precision):
            out = self.model(tokens.to(self.device))
        logits: Tensor = getattr(out, "logits", out)
        return logits

    def _log_step(self, report: StepReport, rate: float) -> None:
        now = time.monotonic()
        speed = (self.progress.tokens - self.log_tokens) / max(now - self.log_mark, 1e-9)
        self.log_mark, self.log_tokens = now, self.progress.tokens
        self.log.write(
            "step",
            step=self.progress.step,
            phase=self.phase.name,
            loss=report.loss,
            source_losses=report.source_losses,
            **({"auxiliary_losses": report.auxiliary_losses} if report.auxiliary_losses else {}),
            learning_rate=rate,
            grad_norm=report.grad_norm,
            tokens=self.progress.tokens,
            tokens_per_second=speed,
            elapsed=self.progress.elapsed,
        )

    def _leave_phase(self, reason: str) -> None:
        phase = self.phase
        self.log.write(
            "phase",
            action="end",
            step=self.progress.step,
            phase=phase.name,
            reason=reason,
            unmet=unmet(self.progress, phase),
            metrics=self.metrics,
            steps=self.progress.step_in_phase,
            elapsed=self.progress.phase_elapsed,
        )
        self._update(phase=self.progress.phase + 1, step_in_phase=0, phase_elapsed=0.0)
        self.carry = {}
        if not self.finished:
            self._enter_phase(resumed=False)

    def _update(self, **changes: Any) -> None:
        """Change the counters and let the clocks catch up."""
        now = time.monotonic()
        passed, self.mark = now - self.mark, now
        here = self.progress
        clocks = {"elapsed": here.elapsed + passed, "phase_elapsed": here.phase_elapsed + passed}
        self.progress = dataclasses.replace(here, **{**clocks, **changes})


def choose_device(name: str) -> torch.device:
    """The device a config asks for.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees none here", where="device", fix="set device to cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _snapshot_class(model: nn.Module) -> Any:
    """The class whose `from_tensors` rebuilds what `model.loss` carries on."""
    own = getattr(model, "snapshot_class", None)
    if own is not None:
        return own
    from groundthink.model import Snapshot  # type: ignore[attr-defined]  # brings transformers

    return Snapshot
