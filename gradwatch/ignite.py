"""The handler for Ignite: it opens a watcher when an ``Engine`` starts to run, and closes it when the run is over.

The loop that Ignite runs is a plain one, so the hooks of ``gradwatch.watch`` see all of it. The loss comes from
``backward()``: ``engine.state.output`` is set after the update, and holds whatever ``output_transform`` makes of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradwatch.clip import Policy
from gradwatch.findings import Finding, Thresholds
from gradwatch.measure.layers import Selection
from gradwatch.recover.black_box import BlackBox
from gradwatch.recover.rewind import Rewind
from gradwatch.sinks import Sink
from gradwatch.watcher import Watcher, watch
from gradwatch.watcher.options import OnNonFinite, Options, refuse_bad_options

try:
    from ignite.engine import Engine, Events
except ModuleNotFoundError as error:
    if error.name not in ("ignite", "ignite.engine"):
        raise
    raise ModuleNotFoundError(
        "gradwatch.ignite needs PyTorch-Ignite, which is not installed. Run: pip install 'gradwatch[ignite]'"
    ) from None

__all__ = ["GradWatch"]


class GradWatch:
    """A handler that watches every update of an Ignite ``Engine``.

    Figures, findings, clipping and skipping are those of ``gradwatch.watch`` around the same loop: update functions of
    your own, those of ``create_supervised_trainer`` (with AMP and accumulation too), several optimizers.

    Each run has a watcher of its own, from ``STARTED`` to ``COMPLETED``, or to the exception that ends the run. A run
    that ``engine.interrupt()`` has stopped goes on with the same one.

    Args:
        log_dir: where TensorBoard files go; None writes nothing.
        clip: as in ``gradwatch.watch``.
        on_nonfinite: ``"report"``, ``"skip"`` or ``"raise"``.
        scaler: the loop's ``torch.amp.GradScaler``; one that scales the loss is found without it.
        find_loss: take the scalar that ``backward()`` is called on as the loss; False leaves it to
            ``watcher.observe_loss``.
        recover: as in ``gradwatch.watch``.
        black_box: a path, or ``gradwatch.BlackBox(path, …)``: keep the last steps, and write them to that file once one
            fails, so that ``gradwatch replay`` can run it again.
        log_every_n_steps: how often rows go to the sinks.
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
        watcher: the ``Watcher`` of the latest run, None before the first.

    Examples:
        >>> from ignite.engine import create_supervised_trainer
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)
        >>> watch = GradWatch(clip="auto").attach(trainer, model, optimizer)
        >>> state = trainer.run([(torch.ones(2, 4), torch.ones(2, 1))], max_epochs=3)
        >>> watch.findings
        []
    """

    def __init__(
        self,
        log_dir: str | Path | None = None,
        clip: float | Literal["auto"] | Policy | None = None,
        on_nonfinite: OnNonFinite = "report",
        scaler: GradScaler | None = None,
        find_loss: bool = True,
        recover: Rewind | None = None,
        black_box: BlackBox | str | Path | None = None,
        log_every_n_steps: int = 50,
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
        self._log_dir, self._scaler, self._sinks = log_dir, scaler, sinks
        self._include, self._exclude, self._trace_nonfinite = include, exclude, trace_nonfinite
        self._options: Options = {
            "clip": clip,
            "on_nonfinite": on_nonfinite,
            "recover": recover,
            "find_loss": find_loss,
            "log_every_n_steps": log_every_n_steps,
            "thresholds": thresholds,
            "layer_scalars": layer_scalars,
            "histograms": histograms,
            "history": history,
            "black_box": black_box,
            "on_finding": on_finding,
        }
        refuse_bad_options(self._options)  # a bad value is refused where it is written, not when the run begins
        self._restored: Mapping[str, Any] | None = None

    @property
    def findings(self) -> list[Finding]:
        """Findings of the latest run."""
        return [] if self.watcher is None else self.watcher.findings

    def attach(
        self,
        trainer_engine: Engine,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
    ) -> GradWatch:
        """Watch the runs of ``trainer_engine`` from now on.

        Args:
            trainer_engine: the engine whose update function trains.
            model: a module, or ``{name: module}`` for several (a GAN).
            optimizer: one, several, or None; then those that own the parameters are found when they step.

        Returns:
            The handler itself.
        """
        trainer_engine.add_event_handler(Events.STARTED, lambda: self._open(model, optimizer))
        trainer_engine.add_event_handler(Events.COMPLETED, lambda: self._close())
        # not by EXCEPTION_RAISED: Ignite raises an exception only where nobody handles that event
        run = trainer_engine.run

        @functools.wraps(run)
        def run_and_close(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            except BaseException as error:
                self._close(error)
                raise
            finally:
                if trainer_engine.last_event_name != Events.INTERRUPT:
                    self._close()

        trainer_engine.run = run_and_close  # type: ignore[method-assign]
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from; for ``ignite.handlers.Checkpoint``."""
        return {} if self.watcher is None else self.watcher.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s value when the next run begins."""
        self._restored = state_dict or None

    def _open(
        self, model: nn.Module | Mapping[str, nn.Module], optimizer: Optimizer | Sequence[Optimizer] | None
    ) -> None:
        self._close()
        self.watcher = watch(
            model,
            optimizer,
            log_dir=self._log_dir,
            scaler=self._scaler,
            include=self._include,
            exclude=self._exclude,
            trace_nonfinite=self._trace_nonfinite,
            sinks=self._sinks,
            **self._options,
        )
        if self._restored is not None:
            self.watcher._loop.resume(self._restored)
            self._restored = None

    def _close(self, error: BaseException | None = None) -> None:
        if self.watcher is not None:
            self.watcher.__exit__(None if error is None else type(error), error, None)
