"""Prove every truth, slowly and by plain hooks: which module, which place, which weight, which rows, which operation.

Each program runs twice for each seed. The first run has hooks on every module, and on every tensor that a module is
given or returns; it ends at the first step with anything that is not finite. The second run has no hooks. Its same step
runs under a dispatch mode, which names the first operation that made NaN or Inf of finite numbers. Arguments called
``mask`` may hold −Inf.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.detection.program import Training
from benchmarks.origins.program import ORIGINS, Make, Truth, is_measured

SAME = {
    "linear": {"linear", "addmm", "mm"},
    "softmax": {"softmax", "_softmax"},
    "batch_norm": {"native_batch_norm", "_native_batch_norm_legit_no_training", "batch_norm"},
    "gru": {"addmm", "mm", "gru", "linear"},
    # composed of slogdet and of where(sign < 0, nan, ·)
    "logdet": {"scalar_tensor"},
}
"""From an operation to the names of the operations that torch composes it of."""

VIEWS = {"t", "view", "transpose", "detach", "alias", "slice", "select", "expand", "unsqueeze", "clone"}
"""Operations that pass on what they are given."""


def finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


# Modules and places: hooks --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Call:
    """One call of a module: whether the gradients of what it returned, and of what it was given, were finite."""

    name: str
    parent: Call | None
    corrupt: list[str]
    """Names of the module's own parameters and buffers that were not finite when it was called."""
    returned: list[bool] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Event:
    """Something that is not finite: what a call was given or returned, the loss, or a gradient."""

    what: str
    call: Call | None = None
    seen: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Found:
    """The place where the first NaN or Inf was seen, as in ``Truth``."""

    module: str
    place: str
    rows: tuple[int, ...] = ()
    weight: str = ""


class Hooks:
    """Hooks on every call of every module, and on every gradient that passes it."""

    def __init__(self, training: Training) -> None:
        self.clear()
        for name, module in named_modules(training.model):
            module.register_forward_pre_hook(self._entering(name), with_kwargs=True)
            module.register_forward_hook(self._leave, with_kwargs=True)
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    parameter.register_hook(self._parameter_hook(join(name, own)))

    def clear(self) -> None:
        self.calls: list[Call] = []
        self.active: list[Call] = []
        self.events: list[Event] = []
        self.sick_parameters: set[str] = set()

    def observe(self, loss: Tensor) -> None:
        if not finite(loss.detach()):
            self.events.append(Event("loss"))

    def _entering(self, name: str):
        def enter(module: nn.Module, args: tuple, kwargs: dict):
            if recomputing():
                return None
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            corrupt = [join(name, part) for part, tensor in own if not finite(tensor.detach())]
            call = Call(name, self.active[-1] if self.active else None, corrupt)
            self.calls.append(call)
            looked_at = tensors((args, {key: value for key, value in kwargs.items() if "mask" not in key}))
            if any(not finite(tensor.detach()) for tensor in looked_at):
                self.events.append(Event("enter", call, tuple(looked_at)))
            self.active.append(call)
            return self._apart((args, kwargs), call.given)

        return enter

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output):
        if recomputing():
            return None
        call = self.active.pop()
        if any(not finite(tensor.detach()) for tensor in tensors(output)):
            self.events.append(Event("leave", call))
        return self._apart(output, call.returned)

    def _apart(self, tree, verdicts: list[bool]):
        """Clone all tensors that require gradients, so that each call has gradients of its own."""
        clones: dict[int, Tensor] = {}

        def record(gradient: Tensor) -> None:
            verdicts.append(finite(gradient))
            if not verdicts[-1]:
                self.events.append(Event("gradient"))

        def clone(leaf):
            if not isinstance(leaf, Tensor) or not leaf.requires_grad or not torch.is_grad_enabled():
                return leaf
            if id(leaf) not in clones:
                clones[id(leaf)] = leaf.clone()
                clones[id(leaf)].register_hook(record)
            return clones[id(leaf)]

        return tree_map(clone, tree)

    def _parameter_hook(self, name: str):
        def record(gradient: Tensor) -> None:
            if not finite(gradient):
                self.sick_parameters.add(name)
                self.events.append(Event("gradient"))

        return record


def named_modules(model: nn.Module | Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for prefix, root in model.items() if isinstance(model, dict) else (("", model),):
        for name, module in root.named_modules():
            yield join(prefix, name), module


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def recomputing() -> bool:
    """Tell whether a checkpointed module is called again from within a backward pass."""
    return torch._C._current_graph_task_id() != -1


def origin_of(hooks: Hooks) -> Found:
    """Return the origin of the first thing that was not finite."""
    event = hooks.events[0]
    if event.what == "gradient":
        return origin_of_gradient(hooks)
    if event.what == "loss":
        return Found("", "loss")
    call = event.call if event.what == "leave" else event.call.parent
    if call is not None:
        return Found(call.name, "forward", weight=call.corrupt[0] if call.corrupt else "")
    bad = [tensor for tensor in event.seen if not finite(tensor.detach())]
    if any(tensor.requires_grad for tensor in bad):
        return Found("", "between")
    rows: set[int] = set()
    for tensor in bad:
        rows.update((~tensor.detach().isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist())
    return Found("", "input", tuple(sorted(rows)))


def origin_of_gradient(hooks: Hooks) -> Found:
    """Return the innermost call that was given finite gradients and made others, inside it or for its input."""
    guilty = [call for call in hooks.calls if call.returned and all(call.returned) and sick_inside(call, hooks)]
    for call in reversed(guilty):
        if not any(inside(other, call) for other in guilty if other is not call):
            return Found(call.name, "backward")
    return origin_between_calls(hooks)


def origin_between_calls(hooks: Hooks) -> Found:
    """Return whether a gradient was made between two outermost calls, or by the loss."""
    top = [call for call in hooks.calls if call.parent is None]
    sick = [number for number, call in enumerate(top) if not all(call.returned)]
    passed_on = any(call.given and all(call.given + call.returned) for call in top[min(sick, default=0) + 1 :])
    return Found("", "between" if passed_on else "loss")


def inside(call: Call, other: Call) -> bool:
    while call is not None and call is not other:
        call = call.parent
    return call is other


def sick_inside(call: Call, hooks: Hooks) -> bool:
    within = [other for other in hooks.calls if inside(other, call)]
    values = [verdict for other in within for verdict in other.given + (other.returned if other is not call else [])]
    return not all(values) or any(sick_parameter_of(other, hooks) for other in within)


def sick_parameter_of(call: Call, hooks: Hooks) -> bool:
    """Tell whether a parameter of the module has a bad gradient that none of the module's calls was given.

    The gradient of a parameter is a sum over all calls of its module.
    """
    same_module = [other for other in hooks.calls if other.name == call.name]
    if not all(all(other.returned) for other in same_module):
        return False
    return any(name.rpartition(".")[0] == call.name for name in hooks.sick_parameters)


# Operations: a dispatch mode ------------------------------------------------------------------------------------------


class FirstMaker(TorchDispatchMode):
    """A mode that names the first operation that made NaN or Inf of finite numbers, and the first that passed it on."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.passed = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        # the copies matter for operations in place
        before = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves((args, kwargs))]
        output = func(*args, **(kwargs or {}))
        if self.made is None and not all(map(finite, tensors(output))):
            self._note(name, was_given_finite=all(harmless(leaf, name) for leaf in before))
        return output

    def _note(self, name: str, *, was_given_finite: bool) -> None:
        if was_given_finite:
            self.made = None if name.startswith(("empty", "new_empty")) else named_operation(name)
        elif self.passed is None and name not in VIEWS:
            self.passed = named_operation(name)


def harmless(leaf: object, operation: str) -> bool:
    if isinstance(leaf, float):
        return leaf not in (float("inf"), -float("inf")) and leaf == leaf
    if not isinstance(leaf, Tensor):
        return True
    return finite(leaf.masked_fill(leaf == -torch.inf, 0.0) if operation == "_softmax" else leaf)


def named_operation(name: str) -> str:
    """Return the operation; in a backward pass the one that is derived: linalg_eigh for LinalgEighBackward0."""
    node = torch._C._current_autograd_node()
    if node is None:
        return name
    derived = re.sub(r"Backward\d*$", "", node.name())
    return derived if derived == "UnitVector" else re.sub(r"(?<!^)(?=[A-Z])", "_", derived).lower()


# Proof ----------------------------------------------------------------------------------------------------------------


def made(make: Make, seed: int) -> Training:
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    return make(seed)


def grads_finite(training: Training) -> bool:
    parameters = (p for _, module in named_modules(training.model) for p in module.parameters(recurse=False))
    return all(p.grad is None or finite(p.grad) for p in parameters)


def first_sick(make: Make, seed: int) -> tuple[int, Found] | None:
    """Return the first step whose loss or gradients are not finite, and its origin; None if all stays finite."""
    training = made(make, seed)
    hooks = Hooks(training)
    for step in range(training.steps):
        hooks.clear()
        losses = []
        training.step(step, lambda loss, losses=losses: (losses.append(loss.detach()), hooks.observe(loss)))
        harmed = not all(map(finite, losses)) or not grads_finite(training)
        if hooks.events and not harmed:
            raise AssertionError(f"step {step}: a module's value or gradient is not finite, but loss and gradients are")
        if harmed:
            return step, origin_of(hooks)
    return None


def operation_at(make: Make, seed: int, sick: int) -> tuple[str | None, str | None]:
    """Return the first maker and the first passer of step ``sick``; the run without hooks must be finite before it."""
    training = made(make, seed)
    losses: list[Tensor] = []
    for step in range(sick):
        training.step(step, lambda loss: losses.append(loss.detach()))
        if not grads_finite(training) or not all(map(finite, losses)):
            raise AssertionError(f"without hooks, step {step} is sick already")
    with FirstMaker() as mode:
        training.step(sick, losses.append)
    if grads_finite(training) and all(finite(loss.detach()) for loss in losses):
        raise AssertionError(f"without hooks, step {sick} is not sick")
    return mode.made, mode.passed


def disagreements(make: Make, truth: Truth, seed: int) -> tuple[int, list[str]]:
    sick = first_sick(make, seed)
    if sick is None:
        return -1, ["all stays finite"]
    step, found = sick
    wrong = [
        f"{name}: stated {getattr(truth, name)!r}, found {getattr(found, name)!r}"
        for name in ("module", "place", "rows", "weight")
        if getattr(truth, name) != getattr(found, name)
    ]
    maker, passer = operation_at(make, seed, step)
    seen = passer if truth.cause == "weight" else maker or passer
    if truth.cause != "input" and seen not in SAME.get(truth.operation, {truth.operation}):
        wrong.append(f"operation: stated {truth.operation!r}, first maker {maker!r}, first passer {passer!r}")
    return step, wrong


def seconds_of(make: Make, seed: int = 0) -> float:
    training = made(make, seed)
    begin = time.perf_counter()
    for step in range(training.steps):
        training.step(step, lambda loss: None)
    return time.perf_counter() - begin


def prove(names: list[str], seeds: tuple[int, ...] = (0, 1)) -> int:
    """Print a line for each program; return how many truths failed."""
    failed = 0
    for name in names or ORIGINS:
        make, truth = ORIGINS[name]
        steps, wrong = [], []
        for seed in seeds:
            try:
                step, problems = disagreements(make, truth, seed)
            except Exception as problem:
                step, problems = -1, [f"{type(problem).__name__}: {problem}"]
            steps.append(step)
            wrong += [f"seed {seed}: {problem}" for problem in problems]
        verdict = "; ".join(wrong) or "proven"
        half = "measured" if is_measured(name) else "tuning"
        print(f"{name:50s} {half:8s} {truth.place:8s} {steps!s:9s} {seconds_of(make):4.2f} s  {verdict}", flush=True)
        failed += bool(wrong)
    return failed


def summary() -> str:
    truths = [truth for _, truth in ORIGINS.values()]
    halves = Counter("measured" if is_measured(name) else "tuning" for name in ORIGINS)
    counts = Counter(t.place for t in truths), Counter(t.cause for t in truths), halves
    return f"{len(truths)} programs: " + "; ".join(
        ", ".join(f"{name} {count}" for name, count in counted.most_common()) for counted in counts
    )
