"""Keep what a program on torch trains, in the file ``EXTERNAL_KEPT``: its model, its optimizer and what it was fed.

The model is the outermost module whose weights the first optimizer holds, as it was before the first update. An input
of that module and the targets that a loss module was given make a batch, one for each update. Programs of GRIST train
bare tensors and write out their losses: of those, the input and the loss of each update are what their searcher is
told, and ``EXTERNAL_TARGETS`` names the variable that holds the targets.
"""

from __future__ import annotations

import atexit
import copy
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from external_adapters.imports import after_import


def install() -> None:
    """Wait for torch and for GRIST's searcher."""
    after_import("torch", lambda torch: _Kept(torch, Path(os.environ["EXTERNAL_KEPT"])))


class _Kept:
    """What a run has shown so far."""

    def __init__(self, torch: ModuleType, path: Path) -> None:
        self._torch, self._path, self._depth = torch, path, 0
        self._calls: list[tuple[Any, Any, Any]] = []
        self._told: tuple[Any, Any, Any] | None = None
        self._start: dict[str, Any] = {}
        self._batches: list[tuple[Any, Any]] = []
        self._losses: list[float] = []
        hooks = importlib.import_module("torch.nn.modules.module")
        hooks.register_module_forward_pre_hook(self._before_module)
        hooks.register_module_forward_hook(self._after_module, always_call=True)
        importlib.import_module("torch.optim.optimizer").register_optimizer_step_pre_hook(self._before_update)
        after_import("scripts.utils.torch_utils", self._follow_search)
        atexit.register(self._write)

    def _before_module(self, module: Any, inputs: Any) -> None:
        self._depth += 1

    def _after_module(self, module: Any, inputs: Any, output: Any) -> None:
        self._depth -= 1
        if isinstance(module, self._torch.nn.modules.loss._Loss):
            self._told = (module, inputs[0].shape, inputs[1].detach().clone())
            self._losses.append(float(output.detach()))
        elif self._depth == 0 and next(module.parameters(), None) is not None:
            self._calls.append((module, inputs[0].detach().clone(), output.shape))

    def _follow_search(self, searchers: ModuleType) -> None:
        update = searchers.GradientSearcher.update_batch_data

        def kept_update(searcher: Any, monitor_var: Any, input_data: Any, *args: Any, **keywords: Any) -> Any:
            targets = sys._getframe(1).f_globals[os.environ["EXTERNAL_TARGETS"]]
            self._batches.append((input_data.detach().clone(), targets.detach().clone()))
            self._losses.append(float(monitor_var["loss"].detach()))
            return update(searcher, monitor_var, input_data, *args, **keywords)

        searchers.GradientSearcher.update_batch_data = kept_update

    def _before_update(self, optimizer: Any, args: Any, keywords: Any) -> None:
        if not self._start:
            groups = [
                {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
            ]
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            self._start = {"optimizer": (type(optimizer).__name__, groups),
                           "weights": [weight.detach().clone() for weight in weights]}  # fmt: skip
            self._start |= self._model_of({id(weight) for weight in weights})
        if self._calls and self._told is not None:
            self._batches.append((self._calls[-1][1], self._told[2]))
        self._calls.clear()

    def _model_of(self, weights: set[int]) -> dict[str, Any]:
        for module, _, shape in reversed(self._calls):
            if weights == {id(weight) for weight in module.parameters()} and self._told is not None:
                loss, seen, _ = self._told
                fresh = copy.deepcopy(module)
                fresh.zero_grad()
                return {"model": fresh, "loss": loss, "reshaped": None if seen == shape else tuple(seen)}
        return {}

    def _write(self) -> None:
        import cloudpickle  # takes the program's classes along

        kept = self._start | {"batches": self._batches, "losses": self._losses}
        self._path.write_bytes(cloudpickle.dumps(kept))
