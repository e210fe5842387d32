"""Run a random program, bare or watched, and keep every bit of what it leaves."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import logging
import pickle
import random
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import gradwatch
from benchmarks.endurance.programs.networks import NETWORKS, SHAPE, first_tensor
from benchmarks.endurance.programs.own_state import FEED, OWN_STATE, Journal, Own, left_of
from benchmarks.endurance.programs.program import Program

__all__ = ["Outcome", "run"]

STEPS, SICK = 12, 7
MAX_NORM = 0.05  # most steps exceed it
FAULT = "a fault in gradwatch itself"
PLAIN_TYPES = bool | int | float | str | bytes | type(None)

Outcome = dict[str, bytes]
"""What a program leaves, by name."""


class Whole(nn.Module):
    """A network with parts of own state in front, and perhaps a checkpoint around it."""

    def __init__(self, network: nn.Module, own: list[nn.Module], program: Program) -> None:
        super().__init__()
        self.own, self.network = nn.ModuleList(own), network
        self.checkpoint = next((each for each in program.names("around") if "checkpoint" in each), "")

    def forward(self, x: Tensor) -> Any:
        for part in self.own:
            x = part(x)
        if not self.checkpoint:
            return self.network(x)
        is_reentrant = self.checkpoint.startswith("reentrant")
        if is_reentrant and not x.requires_grad:
            x = x.detach().requires_grad_()  # without that it has no gradient
        return checkpoint(self.network, x, use_reentrant=is_reentrant)


class Trust(torch.optim.SGD):
    """An optimizer of the user's that counts its updates, and draws."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.made = getattr(self, "made", 0) + 1
        random.random()
        return super().step(closure)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda of: torch.optim.SGD(of, 0.05),
    "momentum": lambda of: torch.optim.SGD(of, 0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda of: torch.optim.Adam(of, 0.01),
    "adamw foreach": lambda of: torch.optim.AdamW(of, 0.01, foreach=True),
    "adamw fused": lambda of: torch.optim.AdamW(of, 0.01, fused=True),
    "amsgrad": lambda of: torch.optim.Adam(of, 0.01, amsgrad=True, foreach=False),
    "rmsprop": lambda of: torch.optim.RMSprop(of, 0.005, centered=True),
    "adagrad": lambda of: torch.optim.Adagrad(of, 0.05),
    "adadelta": lambda of: torch.optim.Adadelta(of, 0.5),
    "nadam": lambda of: torch.optim.NAdam(of, 0.01),
    "radam": lambda of: torch.optim.RAdam(of, 0.01),
    "rprop": lambda of: torch.optim.Rprop(of, 0.01),
    "asgd": lambda of: torch.optim.ASGD(of, 0.05),
    "adamax": lambda of: torch.optim.Adamax(of, 0.01),
    "lbfgs": lambda of: torch.optim.LBFGS(of, 0.1, max_iter=4, history_size=3),
    "own": lambda of: Trust(of, 0.05),
}
SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda of: lr_scheduler.StepLR(of, 3, 0.5),
    "one cycle": lambda of: lr_scheduler.OneCycleLR(of, 0.1, total_steps=100, cycle_momentum=False),
    "cosine": lambda of: lr_scheduler.CosineAnnealingLR(of, STEPS),
    "plateau": lambda of: lr_scheduler.ReduceLROnPlateau(of, patience=1),
    "warm-up": lambda of: lr_scheduler.LinearLR(of, 0.1, total_iters=5),
}


def run(program: Program, *, watched: bool) -> tuple[Outcome, list[str]]:
    """Run ``program`` from the begin to the end.

    Returns:
        What it leaves, and what watching has found or said, for people.
    """
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(program.seed)
    said: list[str] = []
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(record=True) as warned, _hearing(said):
        warnings.simplefilter("always")
        training = Training(program, Path(directory))
        training.run(said if watched else None)
        left = training.left()
    left["warnings"] = repr([str(each.message) for each in warned if each.category is UserWarning]).encode()
    return left, said


@contextlib.contextmanager
def _hearing(said: list[str]) -> Iterator[None]:
    """Note in ``said`` the lines that gradwatch logs of faults of its own."""
    handler, logger = logging.Handler(), logging.getLogger("gradwatch")
    handler.emit = lambda record: said.append(_text_of(record))  # type: ignore[method-assign]
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _text_of(record: logging.LogRecord) -> str:
    return logging.Formatter().format(record) if FAULT in record.getMessage() else ""


@dataclass
class Training:
    """A program while it runs.

    Attributes:
        program: which.
        directory: where it may write.
        journal: what has happened, in order.
        losses: of each step.
        raised: the exception that has ended it.
    """

    program: Program
    directory: Path
    journal: Journal = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    raised: str = ""
    watcher: Any = None

    def __post_init__(self) -> None:
        self.network = self._made_network()
        self.data = [self._batch(step) for step in range(STEPS)]
        self._call_once()
        self.optimizers = self._made_optimizers()
        self.schedules = [
            SCHEDULES[name](optimizer) for name in self.program.names("schedule") for optimizer in self.optimizers
        ]
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if "loop:scaler" in self.program else None
        self.undo = self._hooked()
        self.averaged = AveragedModel(self.network) if "aside:average" in self.program else None
        self.called = self._as_called()

    # what it is made of

    def _made_network(self) -> nn.Module:
        network: nn.Module = NETWORKS[self.program.name("network", "mlp")]()
        own = [OWN_STATE[name](self.journal) for name in self.program.names("own")]
        around = self.program.name("around", "")
        if around == "scripted" and not own:
            return _scripted(network)
        if own or "checkpoint" in around:
            network = Whole(network, own, self.program)
        if around == "sequential":
            network = nn.Sequential(network)
        if around == "wrapper":
            network = nn.ModuleDict({"of": network})
        return network

    def _as_called(self) -> Callable[[Tensor], Any]:
        """Return what the loop calls."""
        network: Any = self.network["of"] if isinstance(self.network, nn.ModuleDict) else self.network
        for backend in self.program.names("compile"):
            return torch.compile(network, backend=backend)
        if self.program.name("around", "") == "functional":
            return lambda x: torch.func.functional_call(network, dict(network.named_parameters()), (x,))
        return network

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        x, target = torch.randn(8, *SHAPE), torch.randn(8)
        for sick in self.program.names("sick") if step == SICK else ():
            x, target = _spoilt(x, target, sick)
        kinds = {parameter.dtype for parameter in self.network.parameters()}
        return (x.to(kinds.pop()), target) if len(kinds) == 1 else (x, target)

    def _call_once(self) -> None:
        """Let lazy layers take their shapes."""
        self._feed()
        with torch.no_grad(), contextlib.suppress(RuntimeError):
            (self.network["of"] if isinstance(self.network, nn.ModuleDict) else self.network)(self.data[0][0])

    def _made_optimizers(self) -> list[Optimizer]:
        parameters = [each for each in self.network.parameters() if each.requires_grad]
        name = self.program.name("optimizer", "sgd")
        if name == "two":
            halves = parameters[::2], parameters[1::2] or [torch.zeros(1, requires_grad=True)]
            return [OPTIMIZERS["momentum"](halves[0]), OPTIMIZERS["adam"](halves[1])]
        if name == "groups":
            return [torch.optim.AdamW([{"params": [each], "lr": 0.01 / (1 + n)} for n, each in enumerate(parameters)])]
        return [OPTIMIZERS[name](parameters)]

    def _hooked(self) -> list[Any]:
        """Put the user's own hooks there; return what removes those that are on all modules."""
        part = next(each for each in self.network.modules() if not list(each.children()))
        weight = next(each for each in self.network.parameters() if each.requires_grad)
        note = self._note
        step_hooks = [each.register_step_pre_hook for each in self.optimizers]
        after_hooks = [each.register_step_post_hook for each in self.optimizers]
        everywhere = nn.modules.module.register_module_forward_hook
        hooks: dict[str, Callable[[], Any]] = {
            "before forward": lambda: part.register_forward_pre_hook(note("before forward")),
            "after forward": lambda: part.register_forward_hook(note("after forward")),
            "backward": lambda: self.network.register_full_backward_hook(note("backward")),
            "before backward": lambda: self.network.register_full_backward_pre_hook(note("before backward")),
            "gradient": lambda: weight.register_hook(note("gradient")),
            "accumulated": lambda: weight.register_post_accumulate_grad_hook(note("accumulated")),
            "before step": lambda: [each(note("before step")) for each in step_hooks],
            "after step": lambda: [each(note("after step")) for each in after_hooks],
            "every forward": lambda: everywhere(note("every forward")),
            "changes gradients": lambda: weight.register_hook(lambda gradient: gradient * 0.5),
            "changes outputs": lambda: self.network.register_forward_hook(lambda _, __, out: _shifted(out)),
        }
        made = {
            name: hooks[name]()
            for name in self.program.names("hook")
            if not isinstance(self.network, torch.jit.ScriptModule)
        }
        return [made["every forward"].remove] if "every forward" in made else []

    def _note(self, what: str) -> Callable[..., None]:
        def hook(*given: Any) -> None:
            self.journal.append(f"{what} {[_figure(each) for each in given if isinstance(each, Tensor)]}")

        return hook

    # how it runs

    def run(self, said: list[str] | None) -> None:
        """Train, watched if ``said`` takes what was found; an exception that ends the training is kept."""
        is_late = "setting:late" in self.program
        try:
            if said is not None and not is_late:
                self._watch()
            for step in range(STEPS):
                if said is not None and is_late and step == 3:
                    self._watch()
                self._in_thread(functools.partial(self._step, step))
        except Exception as error:
            self.raised = f"{type(error).__name__}: {error}"
        finally:
            if self.watcher is not None:
                self.watcher.close()
                said += [f"found {each.kind}: {each.cause}" for each in self.watcher.findings]  # type: ignore[operator]
            for undo in self.undo:
                undo()

    def _in_thread(self, act: Callable[[], None]) -> None:
        if "loop:thread" not in self.program:
            return act()
        raised: list[Exception] = []

        def caught() -> None:
            try:
                act()
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=caught)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return None

    def _watch(self) -> None:
        model = {"net": self.network} if "setting:by name" in self.program else self.network
        optimizer: Any = self.optimizers if len(self.optimizers) > 1 else self.optimizers[0]
        given = None if "setting:no optimizer" in self.program else optimizer
        keywords = _keywords(self.program, self.directory, self.journal)
        if self.scaler is not None and "setting:scaler known" in self.program:
            keywords["scaler"] = self.scaler
        if "setting:twice" in self.program:
            gradwatch.watch(model, given)
        self.watcher = gradwatch.watch(model, given, **keywords)

    def _step(self, step: int) -> None:
        for optimizer in self.optimizers:
            if "sick:explode" in self.program and step == SICK:
                for group in optimizer.param_groups:
                    group["lr"] *= 1e6
        if "sick:nan weight" in self.program and step == SICK:
            with torch.no_grad():
                next(self.network.parameters()).flatten()[:1].fill_(torch.nan)
        self._before(step)
        needs_closure = "loop:closure" in self.program or "optimizer:lbfgs" in self.program
        if needs_closure and self.scaler is None:
            for optimizer in self.optimizers:
                optimizer.step(functools.partial(self._closure, step))  # type: ignore[arg-type]
        else:
            self._plain_step(step)
        for schedule in self.schedules:
            schedule.step(*([float(self.losses[-1])] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))
        self._aside(step)

    def _closure(self, step: int) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return self._forward_and_backward(step)

    def _plain_step(self, step: int) -> None:
        zero = self.program.name("zero", "before")
        if zero == "before":
            self._zero()
        self._forward_and_backward(step)
        if "loop:accumulate" in self.program and step % 2:
            return
        if self._may_update():
            for optimizer in self.optimizers:
                if self.scaler is not None:
                    self.scaler.step(optimizer)
                else:
                    optimizer.step()
        if self.scaler is not None:
            self.scaler.update()
        if zero == "after":
            self._zero()
        elif zero == "keep":
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=False)
        elif zero == "by the module":
            self.network.zero_grad()

    def _zero(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _may_update(self) -> bool:
        """Clip, and check, as the program does by itself; return whether it makes the update."""
        gradients = [each for each in self.network.parameters() if each.grad is not None]
        clips = self.program.is_compared_with_torchs_clipping and self.watcher is None
        if clips or "loop:clip by hand" in self.program:
            if self.scaler is not None:
                for optimizer in self.optimizers:
                    self.scaler.unscale_(optimizer)
            owned = [
                each for optimizer in self.optimizers for group in optimizer.param_groups for each in group["params"]
            ]
            torch.nn.utils.clip_grad_norm_(owned, MAX_NORM)
        checks = any(each.startswith("checks itself") for each in self.program.names("loop"))
        if checks and self.scaler is None:
            finite = [torch.isfinite(each.grad.to_dense()).all() for each in gradients]  # type: ignore[union-attr]
            if not all(finite):
                self._zero()
                return False
        return True

    def _forward_and_backward(self, step: int) -> Tensor:
        loss = self._loss(step)
        if self.watcher is not None and "setting:observe" in self.program:
            self.watcher.observe_loss(loss)
        self.losses.append(loss.detach().clone())
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        if "loop:hand" in self.program:
            parameters = [each for each in self.network.parameters() if each.requires_grad]
            for each, gradient in zip(
                parameters, torch.autograd.grad(scaled, parameters, allow_unused=True), strict=True
            ):
                each.grad = gradient
            return loss
        if "loop:several" in self.program:
            (scaled * 0.5).backward(retain_graph=True)
            (scaled * 0.5).backward()
            return loss
        scaled.backward(retain_graph="loop:retain" in self.program)
        if "loop:retain" in self.program:
            scaled.backward()
        return loss

    def _feed(self) -> None:
        for part in self.network.modules():
            if isinstance(part, Own) and FEED in self.program.names("own") and hasattr(part.state, "put"):
                part.state.put(0.1)

    def _output(self, x: Tensor) -> Tensor:
        self._feed()
        try:
            return first_tensor(self.called(x)).float()
        except RuntimeError as error:
            if "says the part" not in str(error):
                raise
            self.journal.append("tried again")
            self._feed()  # what it waits for was taken before it raised
            return first_tensor(self.called(x)).float()

    def _loss(self, step: int) -> Tensor:
        x, target = self.data[step]
        needs_gradient = "loop:penalty" in self.program
        if needs_gradient:
            x = x.detach().requires_grad_()
        context = torch.autocast("cpu", torch.bfloat16) if "loop:autocast" in self.program else contextlib.nullcontext()
        with context:
            output = self._output(x)
        loss = (output.flatten(1).mean(1) - target).square().mean()
        if needs_gradient:
            (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
            loss = loss + 0.1 * slope.float().square().sum()
        for sick in self.program.names("sick") if step == SICK else ():
            loss = _made_sick(loss, output, sick)
        return loss

    def _before(self, step: int) -> None:
        if "loop:anomaly" in self.program:
            torch.autograd.set_detect_anomaly(True, check_nan=False)
        if "aside:draws" in self.program:
            self.journal.append(f"{random.random()} {np.random.random()} {float(torch.rand(()))}")

    def _aside(self, step: int) -> None:
        torch.autograd.set_detect_anomaly(False)
        asides = self.program.names("aside")
        x = self.data[0][0]
        for name in asides if step % 4 == 2 else ():
            _ASIDES[name](self, x, step)
        if self.watcher is not None and "setting:reads" in self.program:
            repr(self.watcher.findings), self.watcher.history, self.watcher.flush()
        if self.watcher is not None and "setting:state" in self.program and step == 4:
            self._resume()

    def _resume(self) -> None:
        """Go on with another watcher, as a run that goes on from a checkpoint does."""
        state = pickle.loads(pickle.dumps(self.watcher.state_dict()))
        self.watcher.close()
        self._watch()
        self.watcher.load_state_dict(state)

    # what it leaves

    def left(self) -> Outcome:
        """Return every bit of what it leaves."""
        network = self.network
        parameters = [each for each in network.parameters() if not nn.parameter.is_lazy(each)]
        tables = [_hooks_on(each) for each in network.modules()]
        owned = [sorted(vars(each)) for each in network.modules()]
        return {
            "weights": b"".join(map(bits_of, parameters)),
            "buffers": b"".join(bits_of(each) for each in network.buffers() if not nn.parameter.is_lazy(each)),
            "gradients": b"".join(b"none" if each.grad is None else bits_of(each.grad) for each in parameters),
            "optimizers": bits_of([each.state_dict() for each in self.optimizers]),
            "attributes of optimizers": repr(
                [sorted(set(vars(each)) - {"_gradwatch"}) for each in self.optimizers]
            ).encode(),
            "losses": bits_of(self.losses),
            "journal": "\n".join(self.journal).encode(),
            "own state": bits_of(left_of(network)),
            "random": bits_of([torch.get_rng_state(), random.getstate(), np.random.get_state()]),
            "raised": self.raised.encode(),
            "hooks left": repr(tables).encode(),
            "attributes left": repr(owned).encode(),
            "averaged": bits_of([] if self.averaged is None else list(self.averaged.parameters())),
            "schedules": bits_of([each.state_dict() for each in self.schedules]),
            "scale": bits_of([] if self.scaler is None else self.scaler.state_dict()),
            "modes": repr([torch.is_grad_enabled(), torch.is_anomaly_enabled(), gc.isenabled()]).encode(),
            "training": repr([each.training for each in network.modules()]).encode(),
        }


def _hooks_on(module: nn.Module) -> list[int]:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return [len(getattr(module, name)) for name in tables]


def _scripted(network: nn.Module) -> nn.Module:
    """Return ``network`` as TorchScript, or as it is where that cannot be."""
    with contextlib.suppress(Exception):
        made = torch.jit.script(network)
        return made if hasattr(made, "forward") else network
    return network


def _spoilt(x: Tensor, target: Tensor, sick: str) -> tuple[Tensor, Tensor]:
    x, target = x.clone(), target.clone()
    if sick in ("nan input", "inf input"):
        x[2, 1] = torch.nan if sick == "nan input" else torch.inf
    elif sick == "nan target":
        target[3] = torch.nan
    elif sick == "zero input":
        x.zero_()
    elif sick == "overflow":
        x *= 1e30
    return x, target


def _made_sick(loss: Tensor, output: Tensor, sick: str) -> Tensor:
    if sick == "log of zero":
        return loss + (output.flatten()[:2] * 0).log().mean()
    if sick == "root of zero":
        return loss + (output.flatten()[:2] * 0).sqrt().mean()
    return loss * torch.inf if sick == "inf loss" else loss


def _shifted(output: Any) -> Any:
    return output + 0.01 if isinstance(output, Tensor) else output


def _figure(tensor: Tensor) -> str:
    return bits_of(tensor.detach().float().to_dense().sum() if tensor.numel() else tensor).hex()


def _keywords(program: Program, directory: Path, journal: Journal) -> dict[str, Any]:
    """Return the keywords of ``watch`` that a program asks for."""
    sinks = [gradwatch.Memory(), gradwatch.JsonLines(directory / "rows.jsonl"), gradwatch.Csv(directory / "rows.csv")]
    known: dict[str, dict[str, Any]] = {
        "log_dir": {"log_dir": directory / "runs"},
        "trace": {"trace_nonfinite": True},
        "black box": {"black_box": directory / "step.pt"},
        "include": {"include": ["*weight*"]},
        "exclude": {"exclude": ["*bias*"]},
        "every step": {"log_every_n_steps": 1},
        "seldom": {"log_every_n_steps": 10_000},
        "histograms": {"histograms": True, "log_dir": directory / "runs"},
        "layer scalars": {"layer_scalars": True, "log_dir": directory / "runs"},
        "short history": {"history": 2},
        "sinks": {"sinks": sinks},
        "on_finding": {"on_finding": lambda finding: None},
        "loss not found": {"find_loss": False},
        "skip": {"on_nonfinite": "skip"},
        "clip": {"clip": MAX_NORM},
        "clip.": {"clip": MAX_NORM},
        "rewind": {"recover": gradwatch.Rewind(every=2, confirm=2)},
    }
    keywords: dict[str, Any] = {}
    for name in program.names("setting"):
        keywords.update(known.get(name, {}))
    return keywords


def _evaluated(training: Training, x: Tensor, context: Callable[[], Any]) -> None:
    training.network.eval()
    with context():
        training.losses.append(training._output(x).mean().clone())
    training.network.train()


def _copied(training: Training, x: Tensor, _: int) -> None:
    training._feed()
    other = copy.deepcopy(training.network)
    other = other["of"] if isinstance(other, nn.ModuleDict) else other
    with torch.no_grad():
        training.losses.append(first_tensor(other(x)).mean())


def _saved(training: Training, x: Tensor, _: int) -> None:
    if any(True for part in training.network.modules() if isinstance(part, Own)):
        return
    training._feed()
    file = io.BytesIO()
    torch.save(training.network, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    other = other["of"] if isinstance(other, nn.ModuleDict) else other
    with torch.no_grad():
        training.losses.append(first_tensor(other(x)).mean())


def _frozen(training: Training, _: Tensor, step: int) -> None:
    weight = next(training.network.parameters())
    weight.requires_grad_(not weight.requires_grad)
    weight.grad = None


def _clamped(training: Training, *_: Any) -> None:
    with torch.no_grad():
        for each in training.network.parameters():
            each.clamp_(-1, 1)


_ASIDES: dict[str, Callable[[Training, Tensor, int], Any]] = {
    "evaluate": lambda training, x, _: _evaluated(training, x, torch.no_grad),
    "inference": lambda training, x, _: _evaluated(training, x, torch.inference_mode),
    "copy": _copied,
    "average": lambda training, *_: training.averaged.update_parameters(training.network),
    "reload": lambda training, *_: training.network.load_state_dict(copy.deepcopy(training.network.state_dict())),
    "save": _saved,
    "freeze": _frozen,
    "new group": lambda training, *_: training.optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(2))]}),
    "clamp": _clamped,
    "collect": lambda *_: gc.collect(),
    "forward twice": lambda training, x, _: training._output(x),
    "draws": lambda *_: None,
}


def bits_of(thing: Any) -> bytes:
    """Return every bit of tensors, arrays and plain values, and of what holds them."""
    if isinstance(thing, Tensor):
        whole = thing.detach().to_dense().contiguous().reshape(-1)
        return f"{thing.dtype}{tuple(thing.shape)}".encode() + whole.view(torch.uint8).numpy().tobytes()
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype}{thing.shape}".encode() + thing.tobytes()
    if isinstance(thing, dict):
        return b"{" + b",".join(repr(key).encode() + b":" + bits_of(value) for key, value in thing.items()) + b"}"
    if isinstance(thing, list | tuple):
        return b"[" + b",".join(map(bits_of, thing)) + b"]"
    return repr(thing).encode() if isinstance(thing, PLAIN_TYPES) else type(thing).__name__.encode()
