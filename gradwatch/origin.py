"""Which module made a NaN or Inf: what goes into every module and what comes out of it, forward and backward.

Enters: modules. Leaves: the ``Origin`` of a step that turned out sick. Each look is one reduction on the device;
nothing is read on the host until a step is sick.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradwatch.harmless import harmless
from gradwatch.report import Origin

__all__ = ["Passage", "Trace", "origin_of"]

KEPT = 64  # forward passes of a whole model that are kept: more than most accumulate before one update


@dataclass
class Look:
    """One tensor as it was when a module was given it, or returned it.

    Attributes:
        extremes: () its smallest and its largest entry; NaN where any entry is.
        gradients: the same of its gradient, once the backward pass has come by.
    """

    extremes: tuple[Tensor, Tensor]
    gradients: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class Passage:
    """One call of one module.

    Attributes:
        module, type: its name and class.
        entered, left: what went in and came out.
        is_whole: it was called by the loop, not by another module.
        batch: the tensors that went into it then, as long as the loop keeps them.
        computed: those of ``entered`` then that were computed from parameters.
        is_builtin: a layer of ``torch.nn`` without parts.
    """

    module: str
    type: str
    entered: list[Look] = field(default_factory=list)
    left: list[Look] = field(default_factory=list)
    is_whole: bool = False
    batch: list[weakref.ref[Tensor]] = field(default_factory=list)
    computed: list[Look] = field(default_factory=list)
    is_builtin: bool = False

    def title(self) -> str:
        """How it is called in a sentence."""
        return f"{self.module} ({self.type})" if self.module else f"the model itself ({self.type})"


class Trace:
    """Looks at every call of every module, from construction to ``remove``.

    Modules that are compiled or scripted are left alone, with all that is in them; so is what runs without gradients,
    and what a checkpoint computes again.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.broken: set[str] = set()
        modules = [pair for name, model in models.items() for pair in _visible(name, model)]
        self._passages: deque[Passage] = deque(maxlen=KEPT * max(1, len(modules)))
        self._under_way: list[Passage] = []
        self._looks: dict[int, tuple[weakref.ref[Tensor], int, Look]] = {}
        self._handles = [handle for name, module in modules for handle in self._hook(name, module)]

    @harmless
    def origin(self, passages: Sequence[Passage], loss: float | None, sick_layers: Sequence[str]) -> Origin | None:
        """As ``origin_of``."""
        return origin_of(passages, loss, sick_layers)

    @harmless
    def take(self) -> list[Passage]:
        """The calls since the last time, in the order in which they ended."""
        passages = list(self._passages)
        self._passages.clear()
        self._under_way.clear()
        self._looks.clear()
        return passages

    def remove(self) -> None:
        """Takes every hook off."""
        for handle in self._handles:
            handle.remove()
        self.take()

    def _hook(self, name: str, module: nn.Module) -> Iterator[Any]:
        kind = type(module).__name__
        is_builtin = type(module).__module__.startswith("torch.nn.") and not any(module.children())

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not (torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None):
                self._enter(name, kind, is_builtin, (args, kwargs))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not (torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None):
                self._leave(name, output)

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    @harmless
    def _enter(self, name: str, kind: str, is_builtin: bool, inputs: Any) -> None:
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        given = _tensors(inputs)
        if not self._under_way:
            self._looks.clear()
        passage = Passage(name, kind, [self._look(tensor) for tensor in given], is_builtin=is_builtin)
        if not self._under_way:
            passage.is_whole, passage.batch = True, [weakref.ref(tensor) for tensor in given]
            passage.computed = [look for t, look in zip(given, passage.entered, strict=True) if t.grad_fn is not None]
        self._under_way.append(passage)

    @harmless
    def _leave(self, name: str, output: Any) -> None:
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        while self._under_way:  # a forward pass that raised never left
            passage = self._under_way.pop()
            if passage.module == name:
                passage.left = [self._look(tensor) for tensor in _tensors(output)]
                self._passages.append(passage)
                return

    def _look(self, tensor: Tensor) -> Look:
        """What one module returns the next one is given: a tensor is looked at once, until it is changed in place."""
        version = 0 if tensor.is_inference() else tensor._version
        known, seen, look = self._looks.get(id(tensor), (None, 0, None))
        if look is None or known is None or known() is not tensor or seen != version:
            look = Look(_extremes(tensor))
            self._looks[id(tensor)] = weakref.ref(tensor), version, look
            if tensor.requires_grad:
                tensor.register_hook(self._note_in(look.gradients))
        return look

    def _note_in(self, gradients: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            self._note(gradients, gradient)

        return note

    @harmless
    def _note(self, gradients: list[tuple[Tensor, Tensor]], gradient: Tensor) -> None:
        if _has_entries(gradient):
            gradients.append(_extremes(gradient))


def origin_of(passages: Sequence[Passage], loss: float | None, sick_layers: Sequence[str]) -> Origin | None:
    """Where a step's NaN or Inf came from; None where no call was seen. Waits for the device.

    Args:
        passages: the calls of that step, in the order in which they ended, so that a part stands before its whole.
        loss: of that step, if it was observed.
        sick_layers: names of the parameters whose gradients hold NaN or Inf.
    """
    if not passages:
        return None
    loss_is_sick = not math.isfinite(loss) if loss is not None else _is_sick(passages[-1].left)
    return _forward(passages) if loss_is_sick else _backward(passages, sick_layers)


def _forward(passages: Sequence[Passage]) -> Origin:
    made_nan = next((p for p in passages if _has_nan(p.left) and not _has_nan(p.entered)), None)
    made_inf = next((p for p in passages if _is_sick(p.left) and not _is_sick(p.entered)), None)
    if made_inf is not None and (made_nan is None or _is_sick(made_nan.entered) or made_nan is made_inf):
        what = "NaN" if _has_nan(made_inf.left) else "Inf"
        return Origin(
            made_inf.module, "forward", f"observed: {made_inf.title()} was given finite values and returned {what}"
        )
    fed = next((p for p in passages if _is_sick(p.computed)), None)
    if fed is not None and (made_nan is None or _reaches(fed, made_nan, passages)):
        return Origin(
            fed.module,
            "loss",
            f"observed: what {fed.title()} was given already held NaN or Inf{_rows(fed)}; it was computed outside "
            f"every module{_before(passages, fed)}",
        )
    if made_nan is not None:
        given = "Inf" if _is_sick(made_nan.entered) else "finite values"
        return Origin(made_nan.module, "forward", f"observed: {made_nan.title()} was given {given} and returned NaN")
    sick_inputs = [p for p in passages if _is_sick(p.entered)]
    fed = next((p for p in sick_inputs if p.is_whole), sick_inputs[0] if sick_inputs else None)
    if fed is not None:
        return Origin(
            fed.module, "input", f"observed: what {fed.title()} was given already held NaN or Inf{_rows(fed)}"
        )
    last = passages[-1]
    return Origin(last.module, "loss", f"observed: {last.title()} returned finite values; the loss made of them is not")


def _reaches(fed: Passage, other: Passage, passages: Sequence[Passage]) -> bool:
    """Whether ``other`` was called by ``fed`` or after it, and what went into it was not finite either."""
    is_later = passages.index(fed) < passages.index(other) or _is_inside(other.module, fed.module) or fed is other
    return is_later and _is_sick(other.entered)


def _backward(passages: Sequence[Passage], sick_layers: Sequence[str]) -> Origin | None:
    received = [p for p in passages if any(look.gradients for look in p.left)]
    makers = [p for p in received if not _turns_sick(p.left) and _is_sick_within(p, received, sick_layers)]
    deepest = [p for p in makers if not any(q is not p and _is_inside(q.module, p.module) for q in makers)]
    if deepest:
        maker = deepest[-1]
        if _is_sick(maker.entered):
            return _forward(passages)  # zero times NaN: a forward value that the loss did not see
        given = f"observed: the backward pass of {maker.title()} was given finite gradients"
        if maker.is_builtin and not _turns_sick(maker.entered):
            layer = next(layer for layer in sick_layers if _is_inside(layer, maker.module))
            return Origin(
                maker.module,
                "backward",
                f"{given}, but that of {layer} is not finite: it overflowed, or something else uses that parameter (a "
                "penalty in the loss)",
            )
        return Origin(maker.module, "backward", f"{given} and returned NaN or Inf")
    sick = [place for place, p in enumerate(received) if _turns_sick(p.left)]
    if not sick:
        return None
    first, behind = received[sick[-1]], received[sick[-1] + 1 :]
    said = f"observed: the gradient of what {first.title()} returned is already NaN or Inf"
    after = f", while that of what {behind[0].title()} returned is finite: made between the two" if behind else ""
    return Origin(first.module, "loss", f"{said}{after}, outside every module")


def _is_sick_within(passage: Passage, received: Sequence[Passage], sick_layers: Sequence[str]) -> bool:
    """Whether a gradient turned sick on its way through this module or a part of it."""
    return (
        _turns_sick(passage.entered)
        or any(_is_inside(layer, passage.module) for layer in sick_layers)
        or any(q is not passage and _is_inside(q.module, passage.module) for q in received if _turns_sick(q.left))
    )


def _before(passages: Sequence[Passage], fed: Passage) -> str:
    """After which call, in words."""
    earlier = [p for p in passages[: passages.index(fed)] if p.is_whole and not _is_sick(p.left)]
    return f", after {earlier[-1].title()} returned finite values" if earlier else ""


def _rows(passage: Passage) -> str:
    """Which rows of what went in hold NaN or Inf, in words."""
    for tensor in (kept() for kept in passage.batch):
        if tensor is not None and tensor.ndim > 1 and not bool(torch.isfinite(tensor).all()):
            rows = torch.nonzero(~torch.isfinite(tensor).flatten(1).all(1)).flatten().tolist()
            listed = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
            return f", in {len(rows)} of {len(tensor)} rows: {listed}"
    return ""


def _is_inside(name: str, module: str) -> bool:
    return not module or name.startswith(f"{module}.")


def _visible(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The module and its parts, less what is compiled or scripted."""
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        return
    if getattr(module, "_compiled_call_impl", None) is not None:
        return
    yield name, module
    for part, child in module.named_children():
        yield from _visible(f"{name}.{part}".lstrip("."), child)


def _has_entries(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is torch.strided


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and _has_entries(leaf)]


@torch.no_grad()
def _extremes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    tensor = tensor.detach()
    smallest, largest = torch.aminmax(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    return smallest, largest


def _is_sick(looks: Sequence[Look]) -> bool:
    """Whether any of the tensors held NaN or Inf."""
    return any(not math.isfinite(float(end)) for look in looks for end in look.extremes)


def _has_nan(looks: Sequence[Look]) -> bool:
    return any(math.isnan(float(end)) for look in looks for end in look.extremes)


def _turns_sick(looks: Sequence[Look]) -> bool:
    """Whether any of their gradients held NaN or Inf."""
    return any(not math.isfinite(float(end)) for look in looks for ends in look.gradients for end in ends)
