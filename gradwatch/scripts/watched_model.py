"""Keep what belongs to one model that a program trains: its name, its optimizers, its watched loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.hooks.logger import logger
from gradwatch.hooks.module_calls import listen
from gradwatch.scripts.models import model_name, roots_of, tensor_names
from gradwatch.scripts.summary import SummarySink
from gradwatch.watcher import WatchedLoop, loop_of, loop_of_model, loop_of_tensors

if TYPE_CHECKING:
    from gradwatch.sinks.tensorboard import TensorBoard

__all__ = ["WatchedModel"]


class WatchedModel:
    """The model that one optimizer trains, or several optimizers; or the models that share an optimizer.

    The model is not kept alive before it is watched. Afterwards the watched loop holds it, until it is closed.

    Args:
        parameters: of its first optimizer.
        frame: in which that optimizer was made, for names.
        taken: names of other models; the new ones are added.

    Attributes:
        name: of the model; the joined names of several.
        optimizers: those that are alive.
        steps_of: attempted updates of each optimizer.
        loop: the watched loop; None before it is watched, and where someone else watches it.
        summary: None before it is watched.
    """

    def __init__(self, parameters: Sequence[Tensor], frame: FrameType, taken: set[str]) -> None:
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.steps_of: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self.loop: WatchedLoop | None = None
        self.summary: SummarySink | None = None
        self._own: weakref.ref[WatchedLoop] | None = None  # that of the program itself
        self._stop: list[Callable[[], None]] = []
        roots, bare = roots_of(parameters)
        self._models = {_free(model_name(root, frame), taken): weakref.ref(root) for root in roots}
        self._bare = {} if roots else {n: weakref.ref(t) for n, t in tensor_names(bare, frame).items()}
        self.name = "+".join(self._models) or _free("tensors", taken)

    def holds(self, parameters: Sequence[Tensor]) -> bool:
        """Tell whether any of ``parameters`` belongs to this model."""
        own = {id(tensor) for tensor in self._tensors()}  # of those alive: the id of a dead one may be in use again
        return any(id(parameter) in own for parameter in parameters)

    def listen(self, begin: Callable[[WatchedModel], object]) -> None:
        """Have ``begin`` called within the first forward pass in training."""

        def enter(args: Any, kwargs: Any) -> None:
            begin(self)  # the loop listens, too, from here on, and hears this very call

        for model in self._living():
            stop = listen(model, enter, lambda token, output: self.stop_listening())
            self._stop += [] if stop is None else [stop]

    def stop_listening(self) -> None:
        """Stop what ``listen`` began. Calling it again does nothing."""
        while self._stop:
            self._stop.pop()()

    def watch(
        self, log_dir: Path | None, clip: float | str | None, *, has_prefix: bool, log_every: int | None = None
    ) -> None:
        """Watch the model, unless the program watches it by itself.

        Args:
            log_dir: for event files; None writes none.
            clip: as in ``gradwatch.watch``.
            has_prefix: whether names of layers begin with that of the model.
            log_every: steps between two rows; None for the default, and more rows at first.
        """
        if (own := loop_of(self._tensors())) is not None:
            self.summary = SummarySink(self.name, whose="the program's own watcher")
            own.add_sink(self.summary)
            self._own = weakref.ref(own)
            return
        files = None if log_dir is None else _event_files(log_dir)
        self.summary = SummarySink(self.name, files)
        try:
            sinks = [*([files] if files else []), self.summary]
            cadence = {"is_dense_at_first": True} if log_every is None else {"log_every_n_steps": log_every}
            self.loop = self._watched_loop(has_prefix, clip=clip, sinks=sinks, **cadence)
        except (TypeError, ValueError) as error:  # a model on the meta device, say
            self.give_up(error)

    def count(self, optimizer: Optimizer) -> None:
        """Count an attempted update of ``optimizer``."""
        self.steps_of[optimizer] = self.steps_of.get(optimizer, 0) + 1
        if self.summary is not None:
            self.summary.steps += 1

    def note_loss(self, was_seen: bool) -> None:
        """Note whether this update came with a loss."""
        if self.summary is not None:
            self.summary.saw_loss |= was_seen

    def give_up(self, error: Exception) -> None:
        """Stop watching a model that cannot be watched, and say why."""
        logger.warning("gradwatch: %s is not watched: %s", self.name, error)
        if self.summary is not None:
            self.summary.whose, self.summary.files = "nobody", None
        self.close()

    def close(self) -> None:
        """Stop watching, and let go of the model."""
        self.stop_listening()
        own = None if self._own is None else self._own()
        if own is not None and not own.is_closed:
            own.flush()  # the program closes it, after the summary perhaps
        if self.loop is not None:
            self.loop.close()
            if self.summary is not None:
                self.summary.notes = self.loop.notes() or []
            self.loop = None

    def _watched_loop(self, has_prefix: bool, **options: Any) -> WatchedLoop:
        # nobody is to change the script, so nothing is advised; the summary says what was missing
        if self._bare:
            living = {name: tensor for name, known in self._bare.items() if (tensor := known()) is not None}
            return loop_of_tensors(living, advises=False, **options)
        models = {name: model for name, known in self._models.items() if (model := known()) is not None}
        only = next(iter(models.values())) if len(models) == 1 and not has_prefix else None
        return loop_of_model(models if only is None else only, (), advises=False, **options)

    def _living(self) -> Iterator[nn.Module]:
        return (model for known in self._models.values() if (model := known()) is not None)

    def _tensors(self) -> list[Tensor]:
        bare = [tensor for known in self._bare.values() if (tensor := known()) is not None]
        return [parameter for model in self._living() for parameter in model.parameters()] + bare


def _event_files(log_dir: Path) -> TensorBoard:
    from gradwatch.sinks.tensorboard import TensorBoard  # a fifth of a second, which only the first rank needs

    return TensorBoard(log_dir)


def _free(name: str, taken: set[str]) -> str:
    """Return ``name``, numbered if it is taken, and add it to ``taken``."""
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    free = name if name not in taken else next(each for each in numbered if each not in taken)
    taken.add(free)
    return free
