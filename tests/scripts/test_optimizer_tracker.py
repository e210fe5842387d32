"""Whatever trains while a tracker is there is watched, under the names that its model gives."""

import copy
import gc
import os
import pickle
import shutil
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim.optimizer import _global_optimizer_pre_hooks

import gradwatch
from gradwatch.scripts import optimizer_tracker
from gradwatch.scripts.models import roots_of
from gradwatch.scripts.optimizer_tracker import OptimizerTracker
from gradwatch.scripts.summary import summary_text
from gradwatch.watcher import Watcher
from tests.written import layers_in


@pytest.fixture
def tracker(tmp_path):
    made = OptimizerTracker(tmp_path / "runs", None)
    made.begin()
    yield made
    made.end()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.last(self.first(x).tanh())


class Other(Net):
    pass


def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(model, steps=3, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        losses.append(model(torch.randn(8, 4)).square().mean())
        update(optimizer, losses[-1])
    return [loss.item() for loss in losses]


def watcher_of(tracker, which=0):
    loop = tracker._trained[which].loop
    return None if loop is None else Watcher(loop)


def test_a_model_is_seen_from_its_first_step_on_under_the_names_of_its_parameters(tracker):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = train(model, 12, optimizer)
    history = watcher_of(tracker).history
    assert history.layers == tuple(name for name, _ in model.named_parameters())
    assert history.steps.tolist() == list(range(12))
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-6)
    assert tracker.summaries[0].steps == 12


def test_figures_are_those_of_a_watched_loop(tracker):
    def trained(watch):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.Adam(model.parameters())
        # every step is a row, as the first steps are under `gradwatch run`
        watcher = gradwatch.watch(model, optimizer, log_every_n_steps=1) if watch else None
        for _ in range(12):
            loss = model(torch.randn(8, 4)).square().mean()
            if watcher is not None:
                watcher.observe_loss(loss)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
        return model, optimizer, watcher

    model, kept, _ = trained(watch=False)  # a dropped optimizer would let its watcher go
    history = watcher_of(tracker).history
    tracker.end()
    del kept
    twin, _, watcher = trained(watch=True)
    watcher.close()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    for name in ("grad_norm", "grad_norm_total", "loss", "activation_rms", "update_ratio", "already_clipped"):
        assert np.allclose(history[name], watcher.history[name], equal_nan=True), name


def test_a_nan_of_the_very_first_forward_pass_is_traced_to_its_operation(tracker):
    class Log(Net):
        def forward(self, x):
            return self.last(torch.log(self.first(x)))

    train(Log(), 1)
    (finding,) = tracker.summaries[0].findings
    assert "Observed" in finding.cause
    assert "logarithm" in finding.cause


def test_two_models_of_a_gan_are_told_apart(tracker, tmp_path):
    generator = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    critic = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizers = [torch.optim.Adam(model.parameters()) for model in (generator, critic)]
    for _ in range(3):
        made = generator(torch.randn(8, 4))
        update(optimizers[1], critic(made.detach()).mean() - critic(torch.randn(8, 2)).mean())
        update(optimizers[0], -critic(made).mean())
    tracker.end()
    assert sorted(found.name for found in tracker.summaries) == ["critic", "generator"]
    assert [found.steps for found in tracker.summaries] == [3, 3]
    for name in ("critic", "generator"):
        assert f"{name}.2.weight" in layers_in(tmp_path / "runs" / name)


def test_models_trained_in_turn_have_a_directory_each(tracker, tmp_path):
    for model in (Net(), Other(), Net()):
        train(model)
    tracker.end()
    assert [found.name for found in tracker.summaries] == ["Net", "Other", "Net_2"]
    assert [found.log_dir for found in tracker.summaries] == [
        tmp_path / "runs", tmp_path / "runs" / "Other", tmp_path / "runs" / "Net_2"
    ]  # fmt: skip
    assert "first.weight" in layers_in(tmp_path / "runs")
    assert "Other.first.weight" in layers_in(tmp_path / "runs" / "Other")


def test_a_new_optimizer_of_the_same_model_goes_on_with_its_run(tracker):
    model = Net()
    train(model)
    gc.collect()
    train(model)
    assert [found.steps for found in tracker.summaries] == [6]


def test_a_model_that_is_dropped_is_let_go_when_the_next_one_comes(tracker):
    model = Net()
    weight = weakref.ref(model.first.weight)
    train(model)
    del model
    train(Other())
    gc.collect()
    assert weight() is None


def test_models_beyond_the_limit_are_left_alone(tracker, monkeypatch, caplog):
    monkeypatch.setattr(optimizer_tracker, "MOST_MODELS", 2)
    for _ in range(4):
        train(Net())
    assert len(tracker.summaries) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "gradwatch: 2 models are watched; further models of this run are not."
    ]


def test_a_part_of_a_model_has_the_name_that_it_has_in_the_whole(tracker):
    model = Net()
    train(model, optimizer=torch.optim.SGD(model.last.parameters(), lr=0.1))
    assert watcher_of(tracker).history.layers == ("first.weight", "first.bias", "last.weight", "last.bias")


def test_two_models_of_one_optimizer_share_a_run(tracker):
    encoder, decoder = Net(), Other()
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
    update(optimizer, encoder(torch.randn(8, 4)).mean() + decoder(torch.randn(8, 4)).mean())
    assert [found.name for found in tracker.summaries] == ["Net+Other"]
    assert watcher_of(tracker).history.layers[0] == "Net.first.weight"
    assert "Other.last.bias" in watcher_of(tracker).history.layers


def test_bare_tensors_have_the_names_of_their_variables(tracker):
    slope, offset = torch.ones(3, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([slope, offset], lr=0.1)
    for _ in range(3):
        update(optimizer, (slope.sum() + offset).square().sum())
    assert watcher_of(tracker).history.layers == ("slope", "offset")
    assert len(watcher_of(tracker).history) == 3


def test_two_optimizers_of_one_backward_pass_both_get_its_loss(tracker):
    model = Net()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.first, model.last)]
    losses = []
    for _ in range(3):
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses += [loss.item()] * 2
    assert watcher_of(tracker).history["loss"].tolist() == pytest.approx(losses)


def test_losses_of_accumulated_batches_are_averaged(tracker):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    means = []
    for _ in range(3):
        losses = [model(torch.randn(8, 4)).square().mean() for _ in range(4)]
        for loss in losses:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        means.append(sum(loss.item() for loss in losses) / 4)
    assert watcher_of(tracker).history["loss"].tolist() == pytest.approx(means)


@pytest.mark.parametrize(
    "call", [lambda pair: torch.autograd.backward(pair), lambda pair: (pair[0] + pair[1]).backward()]
)
def test_of_several_losses_the_sum_counts(tracker, call):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = [model(torch.ones(2, 4)).square().mean(), model(torch.randn(8, 4)).square().mean()]
    call(parts)
    optimizer.step()
    assert watcher_of(tracker).history["loss"].tolist() == pytest.approx([sum(part.item() for part in parts)])


def test_what_is_not_a_scalar_is_no_loss(tracker):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = model(torch.randn(8, 4))
    output.backward(torch.ones_like(output))
    optimizer.step()
    assert [str(loss) for loss in watcher_of(tracker).history["loss"].tolist()] == ["nan"]


def test_lbfgs_takes_the_loss_of_its_first_evaluation(tracker):
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    x, evaluated = torch.randn(8, 4), []

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        evaluated[-1].append(loss.item())
        return loss

    for _ in range(3):
        evaluated.append([])
        optimizer.step(closure)
    assert all(len(losses) > 1 for losses in evaluated)
    assert watcher_of(tracker).history["loss"].tolist() == pytest.approx([losses[0] for losses in evaluated])


@pytest.mark.parametrize("divide", [1, 2])
def test_a_scaled_loss_is_divided_back_and_what_the_scaler_leaves_out_is_counted(tracker, divide):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60 if divide == 1 else 2.0**10)
    losses = []
    for step in range(4):
        loss = model(torch.randn(8, 4)).square().mean() * (1e25 if divide == 1 and step == 0 else 1)
        scaled = scaler.scale(loss)
        (scaled if divide == 1 else scaled / divide).backward()
        scaler.step(optimizer)
        scaler.update(2.0**10)
        optimizer.zero_grad()
        losses.append(loss.item() / divide)
    history = watcher_of(tracker).history
    assert history["loss"].tolist() == pytest.approx(losses)
    assert history["skipped"].tolist() == [divide == 1, False, False, False]
    assert tracker.summaries[0].steps == 4
    assert tracker.summaries[0].findings == []


def test_a_program_that_watches_itself_is_not_watched_twice(tracker):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(3):
            update(optimizer, model(torch.randn(8, 4)).mean() * torch.nan)
    assert watcher_of(tracker) is None
    assert len(watcher.history) == 3
    (found,) = tracker.summaries
    assert (found.steps, found.log_dir, [finding.kind for finding in found.findings]) == (3, None, ["nonfinite"])


def test_a_program_that_begins_to_watch_takes_over(tracker, caplog):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, 2, optimizer)
    with gradwatch.watch(model, optimizer) as watcher:
        train(model, 3, optimizer)
    assert len(watcher.history) == 3
    assert [record.getMessage() for record in caplog.records if "already watched" in record.getMessage()]


@pytest.mark.parametrize("make", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_an_optimizer_that_was_never_constructed_is_met_when_it_steps(tracker, make):
    model = Net()
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    del tracker._of[model.optimizer]
    tracker._trained.clear()
    twin = make(model)
    losses = train(twin, 8, twin.optimizer)
    history = watcher_of(tracker).history
    assert history.layers[0] == "first.weight"
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-6)
    assert (
        history["activation_rms"][2, ::2] > 0
    ).all()  # in the columns of weights; its second sampled step, the first that it can be seen in whole


def test_an_optimizer_inside_the_backward_pass_is_told_and_left_alone(tracker, caplog):
    model = nn.Linear(4, 1)
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda tensor: optimizers[tensor].step())
    before = model.weight.clone()
    model(torch.ones(2, 4)).sum().backward()
    assert not torch.equal(model.weight, before)
    assert any("steps inside the backward pass" in record.getMessage() for record in caplog.records)
    assert "watched by nobody" in summary_text(tracker.summaries)


def test_a_fault_of_ours_never_stops_the_program(tracker, monkeypatch, caplog):
    def fault(*args, **kwargs):
        raise RuntimeError("made by the test")

    for method in ("_find", "_watch"):
        monkeypatch.setattr(OptimizerTracker, method, fault)
    monkeypatch.setattr(tracker._losses, "begin", fault)
    model = Net()
    before = model.first.weight.clone()
    train(model)
    assert not torch.equal(model.first.weight, before)
    assert all("a fault in gradwatch itself" in record.getMessage() for record in caplog.records)
    assert caplog.records


def test_torch_is_as_it_was_afterwards(tmp_path):
    def patched():
        scaler = torch.amp.GradScaler
        return torch.optim.Optimizer.__init__, torch.autograd.backward, scaler.scale, scaler.step

    before = patched()
    tracker = OptimizerTracker(tmp_path, None)
    tracker.begin()
    train(Net())
    assert all(now is not was for now, was in zip(patched(), before, strict=True))
    tracker.end()
    assert patched() == before
    assert not _global_optimizer_pre_hooks


def test_clip_is_passed_on(tmp_path):
    tracker = OptimizerTracker(tmp_path, 1e-3)
    tracker.begin()
    train(Net())
    history = watcher_of(tracker).history
    tracker.end()
    assert (history["grad_norm_clipped_total"] <= 1e-3).all()
    assert (history["grad_norm_total"] > 1e-3).all()


@pytest.fixture
def compiler():
    """A compiler that has seen nothing, and forgets what it saw."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("compile_first", [True, False])
def test_a_compiled_model_has_its_own_names_and_is_compiled_once(tracker, compile_first):
    counter = CompileCounter()
    model = Net()
    optimizer = None if compile_first else torch.optim.SGD(model.parameters(), lr=0.1)
    train(torch.compile(model, backend=counter, fullgraph=True), 6, optimizer)
    assert watcher_of(tracker).history.layers[0] == "first.weight"
    assert len(watcher_of(tracker).history) == 6
    assert counter.frame_count == 1


def test_a_model_whose_parts_are_called_is_seen_from_its_first_step_on(tracker):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Net()

        def training_step(self, x):
            return self.body(x).square().mean()

    module = Parts()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        update(optimizer, module.training_step(torch.randn(8, 4)))
    assert watcher_of(tracker).history.layers[0] == "body.first.weight"
    assert len(watcher_of(tracker).history) == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_files_alone(tracker):
    model = Net()
    train(model)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(model)
            status = int(tracker.summaries[0].steps != 3 or not tracker.is_in_child)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    train(model)
    assert tracker.summaries[0].steps == 6


def test_roots_are_the_outermost_modules_and_bare_tensors_are_left(tracker):
    model, bare = Net(), torch.ones(2, requires_grad=True)
    whole = nn.ModuleDict({"net": model})
    roots, left = roots_of([*model.parameters(), bare])
    assert len(roots) == 1
    assert roots[0] is whole
    assert len(left) == 1
    assert left[0] is bare


def test_a_circle_of_modules_has_an_end():
    model = Net()
    model.first.owner = model
    roots, left = roots_of(list(model.parameters()))
    assert left == []
    assert {id(root) for root in roots} <= {id(model), id(model.first), id(model.last)}
    del model.first.owner


def test_the_summary_tells_steps_findings_and_files(tracker, tmp_path):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    update(optimizer, model(torch.randn(8, 4)).mean() * torch.nan)
    tracker.end()
    first, second = summary_text(tracker.summaries).splitlines()
    assert first == f"gradwatch: 1 step, 1 finding (1 nonfinite); event files in {tmp_path / 'runs'}"
    assert second == f"  why, and what to do: gradwatch report {tmp_path / 'runs'}"


def test_the_summary_names_the_directory_that_was_written(tracker, tmp_path):
    train(nn.Linear(4, 1))
    tracker.end()
    again = OptimizerTracker(tmp_path / "runs", None)
    again.begin()
    kept = torch.optim.SGD((model := Net()).parameters(), lr=0.1)
    train(model, 3, kept)
    again.end()
    assert (
        summary_text(again.summaries)
        == f"gradwatch: 3 steps, no findings; event files in {tmp_path / 'runs' / 'run_2'}\n"
    )
    shutil.rmtree(tmp_path / "runs")
    assert summary_text(again.summaries).endswith(f"; no event files: {tmp_path / 'runs' / 'run_2'} is not there\n")


def test_a_loss_that_was_not_seen_is_told_by_the_summary_and_not_as_advice_for_another_loop(tracker, caplog):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter, gradient in zip(
        model.parameters(), torch.autograd.grad(model(torch.ones(2, 4)).sum(), list(model.parameters())), strict=True
    ):
        parameter.grad = gradient
    optimizer.step()
    tracker.end()
    assert [record.getMessage() for record in caplog.records] == []
    assert summary_text(tracker.summaries).splitlines()[1].startswith("  No scalar loss was seen")


def test_a_closures_loss_is_one(tracker):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert tracker.summaries[0].saw_loss


def test_a_model_that_was_called_and_never_updated_is_no_matter_for_advice(tracker, caplog):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    tracker.end()
    assert caplog.records == []
    assert "no optimizer of torch.optim has stepped" in summary_text(tracker.summaries)
    assert "ended before" in summary_text(tracker.summaries, has_failed=True)
    del optimizer


def test_the_summary_of_nothing_says_so():
    assert "no optimizer of torch.optim has stepped" in summary_text([])


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    tracker = OptimizerTracker(tmp_path / "runs", None)
    tracker.begin()
    train(Net())
    tracker.end()
    assert not tracker.is_first_rank
    assert tracker.summaries[0].steps == 3
    assert not (tmp_path / "runs").exists()


def test_the_operation_of_a_loss_that_failed_is_named_as_a_watched_loop_names_it(tracker):
    def trained(watcher=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3), nn.Softmax(1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = watcher and watcher(model, optimizer)
        for step in range(8):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            if step == 6:
                model[2].weight.data.mul_(1000)
            loss = -torch.log(model(x)[torch.arange(16), y]).mean()
            if watcher:
                watcher.observe_loss(loss)
            update(optimizer, loss)
        return watcher and watcher.findings, optimizer

    _, kept = trained()
    (found,) = tracker.summaries[0].findings
    tracker.end()
    del kept
    (expected,), _ = trained(lambda *pair: gradwatch.watch(*pair))
    assert "logarithm of 0" in found.cause
    assert (found.cause, found.remedies) == (expected.cause, expected.remedies)
