"""Attach a watcher to what a user has: a model, several models, or bare tensors."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

# NumPy's medians and torch.save load these at their first use. A child that another thread forks meanwhile would wait
# for ever for the lock of the module.
import numpy.ma  # noqa: F401
import torch.utils.serialization  # noqa: F401
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from typing_extensions import Unpack

from gradwatch import _torch
from gradwatch.clip import Policy
from gradwatch.findings import Finding, Thresholds
from gradwatch.hooks.logger import logger
from gradwatch.hooks.optimizers import optimizers_inside, optimizers_within, parameters_of
from gradwatch.measure import layers as layer_table
from gradwatch.measure.layers import Layers, Selection
from gradwatch.recover.black_box import BlackBox
from gradwatch.recover.rewind import Rewind
from gradwatch.sinks import Sink
from gradwatch.watcher.options import DEFAULTS, OnNonFinite, Options, refuse_bad_options
from gradwatch.watcher.watched_loop import WatchedLoop
from gradwatch.watcher.watcher import Watcher

__all__ = ["loop_of_model", "loop_of_tensors", "watch", "watch_tensors"]

_loops: weakref.WeakKeyDictionary[nn.Module, weakref.ref[WatchedLoop]] = weakref.WeakKeyDictionary()


def watch(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    log_dir: str | Path | None = None,
    clip: float | Literal["auto"] | Policy | None = None,
    on_nonfinite: OnNonFinite = "report",
    scaler: GradScaler | None = None,
    find_loss: bool = True,
    recover: Rewind | None = None,
    black_box: BlackBox | str | Path | None = None,
    log_every_n_steps: int = 50,
    include: Selection | None = None,
    exclude: Selection | None = None,
    thresholds: Thresholds | None = None,
    trace_nonfinite: bool = False,
    layer_scalars: bool | Sequence[str] = False,
    histograms: bool = False,
    history: int = 512,
    sinks: Sequence[Sink] = (),
    on_finding: Callable[[Finding], None] | None = None,
) -> Watcher:
    """Watch every update of ``model``; the training loop stays as it is.

    Args:
        model: a module, or ``{name: module}`` for several (a GAN).
        optimizer: one, several, or None; then those that own the parameters are found when they step.
        log_dir: where TensorBoard files go; None writes nothing.
        clip: a number (global L2 norm), ``"auto"``, a policy from ``gradwatch.clip``, or None. A total norm that is not
            finite is never scaled.
        on_nonfinite: ``"report"`` never syncs with the device. ``"skip"`` makes no update from a step whose gradients
            or loss are not finite, ``"raise"`` raises ``NonFiniteError`` before it; both read one flag a step. Where a
            scaler decides about updates, both leave that to it.
        scaler: the loop's ``torch.amp.GradScaler``. Updates that it leaves out are then counted as skipped, and its
            overflows are a finding only where they persist. Give ``observe_loss`` the loss before scaling.
        find_loss: take the scalar that ``backward()`` is called on as the loss of the update, unless ``observe_loss``
            was called for it. Several that an update is made of are averaged.
        recover: ``gradwatch.Rewind()`` lets the run save itself: it leaves out an update that is not finite, and goes
            back to an earlier, healthy state where that is not enough or gradients explode. It reads one flag a step.
        black_box: a path, or ``gradwatch.BlackBox(path, …)``: keep the last steps, and write them to that file once one
            fails, so that ``gradwatch replay`` can run it again.
        log_every_n_steps: how often a row is written, in updates of each optimizer.
        include: globs over parameter names, or ``callable(name, parameter)``; None takes all.
        exclude: the same, for what is left out of them.
        thresholds: what counts as sick; the defaults need no scale.
        trace_nonfinite: observe what every module is given and returns, so that a ``nonfinite`` finding names the one
            that made it. Compiled and scripted modules are left out.
        layer_scalars: names of per-layer TensorBoard tags to write besides the packed rows; True all eight, False none.
        histograms: also write histograms of gradients and weights, of at most 4,096 entries each.
        history: how many steps ``Watcher.history`` holds.
        sinks: further sinks, see ``gradwatch.Sink``.
        on_finding: called with each finding when it is raised, in the training thread.

    Raises:
        TypeError, ValueError: for an argument that makes no sense, naming it, what was found and what to do.
        NonFiniteError, RecoveryError: later, out of ``optimizer.step()``, as ``on_nonfinite`` and ``recover`` say.

    Examples:
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with gradwatch.watch(model, optimizer, clip=1.0) as watcher:
        ...     for _ in range(3):
        ...         loss = model(torch.ones(2, 4)).square().mean()
        ...         watcher.observe_loss(loss)
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> watcher.findings
        []
    """
    _refuse_engines(model.values() if isinstance(model, Mapping) else [model])
    options: Options = {
        "clip": clip,
        "on_nonfinite": on_nonfinite,
        "find_loss": find_loss,
        "recover": recover,
        "black_box": black_box,
        "log_every_n_steps": log_every_n_steps,
        "thresholds": thresholds,
        "layer_scalars": layer_scalars,
        "histograms": histograms,
        "history": history,
        "on_finding": on_finding,
    }
    loop = loop_of_model(
        model,
        optimizer,
        log_dir=log_dir,
        scaler=scaler,
        include=include,
        exclude=exclude,
        trace_nonfinite=trace_nonfinite,
        sinks=sinks,
        **options,
    )
    return Watcher(loop)


def watch_tensors(
    tensors: Mapping[str, Tensor],
    *,
    log_dir: str | Path | None = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    sinks: Sequence[Sink] = (),
    **options: Unpack[Options],
) -> Watcher:
    """Watch bare tensors whose gradients are computed by hand.

    Hand the gradients over before each update: ``watcher.step(grads={"w1": g1}, loss=loss)``. With ``clip`` they are
    clipped in place. Under ``on_nonfinite="skip"`` nobody can skip for you: see ``watcher.history["skipped"]``.
    The tensors must be updated in place, since it is these objects that are watched.

    Args:
        tensors: ``{name: tensor}``, from input to output. The keywords are those of ``watch``.

    Raises:
        TypeError, ValueError: as ``watch``.

    Examples:
        >>> w = torch.ones(3)
        >>> with gradwatch.watch_tensors({"w": w}) as watcher:
        ...     for _ in range(3):
        ...         watcher.step(grads={"w": 2 * w}, loss=w.square().sum())
        ...         w -= 0.1 * 2 * w
        >>> watcher.history["grad_norm"].shape
        (3, 1)
    """
    loop = loop_of_tensors(
        tensors, log_dir=log_dir, include=include, exclude=exclude, sinks=sinks, measures_ends=False, **options
    )
    return Watcher(loop)


def loop_of_model(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    log_dir: str | Path | None = None,
    scaler: GradScaler | None = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    trace_nonfinite: bool = False,
    sinks: Sequence[Sink] = (),
    advises: bool = True,
    adds_losses: bool = False,
    is_dense_at_first: bool = False,
    **options: Unpack[Options],
) -> WatchedLoop:
    """Return the loop of the ``Watcher`` that ``watch`` returns for the same keywords; for integrations.

    Args:
        advises, adds_losses, is_dense_at_first: as for ``WatchedLoop``; all else as for ``watch``.

    Raises:
        TypeError, ValueError: as ``watch``.
    """
    layers = layer_table.of_model(model, include, exclude)
    optimizers = None if optimizer is None else _listed(optimizer)
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise TypeError(f"scaler: expected torch.amp.GradScaler, found {type(scaler).__name__}.")
    refuse_bad_options({**DEFAULTS, **options})
    if optimizers is not None:
        optimizers = [owner for each in optimizers for owner in _owners_of(each, layers)]
    models = {"": model} if isinstance(model, nn.Module) else model
    for root in models.values():
        _close_earlier(root)
    loop = WatchedLoop(
        layers,
        [*_tensorboard(log_dir, options.get("layer_scalars", False)), *sinks],
        options,
        models=models,
        optimizers=optimizers,
        scaler=scaler,
        trace_nonfinite=trace_nonfinite,
        advises=advises,
        adds_losses=adds_losses,
        is_dense_at_first=is_dense_at_first,
    )
    for root in models.values():
        _loops[root] = weakref.ref(loop)
    return loop


def _refuse_engines(models: Iterable[object]) -> None:
    """
    Raises:
        TypeError: for an engine of DeepSpeed, which need not be installed here.
    """
    for model in models:
        if any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__):
            raise TypeError(
                f"watch(model): expected a module whose gradients are in parameter.grad, found {type(model).__name__}. "
                "ZeRO of DeepSpeed keeps gradients in buffers of its own, so nothing could be measured. Shard the "
                "model with torch.distributed.fsdp.fully_shard to have it watched, or train without gradwatch."
            )


def _owners_of(optimizer: Optimizer, layers: Layers) -> list[Optimizer]:
    """Return ``optimizer`` if it owns a watched parameter, or those inside it that do.

    Raises:
        ValueError: where none does.
    """
    if _owns_any(optimizer, layers):
        return [optimizer]
    inside = [each for each in optimizers_within(optimizer) if _torch.step_hooks_of(each) is not None]
    owners = [each for each in inside if _owns_any(each, layers)]
    if owners:
        return owners
    raise ValueError(
        f"optimizer: this {type(optimizer).__name__} owns none of the {len(layers)} watched parameters. "
        "Give it model.parameters() of the model that is watched, as that is now: a copy, a wrapper or a new "
        "layer has other parameters. Parameters that are in no module, such as those of stack_module_state, "
        "are watched by gradwatch.watch_tensors."
    )


def _owns_any(optimizer: Optimizer, layers: Layers) -> bool:
    return any(layers.column(parameter) is not None for parameter in parameters_of(optimizer))


def loop_of_tensors(
    tensors: Mapping[str, Tensor],
    *,
    log_dir: str | Path | None = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
    sinks: Sequence[Sink] = (),
    measures_ends: bool = True,
    advises: bool = True,
    is_dense_at_first: bool = False,
    **options: Unpack[Options],
) -> WatchedLoop:
    """Return the loop of the ``Watcher`` that ``watch_tensors`` returns for the same keywords; for integrations.

    Args:
        measures_ends, advises, is_dense_at_first: as for ``WatchedLoop``; all else as for ``watch_tensors``.

    Raises:
        TypeError, ValueError: as ``watch_tensors``.
    """
    if options.get("recover") is not None:
        raise ValueError(
            "watch_tensors(recover=…): nobody sees when bare tensors are updated, so nothing could be put back then. "
            "Put them into a module as parameters, give them to a torch.optim optimizer, and call watch()."
        )
    layers = layer_table.of_tensors(tensors, include, exclude)
    scalars = options.get("layer_scalars", False)
    files = _tensorboard(log_dir, scalars)
    return WatchedLoop(
        layers,
        [*files, *sinks],
        options,
        measures_ends=measures_ends,
        advises=advises,
        is_dense_at_first=is_dense_at_first,
    )


def _tensorboard(log_dir: str | Path | None, layer_scalars: bool | Sequence[str]) -> list[Sink]:
    if log_dir is None:
        return []
    from gradwatch.sinks.tensorboard import TensorBoard  # a fifth of a second, for those who write files

    return [TensorBoard(log_dir, layer_scalars)]


def _listed(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    given = [optimizer] if not isinstance(optimizer, Sequence) else list(optimizer)
    return [found for each in given for found in _with_hooks(each)]


def _with_hooks(optimizer: object, around: tuple[object, ...] = ()) -> list[Optimizer]:
    """Return the optimizers whose steps can be hooked: the one given, or those inside a wrapper that has no hooks.

    Accelerate's wrapper is an optimizer by type, and leaves ``Optimizer.__init__`` out; others are none by type.
    Fabric's shows the hooks of the one inside, which is the one that steps and that a scaler knows.
    """
    if isinstance(optimizer, Optimizer) and _torch.step_hooks_of(optimizer) is not None:
        return _sharing_its_hooks(optimizer) or [optimizer]
    around = (*around, optimizer)
    wrapped = _held_by(optimizer, around)
    if not wrapped:
        found = type(optimizer).__name__
        why = f"{found} whose __init__ does not call super().__init__()" if isinstance(optimizer, Optimizer) else found
        raise TypeError(
            f"optimizer: expected torch.optim.Optimizer, or several, found {why}. Leave optimizer out: whatever "
            "torch.optim optimizer steps is then found as it steps. What updates weights without one calls "
            "watcher.step() before each update."
        )
    return [found for each in wrapped for found in _with_hooks(each, around)]


def _held_by(wrapper: object, around: tuple[object, ...]) -> list[object]:
    """Return what ``wrapper`` may step, but none of those ``around``: some hold themselves."""
    held = optimizers_inside(wrapper) or _wrapped_in(wrapper)
    return [each for each in held if all(each is not outer for outer in around)]


def _sharing_its_hooks(wrapper: Optimizer) -> list[Optimizer]:
    hooks = _torch.step_hooks_of(wrapper)
    return [each for each in optimizers_inside(wrapper) if _torch.step_hooks_of(each) is hooks]


def _wrapped_in(wrapper: object) -> list[object]:
    """Return what ``wrapper`` steps, if that is no optimizer by type."""
    wrapped = getattr(wrapper, "optimizer", None)
    return [wrapped] if hasattr(wrapped, "step") else []


def _close_earlier(model: nn.Module) -> None:
    """Close the watcher that ``model`` has, if it has one, and say so."""
    earlier = _loops.get(model, lambda: None)()
    if earlier is not None and not earlier.is_closed:
        logger.warning("gradwatch: this model is already watched; the earlier watcher is closed.")
        with contextlib.suppress(Exception):
            earlier.close()
