"""The callback for Hugging Face: it translates the events of a ``Trainer`` into the verbs of a watched loop.

It serves the Trainers that inherit from ``transformers.Trainer``, TRL's among them.
"""

from __future__ import annotations

import base64
import io
import os
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.weak import WeakIdKeyDictionary

from gradwatch.clip import Policy
from gradwatch.findings import Finding, Thresholds
from gradwatch.measure.layers import Selection
from gradwatch.recover.black_box import BlackBox
from gradwatch.recover.rewind import Rewind, with_state
from gradwatch.sinks import Sink
from gradwatch.sinks.mlflow import Mlflow
from gradwatch.sinks.wandb import Wandb
from gradwatch.watcher import WatchedLoop, Watcher
from gradwatch.watcher.attach import loop_of_model
from gradwatch.watcher.options import DEFAULTS, OnNonFinite, Options, refuse_bad_options

try:
    from transformers.trainer_callback import ExportableState, TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "gradwatch.huggingface needs transformers, which is not installed. Run: pip install 'gradwatch[huggingface]'"
    ) from error

__all__ = ["GradWatch"]

_given = WeakIdKeyDictionary()
"""TrainingArguments → the callback that their Trainer was given: a Trainer that resumes may put a copy in its place."""

_begun = WeakIdKeyDictionary()
"""TrainerState → a weak reference to the loop that was begun with it; each training of a Trainer has a state."""


class GradWatch(TrainerCallback, ExportableState):
    """A callback that watches every optimizer step of a ``Trainer``.

    Figures are those of the accumulated gradient, unscaled, before clipping. The loss is the one that the Trainer logs:
    the mean over all items of an update. The totals are also added to the Trainer's log, as ``grad_norm_total`` and
    ``grad_norm_clipped_total``. Runs of Weights & Biases and MLflow that it reports to get rows and findings. Its
    checkpoints hold what the callback remembers.

    Args:
        log_dir: where TensorBoard files go. None writes to the folder ``gradwatch`` in the Trainer's logging directory
            if the Trainer reports to TensorBoard, and nothing otherwise.
        clip: as in ``gradwatch.watch``. It needs ``TrainingArguments(max_grad_norm=0)``: else both would clip.
        on_nonfinite: ``"report"``, ``"skip"`` or ``"raise"``.
        find_loss: take the loss from the Trainer; False leaves it to ``watcher.observe_loss``.
        recover: ``gradwatch.Rewind()`` lets the training save itself; the Trainer's scheduler goes back with it.
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
        watcher: the ``Watcher`` of the latest training, None before the first.

    Examples:
        >>> from transformers import Trainer, TrainingArguments
        >>> arguments = TrainingArguments("out", max_grad_norm=0, report_to="none", use_cpu=True)
        >>> trainer = Trainer(torch.nn.Linear(4, 1), arguments, callbacks=[GradWatch(clip="auto")])
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
        include: Selection | None = None,
        exclude: Selection | None = None,
        thresholds: Thresholds | None = None,
        trace_nonfinite: bool = False,
        layer_scalars: bool | Sequence[str] = False,
        histograms: bool = False,
        history: int = 512,
        sinks: Sequence[Sink] = (),
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        self.watcher: Watcher | None = None
        self._loop: WatchedLoop | None = None
        self._log_dir, self._clip, self._log_every_n_steps = log_dir, clip, log_every_n_steps
        self._include, self._exclude, self._trace_nonfinite = include, exclude, trace_nonfinite
        self._sinks = sinks
        self._options: Options = {
            "clip": clip,
            "on_nonfinite": on_nonfinite,
            "recover": recover,
            "find_loss": find_loss,
            "thresholds": thresholds,
            "layer_scalars": layer_scalars,
            "histograms": histograms,
            "history": history,
            "black_box": black_box,
            "on_finding": on_finding,
        }
        steps = DEFAULTS["log_every_n_steps"] if log_every_n_steps is None else log_every_n_steps
        # a bad value is refused where it is written, not when the training begins
        refuse_bad_options({**DEFAULTS, **self._options, "log_every_n_steps": steps})
        self._is_copy = False

    @property
    def findings(self) -> list[Finding]:
        """Findings of the latest training."""
        return [] if self.watcher is None else self.watcher.findings

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _given[args] = self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_copy:
            self._become_the_one_given(args)
        if self._clip is not None and args.max_grad_norm:
            raise ValueError(
                f"GradWatch(clip={self._clip!r}) and TrainingArguments(max_grad_norm={args.max_grad_norm!r}) would "
                "both clip. Set one of them: max_grad_norm=0 lets gradwatch clip; if it is left out, it is 1.0."
            )
        self._refuse_a_second(state)
        self._close()
        options: Options = {
            **self._options,
            "recover": with_state(self._options["recover"], [kwargs.get("lr_scheduler")]),
            "log_every_n_steps": self._log_every_n_steps or _logging_steps(args, state),
        }
        self._loop = loop_of_model(
            kwargs["model"],
            kwargs["optimizer"],
            log_dir=_logging_directory(args) if self._log_dir is None else self._log_dir,
            include=self._include,
            exclude=self._exclude,
            trace_nonfinite=self._trace_nonfinite,
            sinks=[*_sinks_beside(args, self._sinks), *self._sinks],
            adds_losses=True,
            **options,
        )
        self.watcher = Watcher(self._loop)
        _begun[state] = weakref.ref(self._loop)
        name = type(self).__name__
        if state.global_step:
            saved = self._loop.guard.run("resuming", _unpacked, state.stateful_callbacks.get(name))
            if saved is not None:
                self._loop.resume(saved)
        state.stateful_callbacks[name] = self.state()  # a Trainer that saves expects an entry, also of a checkpoint

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self._loop is not None and logs is not None and "loss" in logs:  # evaluations have none
            self._loop.guard.run("Trainer's log", _add_totals, self._loop, [logs, *state.log_history[-1:]])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint of the Trainer keeps, for JSON."""
        packed = None if self._loop is None else self._loop.guard.run("saving the state", _packed, self._loop)
        return {"args": {}, "attributes": {"_is_copy": True}, "watcher": packed}

    def _become_the_one_given(self, args: Any) -> None:
        """Share everything with the callback that the Trainer was given.

        Under ``restore_callback_states_from_checkpoint`` a Trainer that resumes replaces it by a copy, which has none
        of its keywords. The user still holds the other.

        Raises:
            ValueError: if the Trainer was not given it when it was made.
        """
        given = _given.get(args)
        if given is None:
            raise ValueError(
                "TrainingArguments(restore_callback_states_from_checkpoint=True) has replaced GradWatch by a copy "
                "without its keywords. Hand it over by Trainer(callbacks=[…]) rather than by add_callback."
            )
        self.__dict__ = given.__dict__

    def _refuse_a_second(self, state: Any) -> None:
        """Refuse to watch a training that another GradWatch watches, and would clip in vain.

        The other one may share everything with this one: a Trainer that resumes puts a copy in the place of the first
        of two, and the copy becomes the second.

        Raises:
            ValueError: saying what to do; the other one is closed then.
        """
        other = _begun[state]() if state in _begun else None
        if other is None or other.is_closed:
            return
        other.close()
        raise ValueError(
            "This Trainer has more than one GradWatch, but one alone can watch a training. Keep one of them, and give "
            "it further sinks instead: GradWatch(sinks=[…])."
        )

    def _close(self) -> None:
        if self.watcher is not None:
            self.watcher.close()


def _add_totals(loop: WatchedLoop, logs: Sequence[dict[str, Any]]) -> None:
    """Add the total norms of the latest step to each of ``logs``."""
    history = loop.history()
    for name in ("grad_norm_total", "grad_norm_clipped_total") if len(history) else ():
        for log in logs:
            log[name] = float(history[name][-1])


def _packed(loop: WatchedLoop) -> str:
    """Return the state of a watcher as text, which is what a Trainer's checkpoint holds of callbacks."""
    buffer = io.BytesIO()
    torch.save(loop.state_as_plain(), buffer)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def _unpacked(saved: Any) -> dict[str, Any] | None:
    """Return the watcher's state in what a checkpoint holds of the callback, None where it holds none."""
    saved = saved[-1] if isinstance(saved, list) else saved  # of several callbacks of one name
    packed = saved.get("watcher") if saved else None
    if packed is None:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(zlib.decompress(base64.b64decode(packed))), weights_only=True)
    return state


def _logging_directory(args: Any) -> Path | None:
    """Return a folder in the directory that the Trainer logs to; None where it does not report to TensorBoard.

    It is no file of the Trainer's own: two live event files in one directory freeze TensorBoard.
    """
    if "tensorboard" not in args.report_to:
        return None
    given = getattr(args, "logging_dir", None) or os.environ.get("TENSORBOARD_LOGGING_DIR")  # the latter since 5.0
    return Path(given or Path(args.output_dir) / "runs").expanduser() / "gradwatch"


def _sinks_beside(args: Any, given: Sequence[Sink]) -> Iterator[Sink]:
    """Yield a sink for each run of W&B or MLflow that the Trainer reports to, unless the user gave one.

    A callback cannot add to what the Trainer's loggers get, for they come before it.
    """
    for name, kind in (("wandb", Wandb), ("mlflow", Mlflow)):
        if name in args.report_to and not any(isinstance(each, kind) for each in given):
            yield kind()


def _logging_steps(args: Any, state: Any) -> int:
    """Return every how many steps the Trainer logs, and 50 where it counts no steps."""
    return max(1, int(state.logging_steps)) if args.logging_strategy == "steps" else 50
