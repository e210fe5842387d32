"""Watching changes nothing, leaves nothing behind, and no fault of gradwatch's own stops anyone's training.

**Which faults are tried.** Every function that training calls is made to fail. Of the product with acts, with loops and
with "once or always", those pairs are tried that can make a difference:

- Each function fails once and always where the loop asks for clipping.
- Rooms that decide about an update or reach it (``DECIDE``) know what was asked for and in which loop: each of their
  functions fails under each act. The other rooms only measure: theirs fail under ``skip`` or ``raise``, in turn.
- ``hooks`` tells the kinds of loops apart: its functions fail in each. The ``watcher`` is reached from there: its
  functions fail in two kinds each, in turn. Those of other rooms fail in one kind each, in turn.

``make test-long`` sets GRADWATCH_ALL_FAULTS, and tries the whole product.
"""

import functools
import gc
import inspect
import itertools
import logging
import os
import random
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import gradwatch
from gradwatch import Memory, Thresholds
from gradwatch.clip import Policy
from gradwatch.explain.forked_child import ChildFailedError
from gradwatch.sinks.csv import Csv
from gradwatch.sinks.jsonl import JsonLines
from gradwatch.sinks.log import Log
from gradwatch.sinks.tensorboard import TensorBoard
from gradwatch.watcher.open_loops import open_loops

STEPS = 12
EVERYTHING = {"histograms": True, "layer_scalars": True, "log_every_n_steps": 6}


@pytest.fixture(autouse=True)
def _no_watcher_outlives_its_test():
    yield
    for loop in list(open_loops):
        loop.close()


# what is trained


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))


class Ailing(nn.Sequential):
    """A model in which a dead unit and flat entries can be found; ``Thresholds`` make findings of the other kinds."""

    def __init__(self):
        super().__init__(
            nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(),
            nn.Linear(8, 1),
        )  # fmt: skip
        with torch.no_grad():
            self[0].bias[0] = -100
            self[3].bias.fill_(5)


class Cnn(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(8, 1),
        )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.recurrent, self.head = kind(2, 5, num_layers=2, dropout=0.2, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.recurrent(x.reshape(-1, 3, 2))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(2, 1, dim_feedforward=6, dropout=0.2, batch_first=True)
        self.head = nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.block(x.reshape(-1, 3, 2)).mean(1))


class Embedded(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 4, sparse=sparse), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.embedding((x * 2 + 5).long().clamp(0, 9)).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()).tanh())


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.norm = nn.Linear(6, 1), nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.used(self.norm(x))


MODELS = {
    "mlp": Mlp,
    "cnn": Cnn,
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "transformer": Transformer,
    "embedding": lambda: Embedded(sparse=False),
    "sparse embedding": lambda: Embedded(sparse=True),
    "tied": Tied,
    "unused": Unused,
}
AILING = {"ailing": Ailing}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),  # unstable asks for updates as large as these
    "fused adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5),
}
TAKES_SPARSE = {"sgd"}  # of torch's optimizers above; the others refuse sparse gradients
ZOO = [
    (model, optimizer)
    for model, optimizer in itertools.product(MODELS, OPTIMIZERS)
    if model != "sparse embedding" or optimizer in TAKES_SPARSE
]


def made(model, optimizer):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    model = {**MODELS, **AILING}[model]()
    return model, OPTIMIZERS[optimizer](model.parameters())


def train(model, optimizer, steps=STEPS, watcher=None, spoil=(), lose=(), seesaw=(1, 1)):
    """A plain loop that draws from all three random generators; ``spoil`` steps see a NaN, ``lose`` observe one.

    The observed losses are multiplied by the two factors of ``seesaw`` in turn.
    """
    for step in range(steps):
        x = torch.randn(8, 6) + random.random() + float(np.random.rand())
        if step in spoil:
            x[0, 0] = torch.nan
        loss = (model(x) - 1).square().mean()
        if watcher is not None:
            watcher.observe_loss(loss * (torch.nan if step in lose else seesaw[step % 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def left_by(model, optimizer):
    """Everything that a run leaves behind."""
    return {
        "weights and buffers": model.state_dict(),
        "gradients": [p.grad for p in model.parameters()],
        "optimizer": optimizer.state_dict(),
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": np.random.get_state(),
        "python's random state": random.getstate(),
    }


def bits(value):
    """Plain values of which equality means equality in every bit, NaN included."""
    if isinstance(value, torch.Tensor):
        dense = value.detach().coalesce() if value.is_sparse else value.detach()
        parts = [dense.indices(), dense.values()] if value.is_sparse else [dense]
        return (str(value.dtype), tuple(value.shape), [part.numpy().tobytes() for part in parts])
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: bits(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [bits(entry) for entry in value]
    return value


def assert_same_bits(left, expected):
    for what in expected:
        assert bits(left[what]) == bits(expected[what]), what


# (a) nothing is changed


@pytest.mark.slow
@pytest.mark.parametrize(("model_name", "optimizer_name"), ZOO)
def test_a_watched_run_leaves_every_bit_that_an_unwatched_one_leaves(model_name, optimizer_name, tmp_path):
    bare, bare_optimizer = made(model_name, optimizer_name)
    train(bare, bare_optimizer)
    expected = left_by(bare, bare_optimizer)
    model, optimizer = made(model_name, optimizer_name)
    with gradwatch.watch(model, optimizer, log_dir=tmp_path, sinks=[Memory()], **EVERYTHING) as watcher:
        train(model, optimizer, watcher=watcher)
    assert_same_bits(left_by(model, optimizer), expected)
    assert len(watcher.history) == STEPS
    assert list(tmp_path.glob("*tfevents*"))


@pytest.mark.parametrize("model_name", MODELS)
def test_reading_while_training_changes_no_bit_either(model_name):
    bare, bare_optimizer = made(model_name, "sgd")
    train(bare, bare_optimizer, spoil=(9,))
    expected = left_by(bare, bare_optimizer)
    model, optimizer = made(model_name, "sgd")
    read = []
    with gradwatch.watch(model, optimizer, **EVERYTHING) as watcher:
        model.register_forward_hook(lambda *_: read.append((watcher.findings, watcher.state_dict(), repr(watcher))))
        train(model, optimizer, watcher=watcher, spoil=(9,))
    assert len(read) == STEPS
    assert_same_bits(left_by(model, optimizer), expected)


# (b) nothing is left behind


def traces(model, optimizer):
    """Where hooks and attributes could stay: {place: what is there}."""
    module_hooks = [name for name in vars(nn.Module()) if "hook" in name]
    found = {"model": sorted(vars(model)), "optimizer": sorted(vars(optimizer))}
    for path, module in model.named_modules():
        found[f"module {path}"] = sorted(vars(module))
        found |= {f"{name} of {path}": len(getattr(module, name)) for name in module_hooks if getattr(module, name)}
    for path, parameter in model.named_parameters():
        found[f"parameter {path}"] = sorted(vars(parameter))
        found[f"hooks of {path}"] = [parameter._backward_hooks or None, parameter._post_accumulate_grad_hooks or None]
    found |= {name: len(hooks) for name, hooks in vars(optimizer).items() if "hook" in name}
    for module in (sys.modules["torch.optim.optimizer"], torch.nn.modules.module, torch.autograd.graph):
        found |= {
            name: len(hooks) for name, hooks in vars(module).items() if "hooks" in name and hasattr(hooks, "items")
        }
    found["step"] = optimizer.step.__func__
    return found


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1, STEPS])
@pytest.mark.parametrize("is_given", [True, False], ids=["optimizer given", "optimizer found"])
@pytest.mark.parametrize("model_name", MODELS)
def test_closing_leaves_no_hook_attribute_or_thread(model_name, is_given, steps, tmp_path):
    bare, bare_optimizer = made(model_name, "sgd")
    train(bare, bare_optimizer, steps)
    model, optimizer = made(model_name, "sgd")
    threads = threading.enumerate()
    before = traces(model, optimizer)
    given = optimizer if is_given else None
    watcher = gradwatch.watch(model, given, log_dir=tmp_path, **EVERYTHING)
    assert traces(model, optimizer) != before
    train(model, optimizer, steps, watcher)
    watcher.close()
    watcher.close()
    assert traces(model, optimizer) == traces(bare, bare_optimizer)
    assert threading.enumerate() == threads
    train(model, optimizer, 2)
    assert len(watcher.history) == steps


def test_closing_gives_a_scaler_its_own_step_back():
    model, optimizer = made("mlp", "sgd")
    scaler = torch.amp.GradScaler("cpu")
    before = sorted(vars(scaler))
    gradwatch.watch(model, optimizer, scaler=scaler).close()
    assert sorted(vars(scaler)) == before


class InterruptedLoopError(Exception):
    pass


@pytest.mark.parametrize("where", ["forward", "backward", "update"])
def test_an_exception_in_the_loop_closes_and_flushes(where, tmp_path):
    model, optimizer = made("mlp", "sgd")
    before = traces(model, optimizer)
    threads = threading.enumerate()
    memory = Memory()

    def interrupt(*_):
        raise InterruptedLoopError

    handle = None

    def loop():
        nonlocal handle
        with gradwatch.watch(model, optimizer, log_dir=tmp_path, sinks=[memory], log_every_n_steps=1) as watcher:
            watchers.append(watcher)
            train(model, optimizer, 5, watcher, spoil=(4,))
            handle = {
                "forward": lambda: model.register_forward_hook(interrupt),
                "backward": lambda: next(model.parameters()).register_hook(interrupt),
                "update": lambda: optimizer.register_step_pre_hook(interrupt),
            }[where]()
            train(model, optimizer, 1, watcher)

    watchers = []
    with pytest.raises(InterruptedLoopError):
        loop()
    handle.remove()
    (watcher,) = watchers
    assert memory.closed
    assert threading.enumerate() == threads
    steps = len(watcher.history)
    assert steps == (6 if where == "update" else 5)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("grad_norm_total")] == list(range(steps))
    assert len(events.Tensors("gradwatch/findings/text_summary")) == 1
    optimizer.zero_grad()
    left = traces(model, optimizer)
    assert {place: left[place] for place in before if "parameter" not in place} == {
        place: before[place] for place in before if "parameter" not in place
    }


# (c) no fault of gradwatch's own stops the training


def is_deep_inside(owner):
    """Whether ``owner`` is of a part that a guard of its own surrounds, whatever is asked for.

    Its functions are made to fail in long runs, which reach them in more ways. All others fail where something is asked
    for, in (d), and in long runs if only those call them.
    """
    return room_of(owner) in ("detect", "explain", "remedies", "sinks", "findings")


LONG = 23
SICK = {
    "spoil": (21, 22),
    "lose": (10,),
    "seesaw": (0.001, 0.005),  # so small that the updates may have made each jump; unstable asks for that
}
SENSITIVE = Thresholds(
    vanishing_norm=1e9,
    exploding_growth=1.001,
    dead_share=1e-9,
    saturated_share=1e-9,
    stalled_update_ratio=1e9,
    unstable_jump=1e-9,
    patience=1,
)
EXEMPT = {
    "Watcher.observe_loss",  # users call it; what it calls is made to fail instead
    "plain_call_of",  # calls the model
    "calling_module",  # says which model is called
    "Guard.__init__",  # at construction
    "NonFiniteError.__init__",  # is what is to be raised
    "_Listened.call",  # calls the model; what else it calls is made to fail instead
    "_QuietLogger.log",  # is what keeps the user's logging handlers from training
    "SinkDispatcher._outlets_of_this_process",  # says which sinks there are: without it their files stay open
    "Operations.__torch_dispatch__",  # runs the model's operations; what else it calls is made to fail instead
    "Operations._noting_faults",  # is what tells a fault of gradwatch's from one of the model's
    "Outlet._work",  # is what keeps a sink's fault from training
    "Outlet._rest",  # lets training go on after it
}
NEEDED = {
    "measure", "norms", "entries", "evenly_spaced", "sample", "relative_change", "count_nonfinite",
    "Measurement.__init__", "Measurement.follow_update", "Measurement.send", "Measurement.report",
    "Diagnosis.observe", "Detectors.observe", "IncidentTracker.advance", "advise",
    "RowBuilder.add", "RowBuilder.build", "History.append",
    "HostCopy.__init__", "HostCopy.read", "OptimizerTrack.columns", "OptimizerTrack.use", "StepReport.__init__",
    *(f"{sink}.{verb}" for sink in ("TensorBoard", "JsonLines", "Memory", "Log")
      for verb in ("write_row", "write_finding")),
    *(f"{detector}.{verb}" for detector in ("NonFiniteLoss", "NonFiniteGradient", "Exploding", "Vanishing", "Dead",
                                            "Saturated", "Stalled", "Unstable") for verb in ("examine", "explain")),
}  # fmt: skip


class InjectedError(Exception):
    """Made to happen inside gradwatch."""


def long_run(log_dir, clip=None, around=lambda loop: loop(), sinks=None):
    """Steps in which every kind of finding opens, under every sink; ``around`` runs the loop."""
    model, optimizer = made("ailing", "adam")
    sinks = [Memory(), JsonLines(log_dir / "run.jsonl")] if sinks is None else sinks
    watcher = gradwatch.watch(
        model, optimizer, clip=clip, log_dir=log_dir, thresholds=SENSITIVE, sinks=sinks, **EVERYTHING
    )
    around(lambda: train(model, optimizer, LONG, watcher, **SICK))
    return watcher, model, optimizer


def undecorated(value):
    """The function inside a property, a static method or a decorator."""
    for inside in ("fget", "func", "__func__"):
        value = getattr(value, inside, None) or value
    return inspect.unwrap(value)


def places():
    """Where a function of gradwatch's stands: {id of its code: (owner, name)}; owners are modules and classes.

    By identity, since the constructors of two dataclasses with the same fields have equal code.
    """
    found = {}
    for module_name in [name for name in sys.modules if name.startswith("gradwatch.")]:
        module = sys.modules[module_name]
        classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module_name]
        for owner, (name, value) in [(each, item) for each in (module, *classes) for item in vars(each).items()]:
            function = undecorated(value)
            if inspect.isfunction(function) and function.__module__ == module_name:
                found[id(function.__code__)] = (owner, name)
    return found


def called_in(run):
    """{name: (owner, name)} of every function of gradwatch's that the loop of ``run(around)`` calls, sorted."""
    known, called = places(), {}

    def note(frame, event, _):
        if event == "call" and id(frame.f_code) in known:
            called.setdefault(known[id(frame.f_code)])

    def under_note(loop):
        gc.collect()
        gc.disable()  # the end of an earlier watcher is no part of this loop
        sys.setprofile(note)
        threading.setprofile(note)  # sinks are called in threads
        try:
            loop()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            gc.enable()

    logger = logging.getLogger("gradwatch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        run(under_note)[0].close()
    finally:
        logger.setLevel(level)
    found = {named(owner, name): (owner, name) for owner, name in sorted(called, key=place_of)}  # threads have no order
    return {name: place for name, place in found.items() if name not in EXEMPT}


def called_in_long_run(clip=None):
    with tempfile.TemporaryDirectory() as directory:
        return called_in(lambda around: long_run(Path(directory), clip, around))


def place_of(place):
    owner, name = place
    return room_of(owner), getattr(owner, "__module__", owner.__name__), named(owner, name)


def room_of(owner):
    return getattr(owner, "__module__", owner.__name__).split(".")[1]


def named(owner, name):
    return f"{owner.__name__}.{name}" if isinstance(owner, type) else name


CALLED = called_in_long_run()
CALLED_BY_CLIPPING = {name: at for name, at in called_in_long_run(clip=1.0).items() if name not in CALLED}


def break_(monkeypatch, owner, name, *, once=False):
    """``owner.name`` raises, ``once`` or always, whoever holds it, however it is decorated; says how often it did."""
    faults = []
    function = undecorated(vars(owner)[name])
    code = function.__code__

    def fail():
        faults.append(name)
        if once:
            function.__code__ = code
        raise InjectedError("made to happen")

    monkeypatch.setitem(function.__globals__, "_fail", fail)
    failing = (lambda *_args, **_kwargs: _fail()).__code__  # noqa: F821
    monkeypatch.setattr(function, "__code__", failing.replace(co_freevars=function.__code__.co_freevars))
    return faults


@functools.cache
def bits_of_an_unwatched_run():
    model, optimizer = made("ailing", "adam")
    train(model, optimizer, LONG, spoil=SICK["spoil"])
    return bits(left_by(model, optimizer))


def assert_still_answers(watcher):
    assert isinstance(watcher.findings, list)
    assert len(watcher.history["grad_norm"]) == len(watcher.history) <= LONG
    assert isinstance(watcher.state_dict(), dict)
    watcher.flush()
    watcher.close()
    watcher.close()


def warnings_of_faults(caplog):
    """Messages about faults of ours, a line each."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "gradwatch" and ("a fault in gradwatch" in record.msg or "it is tried again" in record.msg)
    ]


def assert_warned_once(caplog, faults):
    assert faults, "was not called: nothing was shown"
    warnings = warnings_of_faults(caplog)
    assert warnings
    assert len(set(warnings)) == len(warnings)  # each part of the watcher speaks once
    in_children = [each for each in caplog.records if each.exc_info and each.exc_info[0] is ChildFailedError]
    assert len(warnings) == 1 or len(faults) + len(in_children) > 1  # one fault, one warning


def test_every_kind_of_finding_opens_in_the_run(tmp_path):
    watcher, _, _ = long_run(tmp_path)
    assert {finding.kind for finding in watcher.findings} == set(gradwatch.findings.KINDS)


def test_every_function_that_the_issue_names_is_made_to_fail():
    assert set(CALLED) >= NEEDED
    assert {"scale_", "Measurement.clip_"} <= set(CALLED_BY_CLIPPING)


# (d) what was asked for happens, whatever fails

ACTS = {"clip": {"clip": 1.0}, "skip": {"on_nonfinite": "skip"}, "raise": {"on_nonfinite": "raise"}}
FEW, LOUD = 12, 30.0  # steps; by how much the loss is larger, so that every step is clipped
SICK_STEPS, SICK_LOSSES = (8, 10, 11), (5,)


def acting_run(options=None, around=lambda loop: loop()):
    """(watcher, what a run leaves, its sick steps): with ``options`` watched, else each act is done by hand."""
    model, optimizer = made("mlp", "adam")
    watcher = None if options is None else gradwatch.watch(model, optimizer, thresholds=SENSITIVE, **options)
    raised = []

    def loop():
        for step in range(FEW):
            x = torch.randn(8, 6)
            if step in SICK_STEPS:
                x[0, 0] = torch.nan
            loss = LOUD * (model(x) - 1).square().mean()
            if watcher is not None:
                watcher.observe_loss(loss * (torch.nan if step in SICK_LOSSES else 1))
            optimizer.zero_grad()
            loss.backward()
            try:
                optimizer.step()
            except gradwatch.NonFiniteError as error:
                raised.append((step, error.step))

    around(loop)
    return watcher, bits(left_by(model, optimizer)), raised


@functools.cache
def bits_of_acts_by_hand(act):
    """Everything that the run leaves where the loop itself clips by torch, or skips."""
    model, optimizer = made("mlp", "adam")
    clipped = 0
    for step in range(FEW):
        x = torch.randn(8, 6)
        if step in SICK_STEPS:
            x[0, 0] = torch.nan
        loss = LOUD * (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        total = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        if act == "clip":
            if torch.isfinite(total):  # torch would spread the NaN
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                clipped += int(total > 1)
        elif step in (*SICK_STEPS, *SICK_LOSSES):
            assert step in SICK_LOSSES or not torch.isfinite(total)
            if act == "raise":
                continue
            optimizer.zero_grad()
        optimizer.step()
    assert act != "clip" or clipped >= 5
    return bits(left_by(model, optimizer))


CALLED_BY_ACTS = {act: called_in(functools.partial(acting_run, options)) for act, options in ACTS.items()}


@pytest.mark.parametrize("act", ACTS)
def test_what_is_asked_for_is_what_a_loop_does_by_hand(act):
    watcher, left, raised = acting_run(ACTS[act])
    assert left == bits_of_acts_by_hand(act)
    assert raised == ([(step, step) for step in sorted((*SICK_STEPS, *SICK_LOSSES))] if act == "raise" else [])
    expected = 0 if act == "clip" else len(SICK_STEPS) + len(SICK_LOSSES)
    assert watcher.history["skipped"].sum() == expected
    watcher.close()


ALL_FAULTS = "GRADWATCH_ALL_FAULTS" in os.environ
DECIDE = ("clip", "hooks", "watcher")


def is_tried(act, name, once):
    """Return True if this fault can make a difference (see the top of this file)."""
    if ALL_FAULTS or act == "clip" or name not in CALLED_BY_ACTS["clip"]:
        return True
    if once:  # what it leaves half done the next step meets under any act alike
        return False
    place = list(CALLED_BY_ACTS["clip"]).index(name)
    return room_of(CALLED_BY_ACTS[act][name][0]) in DECIDE or act == ("skip", "raise")[place % 2]


FAULTS = [
    (act, name, once)
    for act, names in CALLED_BY_ACTS.items()
    for name, (owner, _) in names.items()
    for once in (True, False)
    if (not is_deep_inside(owner) or name not in CALLED) and is_tried(act, name, once)
]


@pytest.mark.slow
@pytest.mark.parametrize(("act", "name", "once"), FAULTS)
def test_a_fault_stops_no_clipping_skipping_or_raising(act, name, once, monkeypatch, caplog):
    faults = []

    def with_fault(loop):
        nonlocal faults
        faults = break_(monkeypatch, *CALLED_BY_ACTS[act][name], once=once)
        loop()

    watcher, left, raised = acting_run(ACTS[act], with_fault)
    monkeypatch.undo()
    assert left == bits_of_acts_by_hand(act)
    assert [step for step, _ in raised] == (sorted((*SICK_STEPS, *SICK_LOSSES)) if act == "raise" else [])
    assert all(step == said for step, said in raised)
    assert watcher._loop.steps.count == FEW
    assert_still_answers(watcher)
    assert_warned_once(caplog, faults)


ONLY_IN_LONG_RUNS = {
    name: at for name, at in {**CALLED, **CALLED_BY_CLIPPING}.items() if name not in CALLED_BY_ACTS["clip"]
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, (owner, _) in CALLED.items() if is_deep_inside(owner) or name in ONLY_IN_LONG_RUNS]
)
def test_a_fault_warns_once_and_leaves_the_training_as_it_was(name, monkeypatch, caplog, tmp_path):
    model, optimizer = made("ailing", "adam")
    sinks = [Memory(), JsonLines(tmp_path / "run.jsonl")]
    watcher = gradwatch.watch(model, optimizer, log_dir=tmp_path, thresholds=SENSITIVE, sinks=sinks, **EVERYTHING)
    faults = break_(monkeypatch, *CALLED[name])
    train(model, optimizer, LONG, watcher, **SICK)
    assert torch._C._len_torch_function_stack() == 0
    assert bits(left_by(model, optimizer)) == bits_of_an_unwatched_run()
    assert_still_answers(watcher)
    assert_warned_once(caplog, faults)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (owner, _) in ONLY_IN_LONG_RUNS.items() if not is_deep_inside(owner)])
def test_a_fault_under_clipping_warns_once_and_training_goes_on(name, monkeypatch, caplog, tmp_path):
    faults = []

    def with_fault(loop):
        nonlocal faults
        faults = break_(monkeypatch, *ONLY_IN_LONG_RUNS[name])
        loop()

    watcher, _, optimizer = long_run(tmp_path, 1.0, with_fault)
    assert {int(state["step"]) for state in optimizer.state.values()} == {LONG}
    assert_still_answers(watcher)
    assert_warned_once(caplog, faults)


def test_a_faulty_clipping_policy_warns_once_and_training_goes_on(caplog):
    faults = []

    def clip_(gradients, magnitudes, parameters, optimizer):
        faults.append(clip_)
        raise InjectedError("made to happen")

    def new():
        return Policy(clip_, "broken", new)

    model, optimizer = made("mlp", "adam")
    watcher = gradwatch.watch(model, optimizer, clip=new())
    train(model, optimizer, LONG, watcher)
    assert {int(state["step"]) for state in optimizer.state.values()} == {LONG}
    assert len(watcher.history) == LONG  # measuring goes on
    assert_still_answers(watcher)
    assert_warned_once(caplog, faults)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("clip=broken failed (InjectedError: made to happen)" in message for message in messages) == 1
    assert len(warnings_of_faults(caplog)) == 2  # the fault, and that this part rests


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["write_row", "write_finding", "flush", "close"])
@pytest.mark.parametrize("sink", [TensorBoard, JsonLines, Csv, Memory, Log])
def test_a_sink_that_fails_at_anything_is_tried_again_with_one_warning(sink, verb, monkeypatch, caplog, tmp_path):
    def with_fault(loop):
        break_(monkeypatch, sink, verb)
        loop()

    json_lines, csv = JsonLines(tmp_path / "run.jsonl"), Csv(tmp_path / "run.csv")
    watcher, model, optimizer = long_run(tmp_path, around=with_fault, sinks=[Memory(), json_lines, csv])
    assert bits(left_by(model, optimizer)) == bits_of_an_unwatched_run()
    assert_still_answers(watcher)
    (warning,) = warnings_of_faults(caplog)
    assert f"{sink.__name__} failed to " in warning
    assert len(watcher.history) == LONG
    monkeypatch.undo()
    for each in (json_lines, csv):  # whose close may have been made to fail
        each.close()


LOOPS = ("closure", "scaler", "by hand", "optimizer found")


def clip_by_torch(model):
    """As the loop would do by itself, for gradients whose total is finite."""
    if torch.isfinite(nn.utils.get_total_norm([p.grad for p in model.parameters()])):
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def run_of(kind, watcher_of, *, clips_itself=False):
    """Parameters after 10 updates of a loop of this ``kind``."""
    torch.manual_seed(0)
    model = Mlp().eval()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=kind == "scaler", init_scale=16.0, growth_interval=3)
    watcher = watcher_of(
        model,
        None if kind in ("by hand", "optimizer found") else optimizer,
        **({"scaler": scaler} if kind == "scaler" else {}),
    )

    def loss_of(step):
        optimizer.zero_grad()
        loss = (model(torch.full((4, 6), step / 5)) - 1).square().mean() * (torch.inf if step == 6 else 1)
        scaler.scale(loss).backward()
        if clips_itself:
            scaler.unscale_(optimizer)
            clip_by_torch(model)
        return loss

    for step in range(10):
        if kind == "closure":
            optimizer.step(functools.partial(loss_of, step))
            continue
        loss = loss_of(step)
        if kind == "by hand" and watcher is not None:
            watcher.step(loss=loss)
        scaler.step(optimizer)
        scaler.update()
    return watcher, [bits(parameter) for parameter in model.parameters()]


@functools.cache
def parameters_of_a_bare_loop(kind, *, clips_itself=False):
    return run_of(kind, lambda *_args, **_kwargs: None, clips_itself=clips_itself)[1]


def opens_the_way(owner):
    """Whether ``owner`` is of a part through which an update reaches what clips it."""
    return room_of(owner) in ("hooks", "watcher", "clip", "measure", "_torch")


def kinds_tried(name, place):
    """Return in which kinds of loops this function is made to fail (see the top of this file)."""
    room = room_of(CALLED_BY_ACTS["clip"][name][0])
    count = len(LOOPS) if ALL_FAULTS or room == "hooks" else 2 if room == "watcher" else 1
    return [LOOPS[(place + more) % len(LOOPS)] for more in range(count)]


ON_THE_WAY = sorted(name for name, (owner, _) in CALLED_BY_ACTS["clip"].items() if opens_the_way(owner))
FAULTS_ON_THE_WAY = [(kind, name) for place, name in enumerate(ON_THE_WAY) for kind in kinds_tried(name, place)]
BESIDE_THE_WAY = sorted(
    name
    for name, (owner, _) in CALLED.items()
    if "write" not in name and not is_deep_inside(owner) and name not in ON_THE_WAY
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("name", BESIDE_THE_WAY)
def test_a_fault_stops_no_other_kind_of_loop(kind, name, monkeypatch):
    def watched(*args, **options):
        watcher = gradwatch.watch(*args, **options)
        break_(monkeypatch, *CALLED[name])
        return watcher

    watcher, parameters = run_of(kind, watched)
    assert parameters == parameters_of_a_bare_loop(kind)
    assert_still_answers(watcher)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), FAULTS_ON_THE_WAY)
def test_a_fault_stops_the_clipping_of_no_kind_of_loop(kind, name, monkeypatch):
    expected = parameters_of_a_bare_loop(kind, clips_itself=True)
    assert expected != parameters_of_a_bare_loop(kind)

    def watched(model, optimizer, **options):
        hooked = [] if kind == "by hand" else optimizer  # else both would clip
        watcher = gradwatch.watch(model, hooked, clip=0.1, **options)
        break_(monkeypatch, *CALLED_BY_ACTS["clip"][name])
        return watcher

    watcher, parameters = run_of(kind, watched)
    assert parameters == expected
    assert_still_answers(watcher)


def test_a_closure_that_returns_no_single_loss_is_no_error():
    model, optimizer = made("mlp", "sgd")

    def closure():
        optimizer.zero_grad()
        losses = (model(torch.ones(4, 6)) - 1).square()
        losses.mean().backward()
        return losses

    with gradwatch.watch(model, optimizer) as watcher:
        assert optimizer.step(closure).shape == (4, 1)
    assert len(watcher.history) == 1


def test_an_optimizer_of_strangers_that_cannot_be_read_is_left_alone():
    class Strange(torch.optim.SGD):
        @property
        def param_groups(self):
            if self.__dict__.get("is_strange"):
                raise InjectedError("made to happen")
            return self.__dict__["groups"]

        @param_groups.setter
        def param_groups(self, groups):
            self.__dict__["groups"] = groups

        @torch.no_grad()
        def step(self, closure=None):
            return None

    model, _ = made("mlp", "sgd")
    strange = Strange(nn.Linear(2, 2).parameters(), lr=0.1)
    strange.is_strange = True
    with gradwatch.watch(model):
        strange.step()
