"""Settings of real training: a watched loop gives the figures, the weights and the skips of the same loop unwatched.

A loop is written once and run twice. Watched, gradwatch looks; bare, ``Run.step`` looks at ``p.grad`` itself before
the step, and leaves out by hand what ``on_nonfinite`` is to leave out.
"""

import contextlib
import copy
import importlib
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import gradwatch
from gradwatch import NonFiniteError
from gradwatch.lightning import GradWatch

STEPS = 8
SPOILED = (0, 4)  # the first step too: it is there that optimizers make their state
WIDTH = 6


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def adam(model):
    return Adam(model.parameters(), lr=0.01)


def inputs(step, part=0):
    return torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(10 * step + part))


def loss_of(model, step, part=0):
    x = inputs(step, part)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


class Run:
    """One run of a loop, watched or bare.

    Attributes:
        rows, totals, losses, skipped: of each step, as the bare run sees them.
        also: modules whose state counts too.
        observes: the watched loop hands its losses over; else they are found.
    """

    def __init__(self, is_watched, found=False, on_nonfinite="report", spoiled=None, observes=True):
        self.is_watched, self.found, self.on_nonfinite, self.observes = is_watched, found, on_nonfinite, observes
        self.spoiled = (() if on_nonfinite == "report" else SPOILED) if spoiled is None else spoiled
        self.watcher, self.also = None, []
        self.rows, self.totals, self.losses, self.skipped, self._returned = [], [], [], [], None
        self._made_of, self._stepped = {}, set()  # optimizer → losses that its gradients are made of

    def watch(self, models, *optimizers):
        """The loop begins; a watcher is given the optimizers, or left to find them."""
        self.models, self.optimizers = models if isinstance(models, dict) else {"": models}, optimizers
        self.names = [
            f"{prefix}.{name}".lstrip(".").removeprefix("_orig_mod.")
            for prefix, model in self.models.items()
            for name, _ in model.named_parameters()
        ]
        self.tensors = [p for model in self.models.values() for p in model.parameters()]
        if self.is_watched:
            optimizer = None if self.found else list(optimizers)
            self.watcher = gradwatch.watch(models, optimizer, on_nonfinite=self.on_nonfinite)

    def loss(self, model, step, part=0):
        """The loss of a batch, observed; that of a spoiled step is NaN."""
        loss = loss_of(model, step, part)
        if step in self.spoiled and part == 0:
            loss = loss * torch.nan
        if self.watcher is not None and self.observes:
            self.watcher.observe_loss(loss)
        if not self.is_watched:
            self._note(loss)
        return loss

    def _note(self, loss):
        """Note for each optimizer, before the backward pass, of which losses its gradients will be made."""
        reached = leaves_of(loss)
        for optimizer in self.optimizers:
            mine = parameters_of(optimizer)
            is_empty = all(p.grad is None or not p.grad.any() for p in mine)
            if is_empty or optimizer in self._stepped:
                self._made_of.pop(optimizer, None)
            if any(id(p) in reached for p in mine):
                self._made_of.setdefault(optimizer, []).append(loss.item())
        self._stepped.clear()

    def step(self, optimizer, step, closure=None, how=None):
        """One step of ``optimizer``; ``how`` is what to call in place of ``optimizer.step``."""
        how = how or optimizer.step
        arguments = () if closure is None else (closure,)
        if self.watcher is not None:
            self._watched_step(optimizer, step, how, arguments)
            return
        if closure is not None:
            self._returned = closure().item()
        self._look(optimizer)
        self.skipped.append(self.on_nonfinite != "report" and not np.isfinite(self.totals[-1]))
        if self.skipped[-1]:
            forget_gradients(optimizer)
        else:
            how(*arguments)

    def state(self):
        """Weights, buffers and what the optimizers remember."""
        modules = [module.state_dict() for module in [*self.models.values(), *self.also]]
        weights = [parameters_of(optimizer) for optimizer in self.optimizers]
        return copy.deepcopy([modules, weights, [memory_of(optimizer) for optimizer in self.optimizers]])

    def close(self):
        if self.watcher is not None:
            self.watcher.close()

    def _watched_step(self, optimizer, step, how, arguments):
        gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
        is_sick = step in self.spoiled if arguments else not all(bool(torch.isfinite(g).all()) for g in gradients)
        before = self.state()
        if is_sick and self.on_nonfinite == "raise":
            with pytest.raises(NonFiniteError, match=r"step \d"):
                how(*arguments)
            forget_gradients(optimizer)
        else:
            how(*arguments)
        if is_sick:
            assert_same(self.state(), before)

    def _look(self, optimizer):
        mine = set(map(id, parameters_of(optimizer)))
        norms = [p.grad.norm().item() if id(p) in mine and p.grad is not None else np.nan for p in self.tensors]
        gradients = [p.grad.norm() for p in parameters_of(optimizer) if p.grad is not None]
        self.rows.append(norms)
        self.totals.append(torch.stack(gradients).norm().item())
        made_of = self._made_of.get(optimizer, [np.nan]) if self._returned is None else [self._returned]
        self.losses.append(np.mean(made_of))
        self._returned = None
        self._stepped.add(optimizer)


def leaves_of(loss):
    """The ids of all leaves that a backward pass from ``loss`` reaches."""
    found, ahead, seen = set(), [loss.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                found.add(id(node.variable))
    return found


def forget_gradients(optimizer):
    for parameter in parameters_of(optimizer):
        parameter.grad = None


def memory_of(optimizer):
    """The optimizer's state, less what LBFGS counts: evaluations that were made, and no iteration yet."""
    state = optimizer.state_dict()["state"]
    counts = lambda key, value: key == "func_evals" or (key == "n_iter" and value == 0)
    kept = {
        index: {key: value for key, value in entries.items() if not counts(key, value)}
        for index, entries in state.items()
    }
    return {index: entries for index, entries in kept.items() if entries}


def assert_same(found, expected):
    """Bit for bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def assert_figures(history, bare):
    assert list(history.layers) == bare.names
    np.testing.assert_allclose(history["grad_norm"], bare.rows, rtol=1e-5)
    np.testing.assert_allclose(history["grad_norm_total"], bare.totals, rtol=1e-5)
    np.testing.assert_array_equal(history["grad_norm_clipped_total"], history["grad_norm_total"])  # nothing clips here
    np.testing.assert_allclose(history["loss"], bare.losses, rtol=1e-6)
    assert history["skipped"].tolist() == bare.skipped


def run_both(loop, found=False, on_nonfinite="report", observes=True):
    """(watched, bare), once figures, weights and optimizer state were found to be the same."""
    watched, bare = (Run(is_watched, found, on_nonfinite, observes=observes) for is_watched in (True, False))
    for run in (watched, bare):
        loop(run)
        run.close()
    assert_figures(watched.watcher.history, bare)
    assert_same(watched.state(), bare.state())
    assert not watched.watcher._loop.guard._faults
    if on_nonfinite == "report":
        assert watched.watcher.findings == []
    else:
        assert any(bare.skipped)
        assert {finding.kind for finding in watched.watcher.findings} == {"nonfinite"}
    return watched, bare


def accumulation(run):
    model = net()
    optimizer = adam(model)
    run.watch(model, optimizer)
    for step in range(STEPS):
        for part in range(3):
            (run.loss(model, step, part) / 3).backward()
        run.step(optimizer, step)
        optimizer.zero_grad()


def several_optimizers(run):
    model = net()
    body, head = Adam(model[:3].parameters(), lr=0.01), SGD(model[4].parameters(), lr=0.01, momentum=0.9)
    run.watch(model, body, head)
    for step in range(STEPS):
        body.zero_grad()
        head.zero_grad()
        run.loss(model, step).backward()
        run.step(body, step)
        run.step(head, step)


def optimizers_of_different_pace(run):
    model = net()
    body, head = Adam(model[:3].parameters(), lr=0.01), SGD(model[4].parameters(), lr=0.01, momentum=0.9)
    run.watch(model, body, head)
    for step in range(STEPS):
        run.loss(model, step).backward()
        for optimizer in (head, body) if step % 2 else (head,):
            run.step(optimizer, step)
            optimizer.zero_grad()


def one_optimizer_over_two_models(run):
    first, second = nn.Linear(WIDTH, 8), nn.Linear(8, 1)
    for seed, model in enumerate((first, second)):
        torch.manual_seed(seed)
        nn.init.normal_(model.weight, std=0.3)
        nn.init.zeros_(model.bias)
    optimizer = Adam([*first.parameters(), *second.parameters()], lr=0.01)
    run.watch({"first": first, "second": second}, optimizer)
    for step in range(STEPS):
        run.loss(lambda x: second(first(x).tanh()), step).backward()
        run.step(optimizer, step)
        optimizer.zero_grad()


def zeroing(is_first, set_to_none):
    def loop(run):
        model = net()
        optimizer = adam(model)
        run.watch(model, optimizer)
        for step in range(STEPS):
            if is_first:
                optimizer.zero_grad(set_to_none=set_to_none)
            run.loss(model, step).backward()
            run.step(optimizer, step)
            if not is_first:
                optimizer.zero_grad(set_to_none=set_to_none)

    return loop


def plain(make):
    def loop(run):
        model = net()
        optimizer = make(model.parameters())
        run.watch(model, optimizer)
        for step in range(STEPS):
            run.loss(model, step).backward()
            run.step(optimizer, step)
            optimizer.zero_grad()

    return loop


def closure(make):
    def loop(run):
        model = net()
        optimizer = make(model.parameters())
        run.watch(model, optimizer)

        def evaluate():
            optimizer.zero_grad()
            loss = loss_of(model, step) * (torch.nan if step in run.spoiled else 1)
            loss.backward()
            return loss

        for step in range(STEPS):  # the closure reads it
            run.step(optimizer, step, evaluate)

    return loop


def parameters_added(run):
    model, beside = net(), nn.Parameter(torch.ones(()))
    optimizer = Adam(model[0].parameters(), lr=0.01)
    run.watch(model, optimizer)
    added = {2: model[2].parameters(), 3: model[4].parameters(), 5: [beside]}
    for step in range(STEPS):
        if step in added:
            optimizer.add_param_group({"params": added[step], "lr": 0.02})
        model.zero_grad()
        optimizer.zero_grad()
        run.loss(lambda x: model(x) * beside, step).backward()
        run.step(optimizer, step)


def freezing(before, after, set_to_none=True):
    """``model[0]`` asks for gradients as ``before`` says, and from step 3 on as ``after`` says."""

    def loop(run):
        model = net()
        model[0].requires_grad_(before)
        optimizer = adam(model)
        run.watch(model, optimizer)
        for step in range(STEPS):
            if step == 3:
                model[0].requires_grad_(after)
            optimizer.zero_grad(set_to_none=set_to_none)
            run.loss(model, step).backward()
            run.step(optimizer, step)

    return loop


def unfrozen_into_a_new_group(run):
    model = net()
    model[0].requires_grad_(False)
    optimizer = Adam(model[2:].parameters(), lr=0.01)
    run.watch(model, optimizer)
    for step in range(STEPS):
        if step == 3:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-3})
        optimizer.zero_grad()
        run.loss(model, step).backward()
        run.step(optimizer, step)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        whole = net()
        self.stem, self.block, self.head = whole[0], nn.Sequential(whole[1], nn.Dropout(0.2), whole[2]), whole[4]
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return self.head(checkpoint(self.block, self.stem(x), use_reentrant=self.use_reentrant))


def built(make_model):
    def loop(run):
        model = make_model()
        optimizer = adam(model)
        run.watch(model, optimizer)
        for step in range(STEPS):
            run.loss(model, step).backward()
            run.step(optimizer, step)
            optimizer.zero_grad()

    return loop


def parametrized(parametrization):
    def make_model():
        model = net()
        parametrization(model[0])
        parametrization(model[2])
        return model

    return make_model


def averaged(average):
    def loop(run):
        model = net()
        optimizer = adam(model)
        run.watch(model, optimizer)
        copied = AveragedModel(model, multi_avg_fn=average)
        run.also = [copied]
        for step in range(STEPS):
            optimizer.zero_grad()
            run.loss(model, step).backward()
            run.step(optimizer, step)
            copied.update_parameters(model)

    return loop


SETTINGS = {
    "accumulation": accumulation,
    "several optimizers": several_optimizers,
    "optimizers of different pace": optimizers_of_different_pace,
    "one optimizer over two models": one_optimizer_over_two_models,
    "zero_grad before, to none": zeroing(True, True),
    "zero_grad before, to zero": zeroing(True, False),
    "zero_grad after, to none": zeroing(False, True),
    "zero_grad after, to zero": zeroing(False, False),
    "closure sgd": closure(lambda parameters: SGD(parameters, lr=0.01, momentum=0.9)),
    "closure adam": closure(lambda parameters: Adam(parameters, lr=0.01)),
    "closure fused adam": closure(lambda parameters: Adam(parameters, lr=0.01, fused=True)),
    "lbfgs": closure(lambda parameters: LBFGS(parameters, lr=0.1, max_iter=4)),
    "lbfgs with line search": closure(lambda parameters: LBFGS(parameters, max_iter=4, line_search_fn="strong_wolfe")),
    "fused sgd": plain(lambda parameters: SGD(parameters, lr=0.01, momentum=0.9, fused=True)),
    "fused adam": plain(lambda parameters: Adam(parameters, lr=0.01, fused=True)),
    "fused adamw": plain(lambda parameters: AdamW(parameters, lr=0.01, fused=True)),
    "fused adagrad": plain(lambda parameters: Adagrad(parameters, lr=0.01, fused=True)),
    "foreach adamw": plain(lambda parameters: AdamW(parameters, lr=0.01, foreach=True)),
    "parameters added": parameters_added,
    "frozen later": freezing(True, False),
    "frozen later, to zero": freezing(True, False, set_to_none=False),
    "unfrozen later": freezing(False, True),
    "unfrozen into a new group": unfrozen_into_a_new_group,
    "checkpoint": built(lambda: Checkpointed(use_reentrant=False)),
    "reentrant checkpoint": built(lambda: Checkpointed(use_reentrant=True)),
    "spectral norm": built(parametrized(spectral_norm)),
    "weight norm": built(parametrized(weight_norm)),
    "averaged copy": averaged(None),
    "exponentially averaged copy": averaged(get_ema_multi_avg_fn(0.9)),
}
every_setting = pytest.mark.parametrize("loop", SETTINGS.values(), ids=SETTINGS)
named = pytest.mark.parametrize("found", [False, True], ids=["named", "found"])
decides = pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])


@named
@every_setting
@pytest.mark.parametrize("observes", [True, False], ids=["loss observed", "loss found"])
def test_figures_and_weights_are_those_of_the_bare_loop(loop, found, observes):
    run_both(loop, found, observes=observes)


@pytest.mark.slow
@named
@decides
@every_setting
def test_a_step_that_is_not_finite_leaves_weights_and_state_as_they_were(loop, on_nonfinite, found):
    run_both(loop, found, on_nonfinite)


def test_several_optimizers_see_their_own_parameters_alone():
    watched, _ = run_both(several_optimizers)
    is_measured = ~np.isnan(watched.watcher.history["grad_norm"])
    assert watched.watcher.history["optimizer"].tolist() == [0, 1] * STEPS
    assert is_measured[0::2].tolist() == [[True] * 4 + [False] * 2] * STEPS
    assert is_measured[1::2].tolist() == [[False] * 4 + [True] * 2] * STEPS


def test_a_parameter_beside_the_model_counts_in_the_total_alone():
    watched, bare = run_both(parameters_added)
    history = watched.watcher.history
    layers = np.sqrt(np.nansum(np.square(history["grad_norm"]), axis=1))
    np.testing.assert_allclose(layers[:5], bare.totals[:5], rtol=1e-5)
    assert (layers[5:] < history["grad_norm_total"][5:] * (1 - 1e-6)).all()


def test_parametrized_weights_are_watched_by_what_is_trained():
    watched, _ = run_both(built(parametrized(weight_norm)))
    names = [f"0.parametrizations.weight.original{i}" for i in (0, 1)]
    assert set(names) < set(watched.watcher.history.layers)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_losses_observed_in_a_closure_count_for_their_own_step(line_search):
    model = net()
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn=line_search)
    expected = []
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(4):
            evaluations = []

            def evaluate(step=step, evaluations=evaluations):
                optimizer.zero_grad()
                loss = loss_of(model, step)
                watcher.observe_loss(loss)
                loss.backward()
                evaluations.append(loss.item())
                return loss

            optimizer.step(evaluate)
            assert len(evaluations) > 1
            expected.append(evaluations[0])
    np.testing.assert_allclose(watcher.history["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("line_search", "on_nonfinite"), [(None, "raise"), ("strong_wolfe", "raise"), ("strong_wolfe", "skip")]
)
def test_a_later_evaluation_of_lbfgs_that_is_not_finite_spoils_no_weight(line_search, on_nonfinite):
    model = net()
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn=line_search)
    evaluations = []

    def evaluate():
        optimizer.zero_grad()
        evaluations.append(loss_of(model, 0) * (torch.nan if len(evaluations) >= 6 else 1))
        evaluations[-1].backward()
        return evaluations[-1]

    error = pytest.raises(NonFiniteError) if on_nonfinite == "raise" else contextlib.nullcontext()
    with gradwatch.watch(model, optimizer, on_nonfinite=on_nonfinite), error:
        for _ in range(3):
            optimizer.step(evaluate)
    assert len(evaluations) > 6
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Sharpened(Optimizer):
    """Sharpness-aware minimisation, an optimizer around another one: climbs, looks again, comes back, descends."""

    def __init__(self, parameters, needs_gradient):
        super().__init__(parameters, {})
        self.inner = SGD(self.param_groups, lr=0.01, momentum=0.9)
        self.needs_gradient = needs_gradient  # to come back, as the best known implementation does
        self.places = {}

    def climb(self):
        norm = torch.stack([p.grad.norm() for p in parameters_of(self)]).norm()
        with torch.no_grad():
            for p in parameters_of(self):
                self.places[p] = p.clone()
                p.add_(p.grad * (0.05 / norm))

    def come_back(self):
        with torch.no_grad():
            for p in parameters_of(self):
                if p.grad is not None or not self.needs_gradient:
                    p.copy_(self.places[p])

    def step(self, closure):
        self.climb()
        loss = closure()
        self.come_back()
        self.inner.step()
        return loss


def sharpened(needs_gradient):
    def loop(run):
        model = net()
        optimizer = Sharpened(model.parameters(), needs_gradient)
        run.watch(model, optimizer)
        run.optimizers = [optimizer.inner]

        def look_again():
            optimizer.zero_grad()
            loss = loss_of(model, step) * (torch.nan if step in run.spoiled else 1)
            loss.backward()
            return loss

        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            if run.is_watched:
                run.step(optimizer, step, look_again)
                continue
            optimizer.climb()
            run._returned = look_again().item()
            optimizer.come_back()
            run.step(optimizer.inner, step)

    return loop


@named
@pytest.mark.parametrize(("on_nonfinite", "needs_gradient"), [("report", False), ("report", True), ("skip", False)])
def test_of_sharpened_optimizers_the_gradients_that_the_update_is_made_of_are_watched(
    on_nonfinite, needs_gradient, found
):
    run_both(sharpened(needs_gradient), found, on_nonfinite)


@named
@pytest.mark.parametrize("observes", [True, False], ids=["loss observed", "loss found"])
def test_the_two_calls_of_a_sharpened_optimizer_are_one_step(observes, found):
    """``first_step`` and ``second_step``, as most loops call it: only the inner optimizer steps."""
    watched, bare = Run(True, found, observes=observes), Run(False)
    for run in (watched, bare):
        model = net()
        optimizer = Sharpened(model.parameters(), needs_gradient=True)
        run.watch(model, optimizer)
        run.optimizers = [optimizer.inner]
        for step in range(STEPS):
            loss_of(model, step).backward()
            optimizer.climb()
            optimizer.zero_grad()
            run.loss(model, step).backward()
            optimizer.come_back()
            run.step(optimizer.inner, step)
            optimizer.zero_grad()
        run.close()
    assert_figures(watched.watcher.history, bare)
    assert_same(watched.state(), bare.state())


@pytest.fixture
def compiler():
    """A compiler that has seen nothing, and forgets what it saw."""

    def forget():
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()

    forget()
    yield forget
    forget()


backends = pytest.mark.parametrize("backend", ["eager", "aot_eager"])


@pytest.mark.slow
@backends
@pytest.mark.parametrize("on_nonfinite", ["report", "skip"])
@pytest.mark.parametrize("watch_first", [True, False], ids=["watched first", "compiled first"])
@pytest.mark.parametrize("observes", [True, False], ids=["loss observed", "loss found"])
def test_a_compiled_model_is_compiled_once_and_gives_its_own_figures(
    compiler, backend, watch_first, on_nonfinite, observes
):
    runs = Run(True, on_nonfinite=on_nonfinite, observes=observes), Run(False, on_nonfinite=on_nonfinite)
    for run in runs:
        compiler()
        model, counter = net(), CompileCounterWithBackend(backend)
        optimizer = adam(model)
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        run.watch(model if watch_first else compiled, optimizer)
        for step in range(STEPS):
            run.loss(compiled, step).backward()
            run.step(optimizer, step)
            optimizer.zero_grad()
        run.close()
        for step in range(3):
            loss_of(compiled, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert counter.frame_count == 1
    watched, bare = runs
    assert_figures(watched.watcher.history, bare)
    assert_same(watched.state(), bare.state())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own
@backends
@pytest.mark.parametrize("found", [False, True], ids=["given", "found"])
@pytest.mark.parametrize("how", ["the step", "a function around it"])
def test_a_compiled_step_is_compiled_as_often_as_bare(compiler, backend, how, found):
    runs = Run(True, found, observes=False), Run(False, found)
    compiled = []
    for run in runs:
        compiler()
        model, counter = net(), CompileCounterWithBackend(backend)
        optimizer = adam(model)
        run.watch(model, optimizer)
        call = optimizer.step if how == "the step" else lambda optimizer=optimizer: optimizer.step()
        step_ = torch.compile(call, backend=counter)
        for step in range(STEPS):
            run.loss(model, step).backward()
            run.step(optimizer, step, how=step_)
            optimizer.zero_grad()
        run.close()
        compiled.append(counter.frame_count)
    watched, bare = runs
    assert compiled[0] == compiled[1]
    assert_figures(watched.watcher.history, bare)
    assert_same(watched.state(), bare.state())


@backends
def test_watching_a_model_that_has_run_compiled_compiles_nothing_again(compiler, backend):
    model, counter = net(), CompileCounterWithBackend(backend)
    optimizer = adam(model)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(2):
        loss_of(compiled, 0).backward()
        with gradwatch.watch(compiled, optimizer) as watcher:
            loss_of(compiled, 1).backward()
            optimizer.step()
        assert len(watcher.history) == 1
    assert counter.frame_count == 1


def test_one_model_trained_twice_has_a_history_for_each_time(caplog):
    watched, bare = Run(True), Run(False)
    histories = []
    for run in (watched, bare):
        model = net()
        for half in range(2):
            optimizer = adam(model)
            run.watch(model, optimizer)
            for step in range(half * STEPS, (half + 1) * STEPS):
                optimizer.zero_grad()
                run.loss(model, step).backward()
                run.step(optimizer, step)
            if run.is_watched:
                run.close()
                histories.append(run.watcher.history)
    rows = [row for history in histories for row in history["grad_norm"]]
    np.testing.assert_allclose(rows, bare.rows, rtol=1e-5)
    assert [history.steps.tolist() for history in histories] == [list(range(STEPS))] * 2
    assert_same(watched.state(), bare.state())
    assert caplog.text == ""


def saved(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def replica(model):
    copied = model._replicate_for_data_parallel()
    copied._parameters = {name: nn.Parameter(p.detach().clone()) for name, p in model._parameters.items()}
    for name, child in model._modules.items():
        copied._modules[name] = replica(child)
    return copied


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "torch.export": lambda model: torch.export.export(model, (inputs(0),)).module(),
    "torch.fx": torch.fx.symbolic_trace,
    "a replica of DataParallel": replica,
    "torch.jit.script": torch.jit.script,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("stage", ["before", "during", "with gradients"])
@pytest.mark.parametrize("traces", [False, True], ids=["by default", "traced"])
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_watched_model_is_copied_saved_and_exported_as_ever(make, traces, stage):
    model = net()
    optimizer = adam(model)
    with gradwatch.watch(model, optimizer, trace_nonfinite=traces) as watcher:
        if stage != "before":
            loss_of(model, 0).backward()
            optimizer.step()
            optimizer.zero_grad()
        if stage == "with gradients":
            loss_of(model, 1).backward()
        copied = make(model)
        assert torch.equal(copied(inputs(3)), model(inputs(3)))
        steps = len(watcher.history)
        optimizer.zero_grad()
        loss_of(copied, 2).backward()  # some of the copies share the model's weights, some have their own
        expected = [p.grad.norm().item() for p in copied.parameters()]
        optimizer.zero_grad()
        loss_of(model, 2).backward()
        optimizer.step()
    assert len(watcher.history) == steps + 1
    np.testing.assert_allclose(watcher.history["grad_norm"][-1], expected, rtol=1e-5)


@pytest.mark.parametrize("make", [COPIES["deepcopy"], COPIES["pickle"], COPIES["torch.save"]])
def test_a_copy_of_a_watched_model_is_not_watched(make):
    model = net()
    with gradwatch.watch(model) as watcher:
        copied = make(model)
        assert not any(p._post_accumulate_grad_hooks for p in copied.parameters())
        optimizer = adam(copied)
        loss_of(copied, 0).backward()
        optimizer.step()
        assert len(watcher.history) == 0
        optimizer = adam(model)
        loss_of(model, 0).backward()
        optimizer.step()
        assert len(watcher.history) == 1


class Predictions(Dataset):
    """What a model says of its inputs; workers get the model with it."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 4

    def __getitem__(self, index):
        with torch.no_grad():
            return self.model(inputs(index))


@pytest.mark.process
def test_a_watched_model_goes_to_spawned_workers():
    model = net()
    optimizer = adam(model)
    with gradwatch.watch(model, optimizer) as watcher:
        loss_of(model, 0).backward()
        optimizer.step()
        loader = DataLoader(Predictions(model), batch_size=None, num_workers=1, multiprocessing_context="spawn")
        for index, predicted in enumerate(loader):
            assert torch.equal(predicted, model(inputs(index)))
    assert len(watcher.history) == 1


def toggling(run):
    """A plain loop that trains two halves by turns, each while the other asks for no gradient."""
    halves = nn.ModuleDict({"generator": nn.Linear(WIDTH, WIDTH), "critic": nn.Linear(WIDTH, 1)})
    initialise(halves)
    optimizers = [adam(half) for half in halves.values()]
    run.watch(halves, *optimizers)
    for step in range(STEPS):
        for optimizer, mine in zip(optimizers, halves.values(), strict=True):
            for half in halves.values():
                half.requires_grad_(half is mine)
            run.loss(lambda x: halves["critic"](halves["generator"](x)), step).backward()
            run.step(optimizer, step)
            optimizer.zero_grad()


def initialise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)


def fit_toggling(pl, run, tmp_path, callback):
    """The loop of ``toggling`` in Lightning; its state."""

    class Toggling(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
            initialise(self)

        def training_step(self, batch, index):
            for optimizer in self.optimizers():
                self.toggle_optimizer(optimizer)
                loss = loss_of(lambda x: self.critic(self.generator(x)), index)
                self.manual_backward(loss * (torch.nan if index in run.spoiled else 1))
                optimizer.step()
                optimizer.zero_grad()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self):
            return [adam(self.generator), adam(self.critic)]

    module = Toggling()
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(range(STEPS), batch_size=1))
    run.models, run.optimizers = {"": module}, trainer.optimizers
    return run.state()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec")
@pytest.mark.parametrize("on_nonfinite", ["report", "skip"])
@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_toggled_optimizers_in_lightning_are_those_of_the_bare_loop(namespace, on_nonfinite, tmp_path):
    bare, callback = Run(False, on_nonfinite=on_nonfinite), GradWatch(on_nonfinite=on_nonfinite)
    toggling(bare)
    state = fit_toggling(importlib.import_module(namespace), Run(True, on_nonfinite=on_nonfinite), tmp_path, callback)
    assert_figures(callback.watcher.history, bare)
    assert_same(state, bare.state())


@named
@pytest.mark.parametrize("on_nonfinite", ["report", "skip", "raise"])
@pytest.mark.parametrize("observes", [True, False], ids=["loss observed", "loss found"])
def test_halves_trained_by_turns_are_those_of_the_bare_loop(on_nonfinite, found, observes):
    run_both(toggling, found, on_nonfinite, observes)


@pytest.mark.parametrize(("rows", "is_known"), [(8, True), (4096, False)], ids=["every entry sampled", "a sample"])
def test_rows_of_a_sparse_table_that_were_not_met_say_nothing_of_its_updates(rows, is_known):
    table = nn.Embedding(rows, 4, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    with gradwatch.watch(table, optimizer) as watcher:
        table(torch.tensor([1, 3])).sum().backward()
        optimizer.step()
    assert bool(np.isfinite(watcher.history["update_ratio"][0, 0])) == is_known
