"""The watcher joins its parts: plain loops, cadence, findings, clipping, sinks, resume, and never gets in the way."""

import copy
import gc
import logging
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import gradwatch
from gradwatch import Finding, Memory, NonFiniteError, Thresholds
from gradwatch.sinks.tensorboard import TensorBoard


def net(seed=0, width=8, depth=2):
    torch.manual_seed(seed)
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 1))


def batch(step, width=8):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, width, generator=generator)
    return x, x.sum(1, keepdim=True)


def train(model, optimizer, steps, watcher=None, spoil=()):
    """A plain loop; ``spoil`` names steps whose batch holds a NaN."""
    for step in range(steps):
        x, y = batch(step)
        if step in spoil:
            x[0, 0] = torch.nan
        loss = (model(x) - y).square().mean()
        if watcher is not None:
            watcher.observe_loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def sgd(model, lr=0.01):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def watched_run(steps=30, model=None, spoil=(), lr=0.01, **options):
    model = net() if model is None else model
    optimizer = sgd(model, lr)
    with gradwatch.watch(model, optimizer, **options) as watcher:
        train(model, optimizer, steps, watcher, spoil)
    return watcher, model


def test_history_holds_the_norms_of_a_reference_loop():
    model, bare = net(), net()
    watcher, _ = watched_run(12, model)
    optimizer, expected = sgd(bare), []
    for step in range(12):
        x, y = batch(step)
        optimizer.zero_grad()
        (bare(x) - y).square().mean().backward()
        expected.append([p.grad.double().norm().item() for p in bare.parameters()])
        optimizer.step()
    assert watcher.history.layers == tuple(name for name, _ in bare.named_parameters())
    assert watcher.history.steps.tolist() == list(range(12))
    np.testing.assert_allclose(watcher.history["grad_norm"], expected, rtol=1e-5)
    np.testing.assert_allclose(watcher.history["grad_norm_total"], np.linalg.norm(expected, axis=1), rtol=1e-5)


def test_watching_leaves_weights_and_optimizer_state_bit_for_bit():
    bare = net()
    optimizer = sgd(bare)
    train(bare, optimizer, 40)
    _, model = watched_run(40, histograms=True, layer_scalars=True, sinks=[Memory()], log_every_n_steps=3)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), model.parameters(), strict=True))


def test_clipping_trains_as_clip_grad_norm_does():
    bare, model = net(), net()
    optimizer = sgd(bare)
    for step in range(30):
        x, y = batch(step)
        optimizer.zero_grad()
        (bare(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(bare.parameters(), 0.5)
        optimizer.step()
    watcher, _ = watched_run(30, model, clip=0.5)
    for a, b in zip(bare.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert (watcher.history["grad_norm_clipped_total"] <= 0.5 + 1e-6).all()
    assert watcher.history["grad_norm_total"].max() > 0.5


def test_clipping_counts_parameters_that_are_not_watched():
    watcher, _ = watched_run(3, clip=1e-3, include="0.*")
    assert watcher.history.layers == ("0.weight", "0.bias")
    np.testing.assert_allclose(watcher.history["grad_norm_clipped_total"], 1e-3, rtol=1e-2)


def test_a_wrapper_of_an_optimizer_is_followed_to_what_it_wraps():
    class Prepared(torch.optim.Optimizer):  # as Accelerate's: an optimizer by type, without hooks of its own
        def __init__(self, optimizer):
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)

        def step(self, closure=None):
            return self.optimizer.step(closure)

    model = nn.Linear(4, 1)
    optimizer = Prepared(torch.optim.SGD(model.parameters(), lr=0.1))
    with gradwatch.watch(model, optimizer, clip=0.5) as watcher:
        for _ in range(3):
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    assert len(watcher.history) == 3
    assert np.isfinite(watcher.history["grad_norm"]).all()


def test_an_optimizer_that_was_not_given_is_found():
    model = net()
    optimizer, stranger = sgd(model), sgd(net(1))
    with gradwatch.watch(model) as watcher:
        train(net(1), stranger, 3)
        train(model, optimizer, 5, watcher)
    assert len(watcher.history) == 5


def test_a_gan_is_watched_by_each_optimizers_own_parameters():
    generator, discriminator = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizers = [sgd(generator), sgd(discriminator)]
    with gradwatch.watch({"g": generator, "d": discriminator}, optimizers) as watcher:
        for step in range(6):
            for optimizer in optimizers:
                loss = discriminator(generator(torch.ones(2, 4) * step)).square().mean()
                watcher.observe_loss(loss)
                loss.backward()
                optimizer.step()
    norms = watcher.history["grad_norm"]
    assert watcher.history.layers == ("g.weight", "g.bias", "d.weight", "d.bias")
    assert watcher.history["optimizer"].tolist() == [0, 1] * 6
    assert np.isnan(norms[0::2, 2:]).all()
    assert np.isnan(norms[1::2, :2]).all()
    assert not np.isnan(norms[0::2, :2]).any()


@pytest.mark.parametrize("optimizer_class", [torch.optim.LBFGS, torch.optim.SGD])
def test_gradients_of_a_closure_are_those_after_its_backward(optimizer_class):
    model = nn.Linear(8, 1)
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    expected = []

    def closure():
        optimizer.zero_grad()
        x, y = batch(step)
        loss = (model(x) - y).square().mean()
        loss.backward()
        if len(expected) == step:
            expected.append((model.weight.grad.norm().item(), loss.item()))
        return loss

    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(4):  # noqa: B007 (the closure reads it)
            optimizer.step(closure)
    np.testing.assert_allclose(watcher.history["grad_norm"][:, 0], [norm for norm, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(watcher.history["loss"], [loss for _, loss in expected], rtol=1e-6)


def test_layers_without_gradient_are_not_measured_and_raise_nothing():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(8, 1), nn.Linear(8, 8), nn.Linear(8, 8)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.used(self.frozen(x))

    watcher, _ = watched_run(40, Unused())
    norms = dict(zip(watcher.history.layers, watcher.history["grad_norm"].T, strict=True))
    assert np.isnan(norms["unused.weight"]).all()
    assert np.isnan(norms["frozen.weight"]).all()
    assert not np.isnan(norms["used.weight"]).any()
    assert watcher.findings == []


def test_depth_follows_the_forward_pass_rather_than_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(8, 1), nn.Linear(8, 8)

        def forward(self, x):
            return self.last(self.first(x))

    watcher, model = watched_run(5, Backwards(), spoil=(3, 4))
    assert [finding.layer for finding in watcher.findings] == ["last.bias"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nan_is_found_at_its_step_with_layer_count_and_cause():
    watcher, _ = watched_run(10, spoil=(6,))
    (finding,) = [f for f in watcher.findings if f.kind == "nonfinite"]
    assert (finding.layer, finding.step, finding.severity) == ("4.bias", 6, "error")
    assert finding.layers == watcher.history.layers
    assert finding.value == 1
    assert "loss of this step is nan" in finding.cause
    assert "step 6" in finding.message
    assert finding.remedies


def test_skip_leaves_weights_and_state_as_they_were():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with gradwatch.watch(model, optimizer, on_nonfinite="skip") as watcher:
        train(model, optimizer, 5, watcher)
        before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
        train(model, optimizer, 1, watcher, spoil=(0,))
        after = [model.state_dict(), optimizer.state_dict()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert watcher.history["skipped"].tolist() == [False] * 5 + [True]


def test_raise_names_layer_and_step_before_the_update():
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, on_nonfinite="raise") as watcher:
        train(model, optimizer, 3, watcher)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(NonFiniteError, match=r"4\.bias") as caught:
            train(model, optimizer, 1, watcher, spoil=(0,))
    assert (caught.value.layer, caught.value.step) == ("4.bias", 3)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_rows_come_at_the_cadence_and_lose_no_spike():
    memory = Memory()
    watched_run(23, sinks=[memory], log_every_n_steps=10, spoil=(14,), on_nonfinite="skip")
    assert [row.report.step for row in memory.rows] == [0, 10, 20]
    assert np.isinf(memory.rows[2].highest).all()
    assert np.isfinite(memory.rows[1].highest).all()
    assert memory.rows[2].skipped_steps == 1
    assert memory.closed


def test_logging_more_often_changes_no_finding():
    runs = [watched_run(60, lr=0.5, log_every_n_steps=n, layer_scalars=True)[0].findings for n in (1, 7, 50)]
    assert runs[0]
    assert runs[0] == runs[1] == runs[2]


def test_update_ratio_is_how_far_the_update_moved_the_weights():
    model = nn.Linear(8, 1, bias=False)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        before = model.weight.detach().clone()
        train(model, optimizer, 1, watcher)
    moved = (model.weight.detach() - before).norm() / before.norm()
    np.testing.assert_allclose(watcher.history["update_ratio"], [[moved.item()]], rtol=1e-5)


def test_on_finding_hears_of_each_once_and_at_once():
    heard = []
    watcher, _ = watched_run(12, spoil=(6, 7, 8), on_finding=heard.append)
    assert [type(finding) for finding in heard] == [Finding]
    assert heard[0].raised_step == heard[0].last_step == 6
    assert len(watcher.findings) == 1


@pytest.mark.parametrize("cut", [1, 4, 9, 12])
def test_a_resumed_run_finds_what_the_uncut_one_finds(cut, tmp_path):
    def run(model, optimizer, first, last, state=None):
        watcher = gradwatch.watch(model, optimizer, clip="auto")
        if state is not None:
            watcher.load_state_dict(torch.load(state, weights_only=True))
        with watcher:
            for step in range(first, last):
                x, y = batch(step)
                loss = (model(x) - y).square().mean() * (1e3 ** max(0, step - 6) if step < 12 else torch.nan)
                watcher.observe_loss(loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return watcher

    whole = net()
    uncut = run(whole, sgd(whole), 0, 20)
    model = net()
    optimizer = sgd(model)
    first = run(model, optimizer, 0, cut)
    path = tmp_path / "state.pt"
    torch.save(first.state_dict(), path)
    second = run(model, optimizer, cut, 20, path)
    assert uncut.findings
    assert second.findings == uncut.findings
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0, equal_nan=True)


def test_each_group_has_its_own_learning_rate():
    model = net()
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": others, "lr": 0.25}], lr=0.5)
    with gradwatch.watch(model, optimizer) as watcher:
        train(model, optimizer, 2)
        optimizer.param_groups[0]["lr"] = 0.125
        train(model, optimizer, 1)
    np.testing.assert_array_equal(watcher.history["learning_rates"], [[0.5, 0.25], [0.5, 0.25], [0.125, 0.25]])
    np.testing.assert_array_equal(watcher.history["learning_rate"], [0.5, 0.5, 0.25])


def test_a_state_of_another_model_is_refused():
    state = watched_run(3)[0].state_dict()
    with gradwatch.watch(nn.Linear(2, 1)) as watcher, pytest.raises(ValueError, match="another model"):
        watcher.load_state_dict(state)


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("is_held", [True, False])
def test_a_model_that_is_dropped_is_gone_and_one_that_lives_is_watched(is_given, is_held):
    hooks = len(_global_optimizer_pre_hooks)
    gone = []
    for _ in range(5):
        model = net()
        optimizer = sgd(model)
        memory = Memory()
        watcher = gradwatch.watch(model, optimizer if is_given else None, sinks=[memory], log_every_n_steps=1)
        if not is_held:
            del watcher
            gc.collect()
        train(model, optimizer, 2)
        gc.collect()
        train(model, optimizer, 1)
        assert len(memory.rows) == 3
        gone += [weakref.ref(model), *map(weakref.ref, model.parameters())]
    del model, optimizer, memory
    if is_held:
        del watcher
    gc.collect()
    assert not any(each() is not None for each in gone)
    assert len(_global_optimizer_pre_hooks) == hooks


class Broken(Memory):
    def write_row(self, row):
        raise OSError("disk full")


def test_a_broken_sink_is_tried_again_with_one_warning_and_training_goes_on(caplog):
    memory = Memory()
    watcher, _ = watched_run(5, sinks=[Broken(), memory], log_every_n_steps=1)
    assert len(watcher.history) == len(memory.rows) == 5
    assert [record.message for record in caplog.records if "Broken" in record.message] == [
        "gradwatch: Broken failed to write row (OSError: disk full); it is tried again, training goes on.",
        "gradwatch: Broken never took 5 rows.",
    ]


def test_a_broken_on_finding_never_stops_training(caplog):
    def broken(finding):
        raise RuntimeError("no network")

    watcher, _ = watched_run(10, spoil=(3, 4), on_finding=broken)
    assert len(watcher.history) == 10
    assert sum("on_finding raised" in record.message for record in caplog.records) == 1


def test_closing_takes_every_hook_off_and_twice_is_fine():
    model = net()
    optimizer = sgd(model)
    watcher = gradwatch.watch(model, optimizer, log_dir=None)
    train(model, optimizer, 2, watcher)
    watcher.close()
    watcher.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, 2)
    assert len(watcher.history) == 2


def test_a_second_watcher_closes_the_first_and_says_so(caplog):
    model = net()
    optimizer = sgd(model)
    first = gradwatch.watch(model, optimizer)
    with gradwatch.watch(model, optimizer) as second:
        train(model, optimizer, 2, second)
    assert len(first.history) == 0
    assert "already watched" in caplog.text


def test_a_run_without_steps_or_without_loss_says_so_at_close(caplog):
    gradwatch.watch(net()).close()
    assert "no step was seen" in caplog.text
    caplog.clear()
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, find_loss=False):
        train(model, optimizer, 2)
    assert "no loss was seen" in caplog.text


@pytest.mark.parametrize(
    ("failing", "says"),
    [
        ("gradwatch.hooks.optimizers.parameters_of", "none of the 2 steps was measured"),
        ("gradwatch.watcher.watched_loop.before_update_plainly", "no step was counted, because of the fault"),
    ],
)
def test_a_fault_of_ours_is_not_blamed_on_the_loop(caplog, monkeypatch, failing, says):
    model = net()
    optimizer = sgd(model)
    monkeypatch.setattr("gradwatch.hooks.optimizers.parameters_of", None)  # calling it fails
    monkeypatch.setattr(failing, None)  # calling it fails
    with gradwatch.watch(model, optimizer):
        train(model, optimizer, 2)
    assert says in caplog.text
    assert "Was the optimizer" not in caplog.text
    assert "Call watcher.observe_loss" not in caplog.text


def test_a_healthy_run_says_nothing(caplog):
    watched_run(50)
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"clip": -1.0}, ValueError, "clip=-1.0"),
        ({"clip": "sometimes"}, ValueError, "clip='sometimes'"),
        ({"clip": [1.0]}, TypeError, "gradwatch.clip"),
        ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite='ignore'"),
        ({"log_every_n_steps": 0}, ValueError, "log_every_n_steps=0"),
        ({"history": 0}, ValueError, "history=0"),
        ({"thresholds": {"patience": 3}}, TypeError, "thresholds"),
        ({"include": "layers.*"}, ValueError, "Did you mean"),
        ({"exclude": "*"}, ValueError, "nothing to watch"),
        ({"layer_scalars": ["norm"]}, ValueError, "norm"),
        ({"optimizer": sgd(nn.Linear(2, 2))}, ValueError, "owns none of the 6 watched parameters"),
        ({"optimizer": 3}, TypeError, "optimizer: .* found int. Leave optimizer out"),
        ({"optimizer": "adam"}, TypeError, "optimizer: .* found str"),
    ],
)
def test_bad_input_is_refused_by_name(options, error, says):
    with pytest.raises(error, match=says):
        gradwatch.watch(net(), **options)


@pytest.mark.parametrize("wrap", [lambda engine: engine, lambda engine: {"one": nn.Linear(4, 1), "two": engine}])
def test_an_engine_of_deepspeed_is_refused_in_words(wrap):
    """DeepSpeed is not installed here: its engines are known by the name of their type, derived ones as well."""

    class DeepSpeedEngine(nn.Module): ...

    class PipelineEngine(DeepSpeedEngine): ...

    with pytest.raises(TypeError, match=r"found PipelineEngine\. ZeRO of DeepSpeed keeps gradients .*fully_shard"):
        gradwatch.watch(wrap(PipelineEngine()))


def test_an_optimizer_that_steps_inside_the_backward_pass_is_refused():
    model = nn.Linear(8, 1)
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    with gradwatch.watch(model), pytest.raises(RuntimeError, match="this SGD steps inside the backward pass"):
        model(torch.ones(2, 8)).sum().backward()


def test_a_step_that_a_cuda_graph_captures_is_refused_in_words(monkeypatch):
    monkeypatch.setattr("gradwatch._torch.is_capturing", lambda: True)  # no GPU is needed to be told
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    with gradwatch.watch(model, optimizer), pytest.raises(RuntimeError, match="a CUDA graph captures this step of SGD"):
        optimizer.step()


def test_a_loss_of_several_entries_is_refused():
    with gradwatch.watch(net()) as watcher, pytest.raises(TypeError, match=r"shape \(2,\)"):
        watcher.observe_loss(torch.ones(2))


def test_bare_tensors_are_watched_and_clipped_in_place():
    w = torch.ones(4)
    with gradwatch.watch_tensors({"w": w}, clip=1.0) as watcher:
        for _ in range(4):
            grad = 2 * w
            watcher.step(grads={"w": grad}, loss=w.square().sum())
            assert grad.norm() <= 1 + 1e-5
            w -= 0.1 * grad
    np.testing.assert_allclose(watcher.history["grad_norm"][0], [4.0])
    np.testing.assert_allclose(watcher.history["update_ratio"][1], [0.05], rtol=1e-4)  # 0.1 · 1 / 2, one step later


@pytest.mark.parametrize(
    ("grads", "error", "says"),
    [
        ({"v": torch.ones(4)}, KeyError, "not watched"),
        ({"w": torch.ones(3)}, ValueError, r"shape \(3,\), expected \(4,\)"),
    ],
)
def test_bad_gradients_by_hand_are_refused_by_name(grads, error, says):
    with gradwatch.watch_tensors({"w": torch.ones(4)}) as watcher, pytest.raises(error, match=says):
        watcher.step(grads=grads)


def test_step_serves_a_module_without_an_optimizer():
    model = nn.Linear(8, 1)
    with gradwatch.watch(model) as watcher:
        for step in range(3):
            x, y = batch(step)
            loss = (model(x) - y).square().mean()
            model.zero_grad()
            loss.backward()
            watcher.step(loss=loss)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.01 * parameter.grad
    assert len(watcher.history) == 3
    assert not np.isnan(watcher.history["grad_norm"]).any()


def test_user_thresholds_are_honoured_literally():
    watcher, _ = watched_run(20, thresholds=Thresholds(vanishing_norm=1e9, patience=4))
    (finding,) = watcher.findings
    assert (finding.kind, finding.step, finding.raised_step, finding.threshold) == ("vanishing", 0, 3, 1e9)
    assert finding.layers == watcher.history.layers


def test_log_dir_holds_scalars_and_findings(tmp_path):
    watched_run(12, log_dir=tmp_path, log_every_n_steps=5, spoil=(11,), layer_scalars=["grad_norm"])
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("grad_norm/0.weight")] == [0, 5, 10]
    assert {"grad_norm_total", "grad_norm_clipped_total", "skipped_steps"} <= set(events.Tags()["scalars"])
    (text,) = events.Tensors("gradwatch/findings/text_summary")
    assert text.step == 11
    assert b"nonfinite" in text.tensor_proto.string_val[0]


def test_a_log_dir_that_holds_a_run_is_left_alone_unless_that_run_goes_on(tmp_path, caplog):
    first, _ = watched_run(3, log_dir=tmp_path, log_every_n_steps=1)
    assert caplog.text == ""
    for number in (2, 3):
        watched_run(3, log_dir=tmp_path, log_every_n_steps=1)
        assert f"already holds a run; this one is written to {tmp_path / f'run_{number}'}" in caplog.text
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, log_dir=tmp_path, log_every_n_steps=1) as watcher:
        watcher.load_state_dict(first.state_dict())
        train(model, optimizer, 3, watcher)
    assert len(list(tmp_path.glob("*tfevents*"))) == 2
    assert [len(list((tmp_path / f"run_{n}").glob("*tfevents*"))) for n in (2, 3)] == [1, 1]


def test_an_unwritable_log_dir_is_said_once_and_what_it_never_took_at_the_end(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    watcher, _ = watched_run(5, log_dir=tmp_path / "file" / "run", log_every_n_steps=1)
    assert len(watcher.history) == 5
    assert sum("it is tried again" in record.message for record in caplog.records) == 1
    assert sum("TensorBoard never took 5 rows" in record.message for record in caplog.records) == 1


def test_a_writer_of_the_users_own_is_shared_and_left_open(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    watched_run(2, sinks=[TensorBoard(writer)], log_every_n_steps=1)
    writer.add_scalar("mine", 1.0, 3)
    writer.close()
    assert len(list(tmp_path.glob("events*"))) == 1


@pytest.mark.process
def test_a_script_that_never_closes_loses_nothing(tmp_path):
    program = """
        import torch, gradwatch
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = gradwatch.watch(model, optimizer, log_dir="run")
        model(torch.tensor([[1.0, torch.nan]])).sum().backward()
        optimizer.step()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "nonfinite in weight since step 0" in run.stderr
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert len(events.Scalars("grad_norm_total")) == 1


def test_a_model_that_is_gone_is_not_kept_alive_by_its_watcher():
    model = net()
    optimizer = sgd(model)
    memory = Memory()
    watcher = gradwatch.watch(model, optimizer, sinks=[memory])
    train(model, optimizer, 2, watcher)
    gone = weakref.ref(model)
    del model, optimizer, watcher
    gc.collect()
    assert gone() is None
    assert memory.closed


# what an optimizer leaves to the next one


def steps_of(watcher, optimizer, model, losses):
    for loss_factor in losses:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 8)).square().mean() * loss_factor
        watcher.observe_loss(loss)
        loss.backward()
        optimizer.step()


def test_a_new_optimizer_begins_with_baselines_of_its_own():
    model = net()
    with gradwatch.watch(model, clip="auto") as watcher:
        gone = []
        for _ in range(20):  # CPython may give a new object the address of one that is gone
            optimizer = sgd(model, lr=0.0)
            gone.append(weakref.ref(optimizer))
            steps_of(watcher, optimizer, model, [1.0] * 3)
            del optimizer
            gc.collect()
        assert not any(each() for each in gone)
        history = watcher.history
        assert history["optimizer"].tolist() == [number for number in range(20) for _ in range(3)]
        steps = watcher._loop.steps
        assert len(steps.tracks) <= 1  # those of optimizers that are gone are let go
        optimizer = sgd(model, lr=0.0)
        steps_of(watcher, optimizer, model, [100.0])
        clipped = watcher.history["grad_norm_clipped_total"][-1]
        assert clipped == watcher.history["grad_norm_total"][-1]  # nothing is known of this optimizer yet


def test_findings_of_an_optimizer_that_is_gone_are_kept_and_end():
    model = net()
    with gradwatch.watch(model, on_nonfinite="skip") as watcher:
        optimizer = sgd(model, lr=0.0)
        steps_of(watcher, optimizer, model, [1.0, torch.nan])
        (found,) = watcher.findings
        del optimizer
        gc.collect()
        optimizer = sgd(model, lr=0.0)
        steps_of(watcher, optimizer, model, [1.0])
        assert [(f.kind, f.step) for f in watcher.findings] == [(found.kind, found.step)]
        assert [finding.step for finding in watcher._loop.processor.ended] == [found.step]


def test_a_loop_without_an_optimizer_has_a_memory_of_its_own():
    w = torch.ones(3)
    with gradwatch.watch_tensors({"w": w}, clip="auto") as watcher:
        for _ in range(10):
            watcher.step(grads={"w": torch.ones(3)})
        watcher.step(grads={"w": spike} if (spike := torch.full((3,), 100.0)) is not None else None)
    assert watcher.history["optimizer"].tolist() == [0] * 11
    assert watcher.history["grad_norm_clipped_total"][-1] < 10


# what is public


def test_a_watcher_shows_what_users_need_and_nothing_else():
    with gradwatch.watch(net()) as watcher:
        shown = {name for name in dir(watcher) if not name.startswith("_")}
    assert shown == {
        "black_box", "close", "findings", "flush", "history", "load_state_dict", "observe_loss", "state_dict", "step",
    }  # fmt: skip


# states


def state_of_a_run():
    return watched_run(5, clip="auto")[0].state_dict()


def refused(state, says):
    with gradwatch.watch(net(), clip="auto") as watcher:
        with pytest.raises(ValueError, match=says):
            watcher.load_state_dict(state)
        assert watcher._loop.steps.count == 0  # nothing of it was taken


def test_a_state_of_another_version_is_refused_in_words():
    refused({**state_of_a_run(), "version": 1}, r"expected a state of version \d, found version 1.* Resume without it")


def test_what_is_no_state_is_refused_in_words():
    refused({"model": 1}, r"expected what state_dict\(\) returned, found the keys \['model'\]")
    refused([1], r"expected what state_dict\(\) returned, found list")


@pytest.mark.parametrize("missing", ["step", "layers", "ended", "optimizers", "skipped_steps"])
def test_a_state_with_a_part_missing_is_refused_in_words(missing):
    state = state_of_a_run()
    del state[missing]
    refused(state, "cannot be read")


@pytest.mark.parametrize("damaged", [None, 5, {}, "x", object(), torch.ones(3)], ids=lambda value: type(value).__name__)
def test_a_state_whose_detector_is_damaged_is_refused_in_words(damaged):
    state = state_of_a_run()
    state["optimizers"][0]["diagnosis"]["detectors"]["Dead"] = damaged
    refused(state, "cannot be read.* Resume without it")


def test_a_state_of_layers_without_names_is_refused_in_words():
    refused({**state_of_a_run(), "layers": [object()]}, "cannot be read")


def test_a_state_whose_optimizer_cannot_be_read_is_refused_before_any_step():
    state = state_of_a_run()
    state["optimizers"][0]["clip"]["version"] = 99
    refused(state, "what clip='auto' remembers")


def test_a_state_is_numbers_strings_and_tensors_under_a_version(tmp_path):
    state = state_of_a_run()
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    counts = {"step", "skipped_steps", "measured_steps"}
    assert loaded.keys() == state.keys() == {"version", "layers", *counts, "unjudged", "ended", "optimizers"}


# the garbage collector


def test_sinks_and_on_finding_run_with_the_garbage_collector_on():
    enabled = []

    class Noting(Memory):
        def write_row(self, row):
            enabled.append(gc.isenabled())

        def write_finding(self, finding, ended):
            enabled.append(gc.isenabled())

    note = lambda finding: enabled.append(gc.isenabled())
    watched_run(12, sinks=[Noting()], log_every_n_steps=1, spoil=(3,), on_finding=note)
    assert len(enabled) >= 14
    assert all(enabled)


# faults


def test_a_fault_in_a_block_leaves_the_others_their_figures(monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("made to happen")

    monkeypatch.setattr("gradwatch.measure.measurement.Measurement.measure_figures", fail)
    memory = Memory()
    watcher, _ = watched_run(12, clip=0.5, spoil=(6,), sinks=[memory], log_every_n_steps=1)
    assert len(watcher.history) == len(memory.rows) == 12
    assert np.isfinite(watcher.history["grad_norm"][0]).all()
    assert np.isnan(watcher.history["weight_norm"]).all()
    assert "nonfinite" in {finding.kind for finding in watcher.findings}
    assert (watcher.history["grad_norm_clipped_total"][:6] <= 0.5 + 1e-6).all()
    assert sum("a fault in gradwatch itself" in record.getMessage() for record in caplog.records) == 2  # and it rests


def test_where_measuring_fails_once_only_that_step_has_no_figures(monkeypatch):
    from gradwatch.measure import statistics

    measure, calls = statistics.measure, []

    def fail_at_the_fourth(*args):
        calls.append(args)
        if len(calls) == 4:
            raise ValueError("made to happen")
        return measure(*args)

    monkeypatch.setattr(statistics, "measure", fail_at_the_fourth)
    bare, model = net(), net()
    watcher, _ = watched_run(10, model, clip=0.5)
    optimizer = sgd(bare)
    for step in range(10):
        x, y = batch(step)
        optimizer.zero_grad()
        (bare(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(bare.parameters(), 0.5)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), model.parameters(), strict=True))
    assert len(watcher.history) >= 8
    assert watcher.history.steps[-1] == 9  # the step was counted all the same


def test_a_bad_clip_leaves_the_watcher_that_is_open_as_it_is():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        with pytest.raises(ValueError, match="clip=-1"):
            gradwatch.watch(model, optimizer, clip=-1)
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert len(watcher.history) == 1


@pytest.mark.parametrize("clip", [1.0, "auto"])
def test_a_default_device_of_the_users_is_not_where_figures_are(clip, tmp_path):
    """Nothing can be read from the device "meta"; a GPU would be waited for."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.set_default_device("meta")
    try:
        with gradwatch.watch(model, optimizer, clip=clip, log_dir=tmp_path, histograms=True) as watcher:
            for step in range(12):
                inputs = torch.full((8, 8), torch.nan if step == 9 else 1.0, device="cpu")
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
    finally:
        torch.set_default_device(None)
    assert len(watcher.history) == 12
    assert [(finding.kind, finding.step) for finding in watcher.findings if finding.kind == "nonfinite"] == [
        ("nonfinite", 9)
    ]
    assert not watcher._loop.guard.has_noted_faults
