"""One program run without gradwatch, every figure in float64: what the labels are proven on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.detection.program import Program, Training

RECTIFIERS = {"relu", "relu6", "threshold", "gelu", "silu", "mish", "elu", "celu", "selu", "softplus", "hardswish"}
"""Functions that a unit can be silent behind; in place, their names end in an underscore."""

STEEPEST = {"sigmoid": 0.25, "tanh": 1.0, "hardtanh": 1.0, "hardsigmoid": 1 / 6, "softsign": 1.0}
"""The largest slope of each squashing function."""

SILENT, FLAT = 1e-3, 0.05

Site = tuple[tuple[str, ...], int]
"""A function call: the parameters of the module called last before it, and how many calls came between."""


@dataclass(frozen=True)
class Bare:
    """What a bare run did, over S updates of P parameters in order of registration.

    Attributes:
        names: (P,).
        grad_norm: (S, P) float64, L2 norm of the accumulated gradient as the last backward pass left it (before the
            loop's own clipping); NaN where there was none.
        grad_rms: (S, P) the same over the root of the number of entries.
        nonfinite: (S, P) how many entries are NaN or Inf.
        weight_norm: (S, P) before the update; of finite entries.
        change: (S, P) L2 norm of the update.
        loss: (S,) the mean of the losses observed since the update before; NaN where none was.
        observed: (S,) bool, whether any was.
        silent: for each rectifier, (S, U) bool: which of its units had a slope of at most ``SILENT`` on all that they
            met since the update before. Empty unless asked for.
        flat: for each squashing function or softmax, (S,) the share of its entries (a softmax's rows) with a slope
            below ``FLAT`` times the steepest; NaN where it was not called. Empty unless asked for.
        score: of the training at its end; NaN where it has none.
    """

    names: tuple[str, ...]
    grad_norm: NDArray[np.float64]
    grad_rms: NDArray[np.float64]
    nonfinite: NDArray[np.int64]
    weight_norm: NDArray[np.float64]
    change: NDArray[np.float64]
    loss: NDArray[np.float64]
    observed: NDArray[np.bool_]
    silent: Mapping[Site, NDArray[np.bool_]] = field(default_factory=dict)
    flat: Mapping[Site, NDArray[np.float64]] = field(default_factory=dict)
    score: float = np.nan


def start(program: Program, seed: int) -> Training:
    """The program, ready to run, under its seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    return program.make(seed)


def run_bare(program: Program, seed: int, with_slopes: bool | None = None) -> Bare:
    """Runs the program to its end and measures every update.

    Args:
        program: what to run.
        seed: of torch and numpy.
        with_slopes: whether ``silent`` and ``flat`` are measured, too, which takes several times as long; None: where
            the program claims either.
    """
    training = start(program, seed)
    is_asked = program.kind in ("dead", "saturated") if with_slopes is None else with_slopes
    slopes = _Slopes(training) if is_asked else None
    named = dict(named_parameters(training))
    parameters = list(named.values())
    latest: dict[int, Tensor] = {}
    rows: list[tuple[list[float], list[float], list[int], list[float]]] = []
    changes, losses, has_loss, observed = [], [], [], []
    before: dict[int, Tensor] = {}

    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: latest.__setitem__(id(p), _wide(p.grad)))

    def enter(optimizer, _args, _kwargs):
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        present = [id(p) in mine and p.grad is not None for p in parameters]
        gradients = [latest.get(id(p), _wide(p.grad)) if has else None for p, has in zip(parameters, present)]
        norms = [np.nan if g is None else _norm(g) for g in gradients]
        sizes = [max(p.numel(), 1) ** 0.5 for p in parameters]
        rows.append(
            (
                norms,
                [norm / size for norm, size in zip(norms, sizes)],
                [0 if g is None else int((~torch.isfinite(g)).sum()) for g in gradients],
                [_norm(_wide(p)[torch.isfinite(p)]) for p in parameters],
            )
        )
        before.update({id(p): _wide(p).clone() for p in parameters})
        losses.append(float(np.mean(observed)) if observed else np.nan)
        has_loss.append(bool(observed))
        observed.clear()
        if slopes:
            slopes.end_update()

    def leave(optimizer, _args, _kwargs):
        changes.append([_norm(_wide(p) - before[id(p)]) for p in parameters])
        latest.clear()

    for optimizer in training.optimizers:
        optimizer.register_step_pre_hook(enter)
        optimizer.register_step_post_hook(leave)
    with slopes or contextlib.nullcontext():
        for number in range(training.steps):
            training.step(number, lambda loss: observed.append(float(loss.detach())))
    columns = [np.array(column) for column in zip(*rows)]
    found = (slopes.silent(), slopes.flat()) if slopes else ({}, {})
    score = np.nan if training.score is None else float(training.score())
    return Bare(tuple(named), *columns, np.array(changes), np.array(losses), np.array(has_loss), *found, score)


def named_parameters(training: Training) -> Iterator[tuple[str, Tensor]]:
    """Names as gradwatch gives them; a tied tensor once, by its first."""
    models = {"": training.model} if isinstance(training.model, nn.Module) else training.model
    seen: set[int] = set()
    for prefix, model in models.items():
        for name, parameter in model.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), parameter


class _Slopes(TorchFunctionMode):
    """Sees every call of a function, with all its entries; knows which module with parameters was called last.

    A function behind several calls of one module (the steps of a recurrent network) is one site.
    """

    def __init__(self, training: Training) -> None:
        super().__init__()
        known = {id(parameter): name for name, parameter in named_parameters(training)}
        models = [training.model] if isinstance(training.model, nn.Module) else training.model.values()
        self._last: tuple[tuple[str, ...], nn.Module] | None = None
        self._calls = 0
        self._passing: dict[Site, Tensor] = {}
        self._counts: dict[Site, tuple[int, int]] = {}
        self._updates: list[tuple[dict[Site, Tensor], dict[Site, tuple[int, int]]]] = []
        for module in (module for model in models for module in model.modules()):
            own = tuple(known[id(parameter)] for parameter in module.parameters(recurse=False))
            if own:
                module.register_forward_pre_hook(lambda module, _inputs, own=own: self._enter(own, module))

    def _enter(self, own: tuple[str, ...], module: nn.Module) -> None:
        self._last, self._calls = (own, module), 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "").rstrip("_")
        if self._last and torch.is_grad_enabled() and args and isinstance(args[0], Tensor) and args[0].requires_grad:
            site = (self._last[0], self._calls)
            if name in RECTIFIERS:
                self._rectified(site, _slope(function, *args, **kwargs) > SILENT)
            elif name in STEEPEST:
                self._squashed(site, _slope(function, *args, **kwargs) < FLAT * STEEPEST[name])
            elif name == "softmax":
                self._squashed(site, _certain(*args, **kwargs))
            elif name == "scaled_dot_product_attention":
                self._squashed(site, _certain(_scores(*args, **kwargs), -1))
        return function(*args, **kwargs)

    def _rectified(self, site: Site, passes: Tensor) -> None:
        by_channel = isinstance(self._last[1], (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm))
        axis = 1 if by_channel else passes.dim() - 1
        units = passes.movedim(axis, 0).flatten(1).any(1)
        self._passing[site] = self._passing.get(site, torch.zeros_like(units)) | units
        self._calls += 1

    def _squashed(self, site: Site, is_flat: Tensor) -> None:
        flat, entries = self._counts.get(site, (0, 0))
        self._counts[site] = (flat + int(is_flat.sum()), entries + is_flat.numel())
        self._calls += 1

    def end_update(self) -> None:
        self._updates.append((self._passing, self._counts))
        self._passing, self._counts = {}, {}

    def silent(self) -> dict[Site, NDArray[np.bool_]]:
        units = {site: passing.numel() for rows, _ in self._updates for site, passing in rows.items()}
        return {
            site: np.array([~rows[site].numpy() if site in rows else np.zeros(n, bool) for rows, _ in self._updates])
            for site, n in units.items()
        }

    def flat(self) -> dict[Site, NDArray[np.float64]]:
        sites = dict.fromkeys(site for _, counts in self._updates for site in counts)
        return {
            site: np.array([np.divide(*counts[site]) if site in counts else np.nan for _, counts in self._updates])
            for site in sites
        }


def _slope(function: Callable[..., Tensor], entries: Tensor, *args, **kwargs) -> Tensor:
    """|f'| at every entry, by automatic differentiation in float64."""
    wide = entries.detach().double().requires_grad_()
    with torch.enable_grad():
        result = function(wide.clone(), *args, **kwargs)
    return torch.autograd.grad(result.sum(), wide)[0].abs()


def _certain(entries: Tensor, dim: int, **_options) -> Tensor:
    """Which rows of a softmax have one probability p > 1/2 whose slope p(1 − p) is below ``FLAT`` of 1/4."""
    largest = entries.detach().double().softmax(dim).amax(dim)
    return (largest > 0.5) & (4 * largest * (1 - largest) < FLAT)


def _scores(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_options) -> Tensor:
    """What ``scaled_dot_product_attention`` takes the softmax of."""
    scores = query.detach().double() @ key.detach().double().mT
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is None:
        return scores
    is_kept = attn_mask.dtype == torch.bool
    return scores.masked_fill(~attn_mask, -torch.inf) if is_kept else scores + attn_mask.detach()


def _wide(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    tensor = tensor.detach()
    tensor = tensor.coalesce().values() if tensor.is_sparse else tensor
    return tensor.abs().double() if tensor.is_complex() else tensor.double()


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))
