"""Say what the models were given last, where a script dies of an exception before an update could show it.

A forward pass that is given NaN may raise: a distribution refuses its parameters. Then no gradient is ever sick. The
frames of the exception still hold the arguments of every module that was being called, so that nothing has to be kept
at any healthy step. Only NaN counts: an Inf may be a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.explain.sentences import listed_rows

__all__ = ["last_words"]


def last_words(error: BaseException | None) -> str | None:
    """Return what the outermost module under way was given that held NaN, when ``error`` was raised; else None."""
    if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
        return None
    for model, arguments in _calls_under_way(error.__traceback__):
        for tensor in arguments:
            if tensor.is_floating_point() and bool(torch.isnan(tensor.detach()).any()):
                ended = f"the script ended by {type(error).__name__}"
                return f"the last thing that {type(model).__name__} was given held NaN{_rows(tensor)}; {ended}"
    return None


def _calls_under_way(trace: TracebackType | None) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Yield the modules whose code was running, from the outermost on, with the tensors among their arguments."""
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and frame.f_code is not _torch.code_around_calls():
            yield owner, list(_arguments(frame))
        trace = trace.tb_next


def _arguments(frame: FrameType) -> Iterator[Tensor]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    values: list[Any] = [frame.f_locals.get(name) for name in code.co_varnames[:count] if name != "self"]
    return (leaf for leaf in _torch.tree_leaves(values) if isinstance(leaf, Tensor))


def _rows(tensor: Tensor) -> str:
    if tensor.ndim < 2:
        return ""
    sick = torch.nonzero(torch.isnan(tensor.detach()).flatten(1).any(1)).flatten().tolist()
    return f", in {len(sick)} of {len(tensor)} rows: {listed_rows(sick)}"
