"""Replay a failed step: does it fail again, where, by which rows of the batch, and under what other conditions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.replay import Replay
from gradwatch.hooks.guard import Guard
from gradwatch.hooks.module_calls import is_compiled
from gradwatch.recover.failed_step import FailedStep, LossFunction, Pass, UnreplayableError, batch_rows, keep_rows
from gradwatch.recover.row_shares import Row, ranked, worst
from gradwatch.recover.step_record import digest
from gradwatch.recover.step_run import Computed, Outcome, Setting, compute, gradients_of, moved, run
from gradwatch.recover.training_state import TrainingState

__all__ = ["StepReplay", "Variant", "replay"]

Verdict = Literal["reproducible", "transient", "not reproduced", "healthy"]

MOST_ROWS = 1024
"""Rows of a batch that are run one by one; of more than that, the first ones."""

SAME = 0.5
"""Share of the recorded total norm from which a finite spike counts as the same one."""


@dataclass(frozen=True)
class Variant:
    """The step under other conditions.

    Attributes:
        name: what was changed.
        happens: whether the step still fails; None where that could not be tried.
        why: why it could not; "" where it could.
    """

    name: str
    happens: bool | None
    why: str = ""


@dataclass(frozen=True)
class StepReplay:
    """The result of running a failed step again.

    Attributes:
        step: its number.
        verdict: ``"reproducible"``: it fails again; ``"transient"``: the very same step is finite now, so a bit flip or
            a race made it fail; ``"not reproduced"``: it is finite, and it was not quite the same step; ``"healthy"``:
            the record shows no failure.
        is_bitwise: whether loss and gradients are those of the record, bit for bit; None where nothing can be compared.
        compared: what was compared.
        recorded, replayed: loss and total norm.
        module: the one that made a NaN or Inf, or the one next to it; "" where that was not seen, or is the model.
        origin: the same as a sentence; "" where that was not seen.
        rows: of the batch, the worst first.
        rows_are: how they were measured.
        variants: the step under other conditions.
        notes: what makes this less than exact.
    """

    step: int
    verdict: Verdict
    is_bitwise: bool | None
    compared: str
    recorded: Mapping[str, float | None]
    replayed: Mapping[str, float | None]
    module: str
    origin: str
    rows: Sequence[Row]
    rows_are: str
    variants: Sequence[Variant]
    notes: Sequence[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def replay(models: Mapping[str, nn.Module], step: FailedStep, loss_fn: LossFunction | None = None) -> StepReplay:
    """Run ``step`` again on ``models``, which are changed.

    Args:
        models: {name: module}, built as the run has built them.
        step: out of the file.
        loss_fn: (model, batch) → scalar loss, as in the loop; None takes the loss from ``training_step`` or from what
            the model returns, or begins with the gradients that arrived at its outputs.

    Raises:
        UnreplayableError: where it is not the same model, or something is missing.
    """
    device = _device_for(step)
    for model in models.values():
        model.to(device)
    eager = {name: _torch.compiled_part_of(model) or model for name, model in models.items()}
    knows_loss = loss_fn is not None or any(hasattr(model, "training_step") for model in models.values())
    passes = [moved(each, device) for each in step.passes(by_call=not knows_loss)]
    if not passes:
        raise UnreplayableError("the file holds no call of a model: it was compiled, or nobody called it.")
    bench = _Bench(models, eager, step, passes, loss_fn)
    outcome = bench.run()
    is_bitwise, compared = bench.compare(outcome)
    is_sick = _is_sick(step, outcome)
    module, words = bench.origin(outcome) if not outcome.is_finite else ("", "")
    rows, rows_are = bench.rows()
    return StepReplay(
        step=step.step,
        verdict=_verdict(step, outcome, is_sick=is_sick, can_tell=bench.can_tell),
        is_bitwise=is_bitwise,
        compared=compared,
        recorded={"loss": step.figures.get("loss"), "grad_norm_total": step.figures.get("grad_norm_total")},
        replayed={"loss": outcome.loss, "grad_norm_total": outcome.total if outcome.has_gradients else None},
        module=module,
        origin=words,
        rows=rows,
        rows_are=rows_are,
        variants=list(bench.variants(rows)),
        notes=[*step.notes, *bench.notes()],
    )


def _device_for(step: FailedStep) -> torch.device:
    device = torch.device(step.device)
    if device.type == "cpu":
        return device
    return device if getattr(torch, device.type).is_available() else torch.device("cpu")


def _was_sick(step: FailedStep) -> bool:
    loss = step.figures.get("loss")
    return bool(step.figures.get("nonfinite")) or (loss is not None and not math.isfinite(loss))


def _is_sick(step: FailedStep, outcome: Outcome) -> bool:
    """Return whether a run shows what the record shows: NaN or Inf, an exception, or a total norm as large."""
    if outcome.error is not None:
        return True
    if _was_sick(step) or not step.figures:
        return not outcome.is_finite
    return outcome.total >= SAME * step.figures.get("grad_norm_total", math.inf)


def _verdict(step: FailedStep, outcome: Outcome, *, is_sick: bool, can_tell: bool) -> Verdict:
    if step.figures and not _was_sick(step):
        return "healthy"
    if is_sick:
        return "reproducible"
    return "transient" if step.is_exact and not step.notes and can_tell and step.figures else "not reproduced"


class _Bench:
    """The models, the step and the loss, for one run after another.

    Args:
        models: as built.
        eager: the same without ``torch.compile``.
        step: the one that failed.
        passes: its passes, on the device of the models.
        loss_fn: the user's.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        eager: Mapping[str, nn.Module],
        step: FailedStep,
        passes: list[Pass],
        loss_fn: LossFunction | None,
    ) -> None:
        self._models, self._eager, self._step, self._passes, self._loss_fn = models, eager, step, passes, loss_fn
        self._last = Outcome(None, 0.0, {}, {}, True)

    @property
    def can_tell(self) -> bool:
        """Return whether a finite run says anything: it does not where the record's own gradients began it."""
        return self._last.loss is not None or self._last.has_gradients

    def run(
        self,
        passes: list[Pass] | None = None,
        models: Mapping[str, nn.Module] | None = None,
        setting: Setting | None = None,
    ) -> Outcome:
        """Run the step, or changed passes of it, from the state of before it."""
        models = self._models if models is None else models
        self._step.prepare_(models)
        outcome = run(
            models, self._step, self._passes if passes is None else passes, self._loss_fn, setting or Setting()
        )
        if passes is None and models is self._models:
            self._last = outcome
        return outcome

    def compare(self, outcome: Outcome) -> tuple[bool | None, str]:
        """Return whether the run is the record bit for bit, and what was compared."""
        same: list[bool] = []
        words: list[str] = []
        recorded = self._step.figures.get("loss")
        if outcome.loss is not None and recorded is not None:
            same.append(_is_same(outcome.loss, recorded))
            words.append("the loss")
        if outcome.has_gradients and not self._step.figures.get("already_clipped"):
            found, names = self._compare_gradients(outcome)
            same += found
            words += [names] if found else []
        return (all(same) if same else None), " and ".join(words)

    def _compare_gradients(self, outcome: Outcome) -> tuple[list[bool], str]:
        """Return for each gradient whether it is that of the record: by all of its bits, or by its norm."""
        digests, norms = self._step.gradients, self._step.figures.get("grad_norm", {})
        if not digests or self._step.scale is not None:
            same = [_is_same(outcome.norms.get(name, math.nan), norm) for name, norm in norms.items()]
            return same, f"the norms of {len(norms)} gradients"
        gradients = dict(gradients_of(self._models))
        same = [name in gradients and digest(gradients[name]) == bits for name, bits in digests.items()]
        return same, f"the gradients of {len(digests)} parameters"

    def origin(self, outcome: Outcome) -> tuple[str, str]:
        """Return (module, words) of where the NaN or Inf is made; ("", "") where that is not seen."""
        losses = LossGraph()
        self._step.prepare_(self._eager)
        memory = Replay(self._eager, Guard(), losses)
        try:
            for each in self._passes:
                done = compute(self._eager, each, self._loss_fn, Setting())
                if done.loss is not None:
                    losses.observe(done.loss)
                    done.loss.backward()
            found = memory.origin(outcome.loss, list(outcome.nonfinite))
        except UnreplayableError:
            raise
        except Exception:  # of the user's own code, which has failed before as well
            return "", ""
        finally:
            memory.remove()
        return ("", "") if found is None else (found.module, found.words)

    def rows(self) -> tuple[list[Row], str]:
        """Return the rows of the first pass, the worst first, and how they were measured."""
        first = self._passes[0]
        size = batch_rows(_batch_of(first))
        if size < 2:
            return [], "the batch has no rows"
        if any(isinstance(module, _torch.BATCH_NORM) and module.training for module in self._modules()):
            return self._rows_at_output(first, size)
        losses, norms = [], []
        for row in range(min(size, MOST_ROWS)):
            outcome = self.run([_with_rows(first, torch.tensor([row]), size)], self._eager)
            if outcome.error is not None:
                return self._rows_at_output(first, size)
            losses.append(outcome.loss)
            norms.append(_norm_of(outcome))
        return ranked(losses, norms), "each row run alone"

    def _rows_at_output(self, first: Pass, size: int) -> tuple[list[Row], str]:
        """Return the rows by the gradient that arrives at what the model returned."""
        self._step.prepare_(self._eager)
        try:
            arrived = _arriving_gradients(compute(self._eager, first, self._loss_fn, Setting()), size)
        except UnreplayableError:
            raise
        except Exception:  # of the user's own code
            return [], "the rows could not be run"
        if not arrived:
            return [], "what the model returned has no rows"
        norms = torch.cat([each.flatten(1).float() for each in arrived], 1).norm(dim=1).tolist()
        return ranked([None] * size, norms), "the gradient at what the model returned, for rows depend on each other"

    def variants(self, rows: Sequence[Row]) -> Iterator[Variant]:
        """Yield the step under other conditions."""
        cpu = torch.device("cpu")
        yield self._in_double()
        yield self._eagerly()
        if self._device().type == "cpu":
            yield Variant("CPU", None, "it ran on the CPU")
        else:
            models = {name: copy.deepcopy(model).to(cpu) for name, model in self._eager.items()}
            outcome = self.run([moved(each, cpu) for each in self._passes], models)
            yield Variant("CPU", _is_sick(self._step, outcome))
        if any(each.autocast[1] for each in self._passes):
            outcome = self.run(models=self._eager, setting=Setting(autocast=False))
            yield Variant("without autocast", _is_sick(self._step, outcome))
        else:
            yield Variant("without autocast", None, "autocast was off")
        yield self._without(worst(rows), rows)

    def _in_double(self) -> Variant:
        dtype = torch.float64
        models = {name: copy.deepcopy(model).to(dtype) for name, model in self._eager.items()}
        passes = [moved(each, self._device(), dtype) for each in self._passes]
        replace(self._step, state=_widened(self._step.state, dtype)).prepare_(models)
        outcome = run(models, self._step, passes, self._loss_fn, Setting(autocast=False))
        if outcome.error is not None and self._last.error is None:
            return Variant("float64", None, f"the model raises {outcome.error} there")
        return Variant("float64", _is_sick(self._step, outcome))

    def _eagerly(self) -> Variant:
        if not any(is_compiled(model) for model in self._models.values()):
            return Variant("eager", None, "it ran eagerly here")
        return Variant("eager", _is_sick(self._step, self.run(models=self._eager)))

    def _without(self, left_out: Sequence[int], rows: Sequence[Row]) -> Variant:
        name = f"without rows {', '.join(map(str, sorted(left_out)[:8]))}" if left_out else "without the worst rows"
        size = batch_rows(_batch_of(self._passes[0]))
        if not rows or len(self._passes) > 1:
            return Variant(name, None, "there are several batches" if rows else "no rows are known")
        if len(left_out) >= size:
            return Variant(name, None, "every row is bad")
        kept = torch.tensor([row for row in range(size) if row not in set(left_out)])
        outcome = self.run([_with_rows(self._passes[0], kept, size)], self._eager)
        return Variant(name, _is_sick(self._step, outcome))

    def notes(self) -> Iterator[str]:
        """Yield what makes the replay less than exact."""
        if self._device().type != torch.device(self._step.device).type:
            yield f"the step ran on {self._step.device}, which this machine lacks; it was replayed on the CPU"
        if self._last.loss is None and self._last.has_gradients:
            yield "no loss was computed: the backward pass began with the gradients in the file; give --loss"
        if not self._last.has_gradients and self._last.error is None:
            yield "there was no backward pass: the file holds no gradient of an output; give --loss"
        if self._last.error is not None:
            yield f"the replay raises {self._last.error}"

    def _device(self) -> torch.device:
        return next(
            (each.device for model in self._models.values() for each in model.parameters()), torch.device("cpu")
        )

    def _modules(self) -> Iterator[nn.Module]:
        for model in self._eager.values():
            yield from model.modules()


def _widened(state: TrainingState, dtype: torch.dtype) -> TrainingState:
    def widen(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    weights = {name: widen(tensor) for name, tensor in state.weights.items()}
    return replace(state, weights=weights, buffers={name: widen(tensor) for name, tensor in state.buffers.items()})


def _arriving_gradients(done: Computed, size: int) -> list[Tensor]:
    """Return the gradients at the outputs that have ``size`` rows: computed from the loss, or those of the file."""
    gradients: Sequence[Tensor | None] = done.gradients
    if done.loss is not None:
        outputs = [output for output in done.outputs if output.dim() and len(output) == size]
        gradients = torch.autograd.grad(done.loss, outputs, allow_unused=True) if outputs else []
    return [each for each in gradients if each is not None and each.dim() and len(each) == size]


def _batch_of(each: Pass) -> Any:
    return each.batch if each.has_batch else (each.args, dict(each.kwargs))


def _with_rows(each: Pass, rows: Tensor, size: int) -> Pass:
    if each.has_batch:
        return replace(each, batch=keep_rows(each.batch, rows, size))
    args, kwargs = keep_rows((each.args, dict(each.kwargs)), rows, size)
    gradients = [None if gradient is None else keep_rows(gradient, rows, size) for gradient in each.output_gradients]
    return replace(each, args=args, kwargs=kwargs, output_gradients=gradients)


def _norm_of(outcome: Outcome) -> float:
    return math.nan if outcome.nonfinite or not outcome.outputs_are_finite else outcome.total


def _is_same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
