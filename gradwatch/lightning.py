"""The callback for Lightning: it translates the hooks of a ``Trainer`` into the verbs of a watched loop.

It serves ``lightning.pytorch`` and ``pytorch_lightning``. Its only arithmetic undoes what Lightning did to the loss.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.clip import Policy, policy_of
from gradwatch.findings import Finding, Thresholds
from gradwatch.measure import layers as layer_table
from gradwatch.sinks import Sink
from gradwatch.sinks.loggers import Loggers, is_a
from gradwatch.watcher import WatchedLoop, Watcher
from gradwatch.watcher.options import OnNonFinite, Options

__all__ = ["GradWatch"]


def _callback_bases() -> tuple[type, ...]:
    """Return ``Callback`` of every Lightning that is installed: each Trainer and CLI accepts only its own."""
    bases: list[type] = []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            bases.append(importlib.import_module(name).Callback)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    if not bases:
        raise ModuleNotFoundError(
            "gradwatch.lightning needs Lightning, which is not installed. Run: pip install 'gradwatch[lightning]'"
        )
    return tuple(dict.fromkeys(bases))


class GradWatch(*_callback_bases()):  # type: ignore[misc]
    """A callback that watches every optimizer step of a ``Trainer``.

    Figures are those of ``on_before_optimizer_step``: fully accumulated and unscaled, before clipping. The loss is the
    one that ``training_step`` returned, averaged over accumulated batches. The totals also go through ``self.log`` as
    ``grad_norm_total`` and ``grad_norm_clipped_total``, so that other loggers and callbacks see them.

    Args:
        log_dir: where TensorBoard files go. None writes through the Trainer's own TensorBoard logger, and nothing where
            it has none.
        clip: as in ``gradwatch.watch``. Together with the Trainer's ``gradient_clip_val`` it is an error.
        on_nonfinite: ``"report"``, ``"skip"`` or ``"raise"``.
        find_loss: take the loss from the Trainer; False leaves it to ``watcher.observe_loss``.
        log_every_n_steps: None follows the Trainer.
        include: names or globs of parameters to watch, or ``callable(name, parameter)``.
        exclude: those to leave out.
        thresholds: what counts as sick.
        trace_nonfinite: as in ``gradwatch.watch``.
        layer_scalars: names of per-layer TensorBoard tags to write besides the packed rows; True all eight, False none.
        histograms: also write histograms.
        history: how many steps ``watcher.history`` holds.
        sinks: further sinks.
        on_finding: called with each finding when it is raised.

    Attributes:
        watcher: the ``Watcher`` of the latest fit, None before the first.

    Examples:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[GradWatch(clip="auto")], max_steps=10, accelerator="cpu")
    """

    def __init__(
        self,
        log_dir: str | Path | None = None,
        clip: float | str | Policy | None = None,
        on_nonfinite: OnNonFinite = "report",
        find_loss: bool = True,
        log_every_n_steps: int | None = None,
        include: str | Sequence[str] | Callable[[str, Tensor], bool] | None = None,
        exclude: str | Sequence[str] | Callable[[str, Tensor], bool] | None = None,
        thresholds: Thresholds | None = None,
        trace_nonfinite: bool = False,
        layer_scalars: bool | Sequence[str] = False,
        histograms: bool = False,
        history: int = 512,
        sinks: Sequence[Sink] = (),
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        super().__init__()
        policy_of(clip)  # a bad value is refused where it is written, not when the fit begins
        self.watcher: Watcher | None = None
        self._loop: WatchedLoop | None = None
        self._find_loss = find_loss
        self._log_dir, self._sinks, self._layer_scalars = log_dir, sinks, layer_scalars
        self._clip, self._log_every_n_steps = clip, log_every_n_steps
        self._include, self._exclude, self._trace_nonfinite = include, exclude, trace_nonfinite
        self._options: Options = {
            "clip": clip,
            "on_nonfinite": on_nonfinite,
            "thresholds": thresholds,
            "layer_scalars": layer_scalars,
            "histograms": histograms,
            "history": history,
            "on_finding": on_finding,
        }
        self._restored: dict[str, Any] | None = None
        self._writes_totals = False

    @property
    def findings(self) -> list[Finding]:
        """Findings of the latest fit."""
        return [] if self.watcher is None else self.watcher.findings

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self._clip is not None and trainer.gradient_clip_val:
            raise ValueError(
                f"GradWatch(clip={self._clip!r}) and Trainer(gradient_clip_val={trainer.gradient_clip_val!r}) would "
                "both clip. Set one of them: remove gradient_clip_val to let gradwatch clip."
            )
        self._close()
        steps = trainer.log_every_n_steps if self._log_every_n_steps is None else self._log_every_n_steps
        self._loop = WatchedLoop(
            layer_table.of_model(pl_module, self._include, self._exclude),
            [*self._own_sinks(trainer), *self._sinks],
            {**self._options, "log_every_n_steps": max(1, steps), "find_loss": False},  # a Trainer hands it over
            models={"": pl_module},
            optimizers=trainer.optimizers,
            scaler=_scaler_of(trainer),
            trace_nonfinite=self._trace_nonfinite,
            sees_gradients=False,
        )
        self.watcher = Watcher(self._loop)
        if self._restored is not None:
            self.watcher.load_state_dict(self._restored)
            self._restored = None

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if self._loop is None:
            return
        self._loop.follow_loss(loss)
        if not self._find_loss:
            return
        loss = loss.detach()
        if (scaler := _scaler_of(trainer)) is not None:
            loss = loss / scaler.scale(torch.ones((), device=loss.device))
        if pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches
        self._loop.note_found_losses([loss])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        if self._loop is None:
            return
        optimizer = getattr(optimizer, "optimizer", optimizer)
        # LBFGS evaluates its closure several times an update; with a scaler, which refuses it, an update that is still
        # under way is one that the scaler left out
        again = _scaler_of(trainer) is None and bool(self._loop.is_updating(optimizer))
        self._loop.before_update(optimizer, again=again, scale=_scale_still_held(trainer, optimizer))
        if (totals := self._loop.totals(optimizer)) is not None:
            names = ("grad_norm_total", "grad_norm_clipped_total")
            values = {name: total.float() for name, total in zip(names, totals, strict=True)}
            pl_module.log_dict(values, logger=bool(trainer.loggers) and not self._writes_totals)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._close()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.watcher is None else self.watcher.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None

    def _close(self) -> None:
        if self.watcher is not None:
            self.watcher.close()

    def _own_sinks(self, trainer: Any) -> list[Sink]:
        """Return a sink of TensorBoard files, and one of findings for every logger whose files these are not."""
        shared = self._shared_loggers(trainer)
        others = [logger for logger in trainer.loggers if logger not in shared[:1]]
        self._writes_totals = bool(shared)  # else self.log would write the same tags once more
        if not trainer.is_global_zero:
            return []
        where = [self._log_dir] if self._log_dir is not None else [logger.experiment for logger in shared[:1]]
        files = [_file_sink(each, self._layer_scalars) for each in where]
        return [*files, *([Loggers(others, totals=self._writes_totals)] if others else [])]

    def _shared_loggers(self, trainer: Any) -> list[Any]:
        """Return the loggers into whose TensorBoard files gradwatch may write: none if it has a ``log_dir``."""
        if self._log_dir is not None:
            return []
        return [logger for logger in trainer.loggers if is_a(logger, "TensorBoardLogger")]


def _file_sink(where: Any, layer_scalars: bool | Sequence[str]) -> Sink:
    from gradwatch.sinks.tensorboard import TensorBoard  # loads TensorBoard, for those who use it

    return TensorBoard(where, layer_scalars)


def _scaler_of(trainer: Any) -> GradScaler | None:
    return getattr(trainer.precision_plugin, "scaler", None)


def _scale_still_held(trainer: Any, optimizer: Optimizer) -> Tensor | None:
    """Return the loss scale of a fused optimizer: it unscales in its own step, and Lightning leaves that to it."""
    scaler = _scaler_of(trainer)
    if scaler is None or not _torch.unscales_itself(optimizer):
        return None
    return scaler.scale(torch.ones((), device=optimizer.param_groups[0]["params"][0].device))
