"""The callback for Lightning: it translates the hooks of a ``Trainer`` into the verbs of a watched loop.

It serves ``lightning.pytorch`` and ``pytorch_lightning``. Its only arithmetic undoes what Lightning did to the loss.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import tempfile
import uuid
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.clip import Policy
from gradwatch.findings import Finding, Thresholds
from gradwatch.measure import layers as layer_table
from gradwatch.recover.black_box import BlackBox
from gradwatch.recover.rewind import Rewind, with_state
from gradwatch.sinks import Sink
from gradwatch.sinks.loggers import Loggers, is_a
from gradwatch.watcher import WatchedLoop, Watcher
from gradwatch.watcher.options import DEFAULTS, OnNonFinite, Options, refuse_bad_options

__all__ = ["GradWatch"]

_IN_CHECKPOINT = "gradwatch"
"""The key of a checkpoint with a list of states, one for each GradWatch of the Trainer."""


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
        recover: ``gradwatch.Rewind()`` lets the fit save itself; the Trainer's schedulers go back with it.
        black_box: a path, or ``gradwatch.BlackBox(path, …)``: keep the last steps, and write them to that file once one
            fails, so that ``gradwatch replay`` can run it again.
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
        clip: float | Literal["auto"] | Policy | None = None,
        on_nonfinite: OnNonFinite = "report",
        find_loss: bool = True,
        recover: Rewind | None = None,
        black_box: BlackBox | str | Path | None = None,
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
        self.watcher: Watcher | None = None
        self._loop: WatchedLoop | None = None
        self._find_loss = find_loss
        self._log_dir, self._sinks, self._layer_scalars = log_dir, sinks, layer_scalars
        self._clip, self._log_every_n_steps = clip, log_every_n_steps
        self._include, self._exclude, self._trace_nonfinite = include, exclude, trace_nonfinite
        self._options: Options = {
            "clip": clip,
            "on_nonfinite": on_nonfinite,
            "recover": recover,
            "thresholds": thresholds,
            "layer_scalars": layer_scalars,
            "histograms": histograms,
            "history": history,
            "black_box": black_box,
            "on_finding": on_finding,
        }
        steps = DEFAULTS["log_every_n_steps"] if log_every_n_steps is None else log_every_n_steps
        # a bad value is refused where it is written, not when the fit begins
        refuse_bad_options({**DEFAULTS, **self._options, "log_every_n_steps": steps, "find_loss": find_loss})
        self._restored: dict[str, Any] = {}
        self._mailbox = _Mailbox()
        self._returned: list[dict[str, Any]] | None = None
        weakref.finalize(self, self._mailbox.remove)
        self._writes_totals = False
        self._totals: Sequence[Tensor] | None = None
        self._logged: list[str] | None = None

    @property
    def findings(self) -> list[Finding]:
        """Findings of the latest fit, also where its strategy (``ddp_spawn``) ran it in processes of its own."""
        sent = self._mailbox.take()
        self._returned = self._returned if sent is None else sent
        if self._returned is not None:
            return [Finding.from_dict(saved) for saved in self._returned]
        return [] if self.watcher is None else self.watcher.findings

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":  # a checkpoint that is loaded from now on is the one that this fit resumes from
            self._close()
            self._loop, self._restored = None, {}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._refuse_others_that_act(trainer)
        self._close()
        steps = trainer.log_every_n_steps if self._log_every_n_steps is None else self._log_every_n_steps
        steps = steps or DEFAULTS["log_every_n_steps"]  # Trainer(barebones=True) has 0
        self._loop = WatchedLoop(
            layer_table.of_model(pl_module, self._include, self._exclude),
            [*self._own_sinks(trainer), *self._sinks],
            {
                **self._options,
                "recover": with_state(self._options["recover"], _schedulers_of(trainer)),
                "log_every_n_steps": steps,
                "find_loss": False,  # a Trainer hands it over
            },
            models={"": pl_module},
            optimizers=None,  # callbacks may exchange those of the Trainer during a fit
            scaler=_scaler_of(trainer),
            trace_nonfinite=self._trace_nonfinite,
            sees_gradients=False,
        )
        self._loop.steps.expect(trainer.optimizers)
        self.watcher, self._returned = Watcher(self._loop), None
        self._totals = self._logged = None
        if self._restored:
            self._loop.resume(self._restored)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._loop is not None and self._loop.recorder is not None:
            self._loop.recorder.note_batch(batch, batch_idx)

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
        totals = self._loop.totals(optimizer)
        if totals is not None and not trainer.barebones:
            self._totals = totals

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # not in on_before_optimizer_step, where the module may log the same names with other options, after us
        if self._loop is not None and self._totals is not None:
            self._loop.guard.run("Lightning's log", self._log_totals, trainer, pl_module, self._totals)
            self._totals = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._loop is not None:
            self._loop.note_exception(exception)
        self._end(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._end(trainer)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has, which may be for another process: everything but a fit that is over or under way."""
        return {**self.__dict__, "watcher": None, "_loop": None, "_restored": {}, "_totals": None}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # ``state_dict`` would refuse a second GradWatch, and would make Lightning ask for this one wherever the
        # checkpoint is loaded
        state = self._restored if self._loop is None else self._loop.state_as_plain()
        checkpoint.setdefault(_IN_CHECKPOINT, []).append(state or {})

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(_IN_CHECKPOINT)
        states = dict(zip(_all_in(trainer), saved if isinstance(saved, list) else [], strict=False))
        state = states.get(self, {})
        if self._loop is None:
            self._restored = state
        elif state and self._loop.steps.count == 0:  # FSDP and ModelParallel load after the fit has started
            self._loop.resume(state)
        # later it is a tuner's, which puts the weights back in the middle of a fit

    def _log_totals(self, trainer: Any, pl_module: Any, totals: Sequence[Tensor]) -> None:
        """Give Lightning the total norms before and after clipping; of several GradWatch only the last may clip."""
        watches = _all_in(trainer)
        if self is not watches[-1]:
            return
        names = ("grad_norm_total", "grad_norm_clipped_total")
        if self._logged is None:  # somebody else's metrics of these names stay theirs
            self._logged = [name for name in names if name not in trainer.callback_metrics]
        values = {name: total.float() for name, total in zip(names, totals, strict=True) if name in self._logged}
        are_written = any(watch._writes_totals for watch in watches)
        pl_module.log_dict(values, logger=bool(trainer.loggers) and not are_written)

    def _end(self, trainer: Any) -> None:
        self._close()
        if self._loop is not None and trainer.is_global_zero:
            self._loop.guard.run("returning findings", self._mailbox.send, self._loop.findings() or [])

    def _close(self) -> None:
        if self.watcher is not None:
            self.watcher.close()

    def _refuse_others_that_act(self, trainer: Any) -> None:
        """Refuse whatever would clip, skip or raise beside this callback.

        Raises:
            ValueError: naming both, and what to do.
        """
        if self._clip is not None and trainer.gradient_clip_val:
            raise ValueError(
                f"GradWatch(clip={self._clip!r}) and Trainer(gradient_clip_val={trainer.gradient_clip_val!r}) would "
                "both clip. Set one of them: remove gradient_clip_val to let gradwatch clip."
            )
        if self._acts() and self is not _all_in(trainer)[-1]:
            raise ValueError(
                f"GradWatch(clip={self._clip!r}, on_nonfinite={self._options['on_nonfinite']!r}) would change the "
                "gradients before another GradWatch measures them. Give clip, on_nonfinite and recover to the last one "
                "in the Trainer's list of callbacks."
            )

    def _acts(self) -> bool:
        is_recovering = self._options["recover"] is not None
        return self._clip is not None or is_recovering or self._options["on_nonfinite"] != "report"

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
        """Return the loggers into whose TensorBoard files gradwatch may write.

        There are none if it has a ``log_dir``, or where an earlier GradWatch writes: a file holds one table of layers.
        """
        if self._log_dir is not None or self is not _all_in(trainer)[0]:
            return []
        return [logger for logger in trainer.loggers if is_a(logger, "TensorBoardLogger")]


class _Mailbox:
    """A file through which findings reach the process that called ``fit``, where a strategy starts others for the fit.

    Lightning itself hands nothing of a callback back (``ddp_spawn``, ``ddp_notebook``).
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._path = Path(tempfile.gettempdir(), f"gradwatch-{uuid.uuid4().hex}.json")

    def send(self, findings: Sequence[Finding]) -> None:
        """Write ``findings``, in a child of the process that reads them; do nothing elsewhere."""
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid == self._process:
            self._path.write_text(json.dumps([finding.as_dict() for finding in findings]), encoding="utf-8")

    def take(self) -> list[dict[str, Any]] | None:
        """Return what was sent since it was last asked, None where nothing was."""
        if not self._path.exists():
            return None
        sent: list[dict[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))
        self.remove()
        return sent

    def remove(self) -> None:
        """Remove the file, in the process that reads it."""
        if os.getpid() == self._process:
            self._path.unlink(missing_ok=True)


def _all_in(trainer: Any) -> list[GradWatch]:
    """Return every GradWatch of a Trainer, in its order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, GradWatch)]


def _file_sink(where: Any, layer_scalars: bool | Sequence[str]) -> Sink:
    from gradwatch.sinks.tensorboard import TensorBoard  # loads TensorBoard, for those who use it

    return TensorBoard(where, layer_scalars)


def _schedulers_of(trainer: Any) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _scaler_of(trainer: Any) -> GradScaler | None:
    return getattr(trainer.precision_plugin, "scaler", None)


def _scale_still_held(trainer: Any, optimizer: Optimizer) -> Tensor | None:
    """Return the loss scale of a fused optimizer: it unscales in its own step, and Lightning leaves that to it."""
    scaler = _scaler_of(trainer)
    if scaler is None or not _torch.unscales_itself(optimizer):
        return None
    return scaler.scale(torch.ones((), device=optimizer.param_groups[0]["params"][0].device))
