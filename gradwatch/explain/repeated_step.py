"""Run the calls of a sick step again, on replicas of their models, and look at every module or at every operation.

To look at every operation takes several times as long as to look at every module. Where the loss is NaN or Inf, the
forward pass alone tells: the modules are looked at first, then the operations of the one at fault. Code of the user's
runs only once, and every operation is looked at: it might count its calls, or write into memory that others share.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from gradwatch.explain.observed import ObservedOrigin, observed_origin
from gradwatch.explain.operations import FaultyOperation, Operations
from gradwatch.explain.recorded_call import RecordedCall, repeat
from gradwatch.explain.replica import UnrepeatableError, as_it_was, replica_of
from gradwatch.explain.trace import Trace
from gradwatch.hooks.guard import Guard
from gradwatch.hooks.module_calls import listen

__all__ = ["RepeatedStep", "modules_named"]


@dataclass(frozen=True)
class RepeatedStep:
    """A step with a NaN or Inf that can be run again. Of this process's state, only that of random numbers is put back.

    Attributes:
        calls: of the step, as recorded.
        models: {name: module}, those that were called.
        is_free: the calls are free of foreign state, so that they can be repeated twice.
        guard: takes the faults of looking.
        loss, layers_at_fault: as for ``observed_origin``.
    """

    calls: Sequence[RecordedCall]
    models: Mapping[str, nn.Module]
    is_free: bool
    guard: Guard
    loss: float | None
    layers_at_fault: Sequence[str]

    def observe(self) -> ObservedOrigin | None:
        """Return where the NaN or Inf came from; None where the calls cannot be repeated, or show nothing."""
        with contextlib.suppress(UnrepeatableError), as_it_was():
            if self._goes_backward or not self.is_free:
                return self._observe_all()
            return self._observe_forward()
        return None

    @property
    def _goes_backward(self) -> bool:
        return self.loss is None or math.isfinite(self.loss)

    def _observe_forward(self) -> ObservedOrigin | None:
        found = self._observe_modules()
        if found is None or found.where != "forward":
            return found
        return replace(found, operation=self._operation_within(found.module.name))

    def _observe_modules(self) -> ObservedOrigin | None:
        replicas = self._replicas()
        trace = self._trace(replicas)
        batches = self._repeat(replicas)
        found = observed_origin(trace.take() or [], self.loss, self.layers_at_fault)
        del batches  # until here they had to be alive: the origin names their bad rows
        return found

    def _operation_within(self, module: str) -> FaultyOperation | None:
        """Return the operation of the forward pass of ``module`` that made the NaN or Inf; None where none is seen."""
        replicas = self._replicas()
        operations = Operations(self._trace(replicas).module_under_way)
        for part in modules_named(module, replicas):
            _examine_calls(part, operations)
        self._repeat(replicas, operations)
        return operations.suspect(module, in_backward=False)

    def _observe_all(self) -> ObservedOrigin | None:
        replicas = self._replicas()
        trace = self._trace(replicas)
        with Operations(trace.module_under_way) as operations:
            batches = self._repeat(replicas, operations)
        found = observed_origin(trace.take() or [], self.loss, self.layers_at_fault)
        del batches
        if found is None or found.where not in ("forward", "backward"):
            return found
        return replace(found, operation=operations.suspect(found.module.name, in_backward=found.where == "backward"))

    def _replicas(self) -> dict[str, nn.Module]:
        known: dict[int, Any] = {}
        if not self._goes_backward:  # no gradient will arrive at the weights, so that they themselves can be used
            known.update((id(each), each) for model in self.models.values() for each in model.parameters())
        return {name: replica_of(model, known) for name, model in self.models.items()}

    def _trace(self, replicas: Mapping[str, nn.Module]) -> Trace:
        return Trace(replicas, self.guard, keeps_all=True, follows_backward=self._goes_backward)

    def _repeat(self, replicas: Mapping[str, nn.Module], operations: Operations | None = None) -> list[Any]:
        """Repeat each call, and return what it was given."""
        parameters = _trainable(replicas.values()) if self._goes_backward else []
        try:
            return [
                repeat(call, replicas[call.name], parameters, goes_backward=self._goes_backward) for call in self.calls
            ]
        finally:
            if operations is not None and operations.fault is not None:
                raise operations.fault


def modules_named(name: str, models: Mapping[str, nn.Module]) -> list[nn.Module]:
    """Return the parts of ``models`` that are called ``name``: one, unless the model's own name is an attribute's."""
    return [
        part
        for root, model in models.items()
        for path, part in model.named_modules(remove_duplicate=False)
        if f"{root}.{path}".strip(".") == name
    ]


def _examine_calls(module: nn.Module, operations: Operations) -> None:
    """Have ``operations`` see those of each call of ``module`` from now on, and no others."""
    listen(module, lambda *_: operations.begin(), lambda *_: operations.end())


def _trainable(models: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of ``models`` that have entries and require gradients, each once."""
    found = (parameter for model in models for parameter in model.parameters())
    return list(dict.fromkeys(each for each in found if each.requires_grad and not is_lazy(each)))
