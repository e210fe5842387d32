"""Optimizers that are not torch's own, and wrappers of optimizers: each against the same loop run bare."""

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import gradwatch

STEPS = 5
TORCH = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))


def sgd(model):
    return SGD(model.parameters(), lr=0.01, momentum=0.9)


def loss_of(model, step):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def train(model, optimizer):
    """Return (losses, norms of each layer's gradient) of a plain loop."""
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        losses.append(loss.item())
        norms.append([p.grad.norm().item() for p in model.parameters()])
        optimizer.step()
    return losses, norms


class Delegating(Optimizer):
    """A wrapper that leaves ``Optimizer.__init__`` out, as that of Accelerate does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class WarmUp:
    """The wrapper of many a Transformer tutorial: no optimizer by type."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


class Together:
    def __init__(self, *optimizers):
        self.parts = optimizers

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()


WRAPPERS = {
    "without hooks": lambda model: Delegating(sgd(model)),
    "no optimizer by type": lambda model: WarmUp(sgd(model)),
    "in each other": lambda model: WarmUp(WarmUp(Delegating(sgd(model)))),
    "around several": lambda model: Together(*(SGD([p], lr=0.01) for p in model.parameters())),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_of_optimizers_is_watched_by_what_it_steps(wrap):
    bare, model = net(), net()
    losses, norms = train(bare, wrap(bare))
    optimizer = wrap(model)
    with gradwatch.watch(model, optimizer) as watcher:
        train(model, optimizer)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    parts = len(optimizer.parts) if isinstance(optimizer, Together) else 1
    assert watcher.history["optimizer"].tolist() == list(range(parts)) * STEPS
    np.testing.assert_allclose(watcher.history["loss"][::parts], losses)
    totals = np.nansum(watcher.history["grad_norm"].reshape(STEPS, parts, -1), axis=1)
    np.testing.assert_allclose(totals, norms, rtol=1e-5)


def test_a_wrapper_in_which_nothing_can_be_found_is_told_to_be_left_out():
    model = net()
    optimizer = sgd(model)
    hidden = Delegating(None)
    hidden.step, hidden.zero_grad = lambda: optimizer.step(), lambda: optimizer.zero_grad()
    with pytest.raises(TypeError, match=r"found Delegating whose __init__ .* Leave optimizer out"):
        gradwatch.watch(model, hidden)
    with gradwatch.watch(model) as watcher:  # what it says works
        train(model, hidden)
    assert len(watcher.history) == STEPS


def hidden_matrices(model):
    """Weights that Muon takes: all matrices but the last."""
    return [p for p in list(model.parameters())[:-2] if p.ndim == 2]


def rest(model):
    taken = {id(p) for p in hidden_matrices(model)}
    return [p for p in model.parameters() if id(p) not in taken]


def muon_and_adamw(model):
    return [torch.optim.Muon(hidden_matrices(model), lr=0.01), AdamW(rest(model), lr=0.01)]


def groups_with_rates_of_their_own(model):
    rates = (0.01, 0.003, 0.001, 0.0003)
    return [AdamW([{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), rates, strict=True)])]


def one_for_each_parameter(model):
    return [SGD([p], lr=0.01) for p in model.parameters()]


def in_training(optimizer):
    """Return ``optimizer``, schedule-free, as a loop puts it before it trains."""
    optimizer.train()
    return optimizer


def fused(kind, **options):
    return lambda model: [kind(model.parameters(), lr=0.01, fused=True, **options)]


def strangers(name, **options):
    return lambda model: [getattr(pytorch_optimizer, name)(model.parameters(), **options)]


OPTIMIZERS = {
    **{name: (lambda model, name=name: [getattr(torch.optim, name)(model.parameters())]) for name in TORCH},
    **({"Muon, and AdamW for the rest": muon_and_adamw} if hasattr(torch.optim, "Muon") else {}),  # torch 2.9
    "fused Adam": fused(torch.optim.Adam),
    "fused AdamW": fused(AdamW),
    "fused SGD": fused(SGD, momentum=0.9),
    "fused Adagrad": fused(torch.optim.Adagrad),
    "groups with rates of their own": groups_with_rates_of_their_own,
    "one for each parameter": one_for_each_parameter,
    "Lion": strangers("Lion"),
    "SOAP": strangers("SOAP", precondition_frequency=2),
    "Shampoo": strangers("Shampoo"),
    "Adafactor of others": strangers("AdaFactor"),
    "Prodigy": strangers("Prodigy"),
    "Muon with AdamW inside": lambda model: [
        pytorch_optimizer.Muon(
            [{"params": hidden_matrices(model), "use_muon": True}, {"params": rest(model), "use_muon": False}]
        )
    ],
    "schedule-free AdamW": lambda model: [in_training(strangers("ScheduleFreeAdamW", lr=0.01)(model)[0])],
    "schedule-free around SGD": lambda model: [in_training(pytorch_optimizer.ScheduleFreeWrapper(sgd(model)))],
    "Lookahead around SGD": lambda model: [pytorch_optimizer.Lookahead(sgd(model), k=2)],
    "TRAC around SGD": lambda model: [pytorch_optimizer.TRAC(sgd(model))],
}


def train_with(model, optimizers):
    """Return (losses, norms of each layer's gradient, rates of the groups) of each step of a plain loop."""
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        for optimizer in optimizers:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            losses.append(loss.item())
            norms.append([p.grad.norm().item() if id(p) in mine else np.nan for p in model.parameters()])
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
    return losses, norms, rates


@pytest.mark.parametrize("found", [False, True], ids=["given", "found"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_weights_and_figures_are_those_of_the_bare_loop(make, found):
    bare, model = net(), net()
    losses, norms, rates = train_with(bare, make(bare))
    optimizers = make(model)
    with gradwatch.watch(model, None if found else optimizers) as watcher:
        train_with(model, optimizers)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    assert watcher.findings == []
    history = watcher.history
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-6)
    np.testing.assert_allclose(history["grad_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(history["learning_rate"], np.max(rates, axis=1))
    np.testing.assert_allclose(history["learning_rates"], rates)
    assert history["optimizer"].tolist() == list(range(len(optimizers))) * STEPS
    assert not watcher._loop.guard.has_noted_faults


@pytest.mark.parametrize("found", [False, True], ids=["given", "found"])
@pytest.mark.parametrize("calls", ["step", "first_step, second_step"])
def test_sharpness_aware_minimisation_of_others_is_the_bare_loop(calls, found):
    def loop(model, optimizer):
        norms = []
        for step in range(STEPS):

            def evaluate(step=step):
                optimizer.zero_grad()
                loss_of(model, step).backward()

            evaluate()
            if calls == "step":
                optimizer.step(evaluate)
            else:
                optimizer.first_step(zero_grad=True)
                evaluate()
                optimizer.second_step()
            norms.append([p.grad.norm().item() for p in model.parameters()])
        return norms

    bare, model = net(), net()
    make = lambda model: pytorch_optimizer.SAM(model.parameters(), SGD, lr=0.01, momentum=0.9)
    norms = loop(bare, make(bare))
    optimizer = make(model)
    with gradwatch.watch(model, None if found else optimizer) as watcher:
        loop(model, optimizer)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    np.testing.assert_allclose(watcher.history["grad_norm"], norms, rtol=1e-5)
    assert watcher.history["optimizer"].tolist() == [0] * STEPS


class WithRest(Optimizer):
    """Descends on matrices, and keeps an optimizer of its own for the rest, as many a Muon does."""

    def __init__(self, matrices, others):
        super().__init__(matrices, {"lr": 0.02})
        self.rest = AdamW(others, lr=0.01)

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"])
        self.rest.step()
        return loss


class WithRestInDict(WithRest):
    @property
    def rest(self):
        return self.by_name["rest"]

    @rest.setter
    def rest(self, optimizer):
        self.by_name = {"none": None, "rest": optimizer}


def split(model, kind=WithRest):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return kind(matrices, [p for p in model.parameters() if p.ndim != 2])


OUTER = {
    "in an attribute": split,
    "in a dict": lambda model: split(model, WithRestInDict),
    "in a wrapper": lambda model: pytorch_optimizer.Lookahead(split(model), k=2),
}
watched_as = pytest.mark.parametrize("found", [False, True], ids=["given", "found"])
kept = pytest.mark.parametrize("make", OUTER.values(), ids=OUTER)


def all_of(model):
    """Parameters in the order of ``split``."""
    return sorted(model.parameters(), key=lambda p: p.ndim != 2)


def train_acting(model, optimizer, clip=None, skips=False, sick=()):
    """A plain loop; with ``clip`` and ``skips`` it acts by itself, on all parameters together."""
    for step in range(STEPS):
        for p in model.parameters():
            p.grad = None
        loss = loss_of(model, step)
        if step in sick:
            hook = model[0].bias.register_hook(lambda gradient: gradient * torch.nan)
        loss.backward()
        if step in sick:
            hook.remove()
        total = torch.nn.utils.get_total_norm([p.grad for p in all_of(model)])
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(all_of(model), clip)
        if skips and not total.isfinite():
            for p in model.parameters():
                p.grad = None
        optimizer.step()


@watched_as
@kept
def test_an_optimizer_that_keeps_another_for_the_rest_clips_as_a_bare_loop_that_clips_all(make, found):
    bare, model = net(), net()
    train_acting(bare, make(bare), clip=0.01)
    optimizer = make(model)
    with gradwatch.watch(model, None if found else optimizer, clip=0.01) as watcher:
        train_acting(model, optimizer)
    for ours, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert watcher.history["optimizer"].tolist() == [0] * STEPS
    assert not watcher._loop.guard.has_noted_faults


@watched_as
@kept
def test_an_optimizer_that_keeps_another_for_the_rest_skips_all(make, found):
    bare, model = net(), net()
    train_acting(bare, make(bare), skips=True, sick=(1, 3))
    optimizer = make(model)
    with gradwatch.watch(model, None if found else optimizer, on_nonfinite="skip") as watcher:
        train_acting(model, optimizer, sick=(1, 3))
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    assert all(p.isfinite().all() for p in model.parameters())
    assert watcher.history["skipped"].tolist() == [False, True, False, True, False]


@watched_as
def test_an_optimizer_that_keeps_another_for_the_rest_raises_for_it(found):
    model = net()
    optimizer = split(model)
    before = [p.detach().clone() for p in model.parameters()]
    watcher = gradwatch.watch(model, None if found else optimizer, on_nonfinite="raise")
    with watcher, pytest.raises(gradwatch.NonFiniteError, match=r"0\.bias"):
        train_acting(model, optimizer, sick=(0,))
    assert all(map(torch.equal, model.parameters(), before))


@watched_as
def test_figures_of_an_optimizer_that_keeps_another_for_the_rest_are_of_all(found):
    bare, model = net(), net()
    _, norms = train(bare, split(bare))
    optimizer = split(model)
    with gradwatch.watch(model, None if found else optimizer, log_every_n_steps=1) as watcher:
        train(model, optimizer)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    np.testing.assert_allclose(watcher.history["grad_norm"], norms, rtol=1e-5)
    assert (watcher.history["update_ratio"] > 0).all()
    np.testing.assert_allclose(watcher.history["learning_rates"], [[0.02, 0.01]] * STEPS)


@pytest.mark.parametrize("act", [{"clip": 0.01}, {"on_nonfinite": "skip"}], ids=["clip", "skip"])
@pytest.mark.parametrize("broken", ["updated_by", "learning_rates_of"])
@kept
def test_a_fault_of_ours_leaves_the_rest_clipped_and_skipped(make, broken, act, monkeypatch):
    sick = () if "clip" in act else (1, 3)
    bare, model = net(), net()
    train_acting(bare, make(bare), clip=act.get("clip"), skips=True, sick=sick)
    optimizer = make(model)

    def fail(*_):
        raise ArithmeticError("made to happen")

    with gradwatch.watch(model, optimizer, **act):
        monkeypatch.setattr(f"gradwatch.watcher.watched_loop.{broken}", fail)
        train_acting(model, optimizer, sick=sick)
    for ours, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@watched_as
def test_an_inner_optimizer_that_the_loop_steps_by_itself_is_one_of_its_own(found):
    class Apart(WithRest):
        def step(self, closure=None):
            rest, self.rest = self.rest, SGD([torch.ones(1)])
            super().step(closure)
            self.rest = rest

    model = net()
    optimizer = split(model, Apart)
    with gradwatch.watch(model, None if found else optimizer, clip=0.01) as watcher:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.rest.step()
            optimizer.step()
    assert watcher.history["optimizer"].tolist() == ([0, 1] if found else [1, 0]) * STEPS
    held = np.isfinite(watcher.history["grad_norm"])
    assert held.tolist() == [[False, True] * 2, [True, False] * 2] * STEPS


def test_weights_in_another_precision_that_an_optimizer_steps_inside_are_not_counted():
    class Copies(Optimizer):
        """Steps copies of the weights, and leaves their gradients where they are."""

        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.01})
            self.mine = self.param_groups[0]["params"]
            self.copies = [p.detach().double().requires_grad_() for p in self.mine]
            self.inner = SGD(self.copies, lr=0.01)

        @torch.no_grad()
        def step(self, closure=None):
            for p, copy in zip(self.mine, self.copies, strict=True):
                copy.grad = p.grad.double()
            self.inner.step()
            for p, copy in zip(self.mine, self.copies, strict=True):
                p.copy_(copy)

    bare, model = net(), net()
    train_acting(bare, Copies(bare.parameters()), clip=0.01)
    optimizer = Copies(model.parameters())
    with gradwatch.watch(model, optimizer, clip=0.01):
        train_acting(model, optimizer)
    for ours, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_under_a_scaler_an_optimizer_inside_is_left_out():
    """A scaler unscales what the outer one owns, so a common norm would be one of the scale."""
    model = net()
    optimizer, scaler = split(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    with gradwatch.watch(model, optimizer, clip=1e3) as watcher:
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert np.isfinite(watcher.history["grad_norm"]).tolist() == [[True, False] * 2] * STEPS
    np.testing.assert_allclose(watcher.history["grad_norm_clipped_total"], watcher.history["grad_norm_total"])


class Around(Optimizer):
    """Steps others, and owns a tensor only because ``Optimizer.__init__`` asks for one."""

    def __init__(self, *inside):
        self.inside = inside
        super().__init__([torch.zeros(1)], {})

    def step(self, closure=None):
        for optimizer in self.inside:
            optimizer.step()

    def zero_grad(self, set_to_none=True):
        for optimizer in self.inside:
            optimizer.zero_grad(set_to_none)


@watched_as
@pytest.mark.parametrize("wrap", [lambda each: each, Around], ids=["once", "twice"])
def test_an_optimizer_that_owns_nothing_is_watched_by_those_inside(wrap, found):
    bare, model = net(), net()
    make = lambda model: Around(wrap(split(model)), SGD(nn.Linear(2, 2).parameters()))
    losses, norms = train(bare, make(bare))
    optimizer = make(model)
    with gradwatch.watch(model, None if found else optimizer) as watcher:
        train(model, optimizer)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    np.testing.assert_allclose(watcher.history["grad_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(watcher.history["loss"], losses)


def test_an_optimizer_inside_which_nobody_owns_anything_is_refused():
    with pytest.raises(ValueError, match="this Around owns none of the 4 watched parameters"):
        gradwatch.watch(net(), Around(SGD(nn.Linear(2, 2).parameters())))


def test_a_wrapper_of_itself_is_refused_and_wrappers_of_each_other_too():
    itself, first, second = WarmUp(None), WarmUp(None), WarmUp(None)
    itself.optimizer, first.optimizer, second.optimizer = itself, second, first
    for wrapper in (itself, first):
        with pytest.raises(TypeError, match=r"found WarmUp\. Leave optimizer out"):
            gradwatch.watch(net(), wrapper)
    model = net()
    second.optimizer, first.around = sgd(model), second
    with gradwatch.watch(model, first) as watcher:
        train(model, first)
    assert watcher.history["optimizer"].tolist() == [0] * STEPS
