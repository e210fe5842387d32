"""Keep the last steps of a loop, and write them to a file once one of them fails."""

from __future__ import annotations

import os
import platform
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gradwatch
from gradwatch.explain.recorded_call import RecordedCall, arguments_of
from gradwatch.findings import Finding
from gradwatch.hooks.guard import Guard, observing
from gradwatch.hooks.logger import logger
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport
from gradwatch.ranks.group import current_group
from gradwatch.recover.black_box import BlackBox
from gradwatch.recover.black_box_file import write_atomically
from gradwatch.recover.plain_values import without_paths
from gradwatch.recover.random_state import RandomState, accelerators_of, random_state
from gradwatch.recover.step_record import KeptBatch, KeptCall, StepRecord, digest, modes_of
from gradwatch.recover.training_state import TrainingState, bytes_in, bytes_of_training, training_state

__all__ = ["FlightRecorder"]

MOST_FILES = 4
"""Files that a run writes by itself: a run that fails at every step would else fill the disk."""

MOST_CALLS = 64
"""Calls of models in one step that are kept; of more micro-batches than that, the last ones."""


class FlightRecorder:
    """The last steps of a watched loop. ``watcher.black_box`` is one.

    A forked child writes no file unless it is asked to: that of the parent has its name.

    Args:
        options: as the user gave them.
        models: {name: module}, as watched.
        layers: the table.
        guard: takes the faults.

    Attributes:
        options, guard: as given.
        written: the files that were written so far.
    """

    def __init__(self, options: BlackBox, models: Mapping[str, nn.Module], layers: Layers, guard: Guard) -> None:
        self.options, self.guard, self.written = options, guard, list[Path]()
        self._models, self._layers = dict(models), layers
        self._path = Path(options.path).expanduser().absolute()  # the program may change its directory
        self._process = os.getpid()
        self._records: deque[StepRecord] = deque(maxlen=options.steps)
        self._calls: deque[KeptCall] = deque(maxlen=MOST_CALLS)
        self._batches: deque[KeptBatch] = deque(maxlen=MOST_CALLS)
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._accelerators = accelerators_of(layers.tensors)
        # a failure on an accelerator is known one step later, when the state of the next step was copied, too
        self._states: deque[tuple[int, TrainingState]] = deque(maxlen=2 if self._accelerators else 1)
        self._unchanged_since = self._unchanged_before = 0  # nothing was updated since before this step
        self._next_step = 0
        self._was_finite = True
        self._failed_steps: set[int] = set()

    # for the loop of the user

    def note_batch(self, batch: Any, *extra: Any) -> None:
        """Keep a batch, targets included, by reference; call it before the forward pass.

        ``gradwatch replay --loss`` hands it to your function. Without it that function gets what the model was given.

        Args:
            batch: tensors, in dicts, lists or tuples.
            extra: further arguments of a ``training_step``.
        """
        self.guard.run("black box: batches", self._note_batch, batch, extra)

    def write(self, path: str | Path | None = None) -> Path | None:
        """Write the steps that are kept.

        Args:
            path: the file; None takes that of the black box.

        Returns:
            The file; None where it was not written, which is then logged.
        """
        where = self._path if path is None else Path(path)
        return self.guard.run("black box: writing", self._write, where, {"kind": "asked"})

    # for the watched loop

    @observing("black box: calls")
    def note_call(self, call: RecordedCall) -> None:
        """Take a call of a model that begins."""
        if self.options.copy_state and not self._calls:
            self._keep_state(self._next_step)
        identity = None
        if self.options.identify is not None:
            identity = self.options.identify(*arguments_of(call))
        self._calls.append(KeptCall(call, self._random(), identity))

    @observing("black box: steps")
    def note_step(
        self,
        step: int,
        optimizer: Optimizer | None,
        scale: Tensor | None,
        gradients: Sequence[tuple[Tensor, Tensor | None]] | None,
    ) -> None:
        """Take a step whose update is about to be made.

        Args:
            step: its number.
            optimizer: the one that updates; None in a loop without one.
            scale: () a loss scale that its gradients hold.
            gradients: (parameter, its gradient) of a step that has failed, where the update waits for that; else None.
        """
        record = StepRecord(step, list(self._calls), list(self._batches), scale)
        self._records.append(record)
        self._calls.clear()
        self._batches.clear()
        # an update is taken as made until somebody says otherwise: weights are never labelled as older than they are
        self._unchanged_before, self._unchanged_since = self._unchanged_since, step + 1
        self._next_step = step + 1
        self._know(optimizer)
        if gradients is None:
            self._was_finite = True
        elif self._was_finite:  # of a run that stays sick the first failed step counts
            self._was_finite = False
            record.gradients = dict(self._digests(gradients))
            if all(number != step for number, _ in self._states):
                self._keep_state(step)

    @observing("black box: steps")
    def note_left_out(self) -> None:
        """Take in that the latest step made no update: the weights are still those of before it."""
        self._unchanged_since = self._unchanged_before

    @observing("black box: steps")
    def note_report(self, report: StepReport) -> None:
        """Take the figures of a step."""
        for record in self._records:
            if record.step == report.step:
                record.take_report(report)

    @observing("black box: writing")
    def note_finding(self, finding: Finding) -> None:
        """Write the steps at a finding of severity ``error``."""
        if finding.severity == "error":
            known = {record.step for record in self._records}
            step = finding.step if finding.step in known else max(known, default=finding.step)
            self._write_failure({"kind": "finding", "step": step, "finding": finding.as_dict()})

    @observing("black box: writing")
    def note_exception(self, error: BaseException) -> None:
        """Write the steps at an exception that leaves the loop, unless somebody has interrupted the run."""
        if isinstance(error, Exception):
            words = {"type": type(error).__name__, "message": without_paths(str(error))[:2000]}
            step = self._next_step if self._calls or self._batches else self._next_step - 1
            self._write_failure({"kind": "exception", "step": step, "exception": words})

    def release(self) -> None:
        """Let go of the model, and of everything that is kept."""
        self._models.clear()
        self._records.clear()
        self._calls.clear()
        self._batches.clear()
        self._states.clear()

    def _note_batch(self, batch: Any, extra: tuple[Any, ...]) -> None:
        self._batches.append(KeptBatch(batch, self._random(), extra))

    def _random(self) -> RandomState:
        return random_state(self._accelerators)

    def _know(self, optimizer: Optimizer | None) -> None:
        if optimizer is not None and all(known() is not optimizer for known in self._optimizers):
            self._optimizers.append(weakref.ref(optimizer))

    def _living(self) -> list[Optimizer]:
        return [optimizer for known in self._optimizers if (optimizer := known()) is not None]

    def _digests(self, gradients: Sequence[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[str, str]]:
        for parameter, gradient in gradients:
            column = self._layers.column(parameter)
            if column is not None and gradient is not None:
                yield self._layers.names[column], digest(gradient)

    def _keep_state(self, step: int) -> None:
        """Copy weights, buffers and optimizers, which are those of before ``step``, as far as the size allows."""
        optimizers = self._living()
        if bytes_of_training(self._models) > self.options.most_bytes:
            return
        if bytes_of_training(self._models, optimizers) > self.options.most_bytes:
            optimizers = []
        self._states.append((step, training_state(self._models, optimizers)))

    def _write_failure(self, reason: dict[str, Any]) -> None:
        """Write a file for a failed step, unless it has one, or the run has written as many as it may."""
        step = reason["step"]
        if step in self._failed_steps or len(self._failed_steps) >= MOST_FILES or os.getpid() != self._process:
            return
        path = self._path
        if self._failed_steps:
            path = path.with_name(f"{path.stem}.step-{step}{path.suffix}")
        self._failed_steps.add(step)
        self._write(path, reason)

    def _write(self, path: Path, reason: dict[str, Any]) -> Path | None:
        group = current_group()
        if group is not None and group.rank:
            path = path.with_name(f"{path.stem}.rank-{group.rank}{path.suffix}")
        records = [*self._records, *self._under_way()]
        if not records:
            if reason["kind"] == "asked":
                logger.warning(
                    "gradwatch: the black box keeps no step, so there is nothing to write: none was seen yet, or the "
                    "watcher is closed."
                )
            return None
        content = self._content(records, reason)
        if content is None:
            return None
        try:
            write_atomically(path, content)
        except (OSError, RuntimeError) as error:
            logger.warning(
                "gradwatch: the black box could not be written to %s, and training goes on without it: %s", path, error
            )
            return None
        self.written.append(path)
        logger.warning("gradwatch: the last %d steps are in %s. Run: gradwatch replay %s", len(records), path, path)
        return path

    def _under_way(self) -> list[StepRecord]:
        """Return the step whose forward or backward pass has begun, and not come to an update."""
        if not self._calls and not self._batches:
            return []
        return [StepRecord(self._next_step, list(self._calls), list(self._batches))]

    def _content(self, records: Sequence[StepRecord], reason: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the file holds; None, with a line in the log, where it would be too large."""
        target = reason.get("step", records[-1].step)
        before, state = self._state_for(target)
        batches = sum(record.bytes() for record in records)
        size = batches + bytes_in(state.as_plain())
        if size > self.options.most_bytes:
            state = TrainingState(state.weights, state.buffers, ())
            size = batches + bytes_in(state.as_plain())
        if size > self.options.most_bytes:
            logger.warning(
                "gradwatch: the black box was not written: the file would hold %.1f GB, more than most_bytes=%d. "
                "Keep fewer steps, or raise BlackBox(most_bytes=…).",
                size / 1e9,
                self.options.most_bytes,
            )
            return None
        return {
            "reason": reason,
            "steps": [record.as_plain() for record in records],
            "state": state.as_plain(),
            "state_before": before,
            "target": target,
            "models": {name: self._described(model) for name, model in self._models.items()},
            "about": _about(),
        }

    def _state_for(self, step: int) -> tuple[int, TrainingState]:
        """Return (number, the state of before the step of that number): of ``step`` itself, or of a later one."""
        for number, state in self._states:
            if number == step:
                return number, state
        return max(self._unchanged_since, step), training_state(self._models, self._living())

    def _described(self, model: nn.Module) -> dict[str, Any]:
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        return {"type": type(model).__qualname__, "modes": modes_of(model), "frozen": frozen}


def _about() -> dict[str, Any]:
    """Return what a replay depends on: versions, devices and settings of torch; nothing of people or machines."""
    has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "gradwatch": gradwatch.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if has_cuda
        else [],
        "threads": torch.get_num_threads(),
        "settings": settings(),
    }


def settings() -> dict[str, Any]:
    """Return the settings of torch that change the bits of a result."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
    }
