"""Hold the training program of one trial, and execute in it the lines of its treatments, as a user would paste them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch import clip
from gradwatch.findings import Finding
from gradwatch.prescription.treatments import Treatment
from gradwatch.remedies import PartlyAppliedWarning, Scaling
from gradwatch.remedies.remedy import Place
from gradwatch.remedies.rows import Batch
from gradwatch.watcher import Watcher, watch

__all__ = ["LossFunction", "TrialProgram"]

LossFunction = Callable[[Any, Any], Tensor]


class TrialProgram:
    """The training program of one trial.

    Its global names are those of ``gradwatch.remedies.PRELUDE``. Pasted lines read and set them, and the trial trains
    with their values.

    Args:
        model: the trial's own.
        batches: to train on.
        loss_fn: (outputs, targets) → scalar.
        treatments: are executed each at its place, in this order.

    Attributes:
        not_done: what of the treatments could not be done, and why.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Batch], loss_fn: LossFunction, treatments: Sequence[Treatment] = ()
    ) -> None:
        x, y = batches[0]
        self._names: dict[str, Any] = {
            "torch": torch, "nn": nn, "model": model, "batches": list(batches), "loss_fn": loss_fn, "x": x, "y": y,
        }  # fmt: skip
        self._treatments = tuple(treatments)
        self.not_done: list[str] = []
        with self._noting_what_is_not_done():
            self.execute("before the optimizer is made")

    @property
    def model(self) -> nn.Module:
        return self._names["model"]

    @property
    def batches(self) -> list[Batch]:
        """The batches to train on, as treatments have left them."""
        return self._names["batches"]

    @property
    def loss_fn(self) -> LossFunction:
        return self._names["loss_fn"]

    @property
    def scaling(self) -> Scaling:
        """The scaling of inputs and outputs that are not among ``batches``."""
        return self._names.get("scaling") or Scaling()

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The scaler of the loss, if a treatment has made one."""
        return self._names.get("scaler")

    def watch(self, optimizer: Optimizer, log_dir: Path | None, on_finding: Callable[[Finding], None]) -> Watcher:
        """Execute what belongs after the optimizer is made, and return the watcher, which a treatment may have made.

        ``gradwatch.watch`` of the pasted lines also writes to ``log_dir`` and calls ``on_finding``.
        """
        watch_trial = functools.partial(watch, log_dir=log_dir, on_finding=on_finding)
        self._names["gradwatch"] = SimpleNamespace(watch=watch_trial, clip=clip)
        self.execute("after the optimizer is made", optimizer=optimizer)
        return self._names.get("watcher") or watch_trial(self.model, optimizer, scaler=self.scaler)

    def execute(self, place: Place, **names: Any) -> None:
        """Execute the treatments of this place, with further ``names`` set."""
        self._names |= names
        for treatment in self._treatments:
            if treatment.change.place == place:
                exec(_compiled(treatment.remedy, treatment.change.code), self._names)

    def treated_loss(self, loss: Tensor, x: Any) -> Tensor:
        """Return the loss of the batch with inputs ``x``, as treatments before ``loss.backward()`` have changed it."""
        self.execute("before loss.backward()", loss=loss, x=x)
        return self._names["loss"]

    @contextmanager
    def _noting_what_is_not_done(self) -> Iterator[None]:
        """Take the warnings of remedies that are applied in part, and show any others as they are."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PartlyAppliedWarning)
            yield
        for warning in caught:
            if issubclass(warning.category, PartlyAppliedWarning):
                self.not_done.append(str(warning.message))
            else:
                warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


@functools.cache
def _compiled(name: str, code: str) -> CodeType:
    return compile(code, f"<{name}>", "exec")
