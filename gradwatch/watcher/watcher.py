"""The public face of a watched loop."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from gradwatch.findings import Finding
from gradwatch.recover.flight_recorder import FlightRecorder
from gradwatch.sinks.memory import History
from gradwatch.watcher.state import WatcherState
from gradwatch.watcher.watched_loop import WatchedLoop

__all__ = ["Watcher"]


class Watcher:
    """Every update of a model, watched; made by ``watch`` and ``watch_tensors``.

    It is a context manager. Hooks come off, and everything is flushed, at ``close``.
    """

    def __init__(self, loop: WatchedLoop) -> None:
        self._loop = loop

    @property
    def findings(self) -> list[Finding]:
        """Snapshots of all findings so far, by onset; waits for figures still on the device."""
        return self._loop.findings() or []

    @property
    def history(self) -> History:
        """The last steps, see ``gradwatch.sinks.memory.History``; waits for figures still on the device."""
        return self._loop.history()

    @property
    def black_box(self) -> FlightRecorder | None:
        """The last steps, and ``write()``; None without ``black_box=…``."""
        return self._loop.recorder

    def observe_loss(self, loss: Tensor | float) -> None:
        """Take the loss of the coming update, before or after ``backward``; several are averaged.

        Args:
            loss: a number, or a tensor of one entry on any device. Never synced.

        Raises:
            TypeError: where it is neither.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise TypeError(f"observe_loss: expected a tensor of one entry, found shape {tuple(loss.shape)}.")
        elif not isinstance(loss, int | float | np.number):
            raise TypeError(f"observe_loss: expected a number or a tensor of one entry, found {type(loss).__name__}.")
        self._loop.observe_loss(loss)

    def step(self, grads: Mapping[str, Tensor] | None = None, loss: Tensor | float | None = None) -> None:
        """Take in one attempted update of a loop without a ``torch.optim`` optimizer; call it before the update.

        Args:
            grads: ``{name: gradient}``, each of its tensor's shape; clipped in place where ``clip`` is set. None takes
                every tensor's ``.grad``.
            loss: as for ``observe_loss``.

        Raises:
            KeyError: for a name that is not watched.
            ValueError: for a gradient of another shape.
            NonFiniteError: under ``on_nonfinite="raise"``.
        """
        if loss is not None:
            self.observe_loss(loss)
        if grads is None:
            tensors = enumerate(self._loop.layers.tensors)
            gradients = {column: tensor.grad for column, tensor in tensors if tensor.grad is not None}
        else:
            gradients = {self._column_of(name, gradient): gradient for name, gradient in grads.items()}
        self._loop.take_in(gradients)

    def flush(self) -> None:
        """Wait for what is still on the device, and for the sinks: what they were given survives a kill of the process.

        A sink that takes longer than two seconds is waited for once, and named in a warning. Where the power may fail,
        give ``TensorBoard``, ``JsonLines`` or ``Csv`` ``fsync=True``: ``sinks=[TensorBoard(log_dir, fsync=True)]``.
        """
        self._loop.flush()

    def close(self) -> None:
        """Take every hook off, flush and close the sinks, and let the model go; twice is fine.

        ``findings``, ``history`` and ``state_dict`` are those of before.
        """
        self._loop.close()
        self._loop.release()

    def state_dict(self) -> dict[str, Any]:
        """Return step numbers, baselines, findings and clip history, as numbers, strings and tensors."""
        return self._loop.state_as_plain() or {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``'s value as if never stopped; call it before the first step.

        Raises:
            ValueError: for a state of another model, of another version or of something else, or once a step was seen.
        """
        self._loop.restore(WatcherState.from_plain(state))

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._loop.say_last_words(error)
            self._loop.note_exception(error)
        self.close()

    def __repr__(self) -> str:
        loop, findings = self._loop, len(self.findings)
        coverage = loop.coverage()
        words = f", {coverage.unmeasured} steps not measured" if coverage.unmeasured else ""
        words += f", {coverage.unjudged_in_words()}" if coverage.unjudged else ""
        return f"Watcher({len(loop.layers)} layers, {loop.steps.count} steps, {findings} findings{words})"

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows: the last steps as a picture, the findings as a table."""
        return self._loop.as_html()

    def _column_of(self, name: str, gradient: Tensor) -> int:
        column = self._loop.layers.column_of_name(name)
        if column is None:
            watched = ", ".join(self._loop.layers.names[:8])
            raise KeyError(f"step(grads=…): {name!r} is not watched; watched are {watched}.")
        shape = self._loop.layers.tensors[column].shape
        if gradient.shape != shape:
            raise ValueError(
                f"step(grads=…): the gradient of {name!r} has shape {tuple(gradient.shape)}, expected {tuple(shape)}."
            )
        return column
