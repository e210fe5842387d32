"""One step as the black box keeps it: by reference while the run goes on, as plain values in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradwatch.explain.recorded_call import RecordedCall, arguments_of, given_tensors, was_changed
from gradwatch.measure.report import StepReport
from gradwatch.recover.plain_values import as_plain
from gradwatch.recover.random_state import RandomState
from gradwatch.recover.training_state import bytes_in

__all__ = ["KeptBatch", "KeptCall", "StepRecord", "digest", "modes_of"]


class KeptCall(NamedTuple):
    """One call of a model.

    Attributes:
        call: its arguments by reference, and what arrived at its outputs.
        random: the state of every generator before it.
        identity: what the user's ``identify`` returned, in place of the arguments; None without one.
    """

    call: RecordedCall
    random: RandomState
    identity: Any = None


class KeptBatch(NamedTuple):
    """A batch that the loop or an integration has handed over.

    Attributes:
        batch: by reference.
        random: the state of every generator then.
        extra: further arguments of Lightning's ``training_step``, such as the number of the batch.
    """

    batch: Any
    random: RandomState
    extra: tuple[Any, ...] = ()


@dataclass(eq=False)
class StepRecord:
    """One attempted update.

    Attributes:
        step: its number.
        calls: of the models since the update before.
        batches: handed over since then.
        scale: () the loss scale that its gradients held; None where they held none.
        figures: from its report, once that has arrived: loss, norms, learning rates.
        gradients: {parameter: digest of its gradient before clipping}, of a step that failed before its update.
    """

    step: int
    calls: Sequence[KeptCall]
    batches: Sequence[KeptBatch]
    scale: Tensor | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    gradients: Mapping[str, str] = field(default_factory=dict)

    def take_report(self, report: StepReport) -> None:
        """Take the figures of the step."""
        self.figures = {
            "loss": report.loss,
            "grad_norm_total": report.grad_norm_total,
            "grad_norm_clipped_total": report.grad_norm_clipped_total,
            "grad_norm": {
                name: float(norm)
                for name, norm, is_measured in zip(report.layers, report.grad_norm, report.measured, strict=True)
                if is_measured
            },
            "nonfinite": {
                name: int(count) for name, count in zip(report.layers, report.nonfinite, strict=True) if count
            },
            "learning_rates": list(report.learning_rates),
            "skipped": report.skipped,
            "already_clipped": report.already_clipped or report.clipped_by_loop,
        }

    def bytes(self) -> int:
        """Return how many bytes of batches a file would hold of the step."""
        given = [tensor for kept in self.calls if kept.identity is None for tensor, _ in given_tensors(kept.call)]
        held = [kept.call.gradients for kept in self.calls]
        return bytes_in([given, held, [kept.batch for kept in self.batches]])

    def as_plain(self) -> dict[str, Any]:
        """Return the step as a file holds it."""
        return {
            "step": self.step,
            "calls": [_call_as_plain(kept) for kept in self.calls],
            "batches": [
                {
                    "batch": as_plain(kept.batch),
                    "extra": as_plain(kept.extra),
                    "random": kept.random.as_plain(),
                }
                for kept in self.batches
            ],
            "scale": None if self.scale is None else float(self.scale),
            "figures": self.figures,
            "gradients": dict(self.gradients),
        }


def _call_as_plain(kept: KeptCall) -> dict[str, Any]:
    call = kept.call
    device, is_on, dtype = call.autocast
    args, kwargs = (None, None) if kept.identity is not None else _plain_arguments(call)
    return {
        "model": call.name,
        "type": call.type,
        "args": args,
        "kwargs": kwargs,
        "identity": as_plain(kept.identity),
        "device": _device_of(call),
        "autocast": {"device": device, "enabled": is_on, "dtype": dtype},
        "random": kept.random.as_plain(),
        "was_changed": was_changed(call),
        "output_gradients": [_sum_of(held) for held in call.gradients],
        "returned": None if call.returned is None else call.returned.cpu(),
    }


def _plain_arguments(call: RecordedCall) -> tuple[Any, Any]:
    args, kwargs = arguments_of(call)
    return as_plain(args), as_plain(kwargs)


def _device_of(call: RecordedCall) -> str:
    given = given_tensors(call)
    return str(given[0][0].device) if given else "cpu"


def _sum_of(held: Sequence[Tensor | None]) -> Tensor | None:
    """Return the gradient that arrived at an output; None where none did, or where it is too large to be held."""
    parts = [gradient for gradient in held if gradient is not None]
    if not parts or len(parts) < len(held):
        return None
    whole = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    return as_plain(whole.detach())


def digest(tensor: Tensor) -> str:
    """Return a digest of the entries of ``tensor``, bit for bit; waits for the device."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    entries = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    raw = entries.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Return {module: whether it is in training mode} of the model, ``""``, and of those unlike the module around."""
    found: dict[str, bool] = {}
    for name, module in model.named_modules():
        around = next((found[each] for each in _around(name) if each in found), None)
        if module.training != around:
            found[name] = module.training
    return found


def _around(name: str) -> list[str]:
    """Return the names of the modules around ``name``, innermost first; ``""`` is the model."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, -1, -1)] if name else []
