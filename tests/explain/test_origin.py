"""The module that made a NaN or Inf, named out of those that it passed through."""

import contextlib
import math
import re
import sys
import weakref
from collections import defaultdict
from functools import partial

import lightning.pytorch as lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.lightning import GradWatch
from tests.forked_python import run


class Does(nn.Module):
    """A module that does one thing."""

    def __init__(self, thing):
        super().__init__()
        self.thing = thing

    def forward(self, x):
        return self.thing(x)


class Counting(Does):
    """A module that also counts, in a dict that makes its own entries."""

    def __init__(self, thing):
        super().__init__(thing)
        self.calls = defaultdict(int)

    def forward(self, x):
        self.calls[tuple(x.shape)] += 1
        return self.thing(x)


class Bag(nn.Module):
    """Divides before it chooses: a finite value, and a gradient of 0 · Inf."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        hidden = self.before(x)
        count = hidden.sum(1, keepdim=True) * 0
        return self.after(torch.where(count == 0, torch.zeros_like(hidden), hidden / count))


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def between(*middle):
    """A network of three linear layers around what is under test."""
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), *middle, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def mean_square(output):
    return output.square().mean()


def corrupted(model, layer, value=math.nan):
    model.get_submodule(layer).weight.data.view(-1)[0] = value
    return model


def masked(x):
    return torch.softmax(x.masked_fill(torch.ones_like(x, dtype=torch.bool), -math.inf), 1)


PROGRAMS = {
    "log of a negative number": (lambda: between(Does(torch.log)), mean_square, "2", "forward"),
    "in a module that holds a defaultdict": (lambda: between(Counting(torch.log)), mean_square, "2", "forward"),
    "log of zero": (lambda: between(Does(lambda x: (x * 0).log())), mean_square, "2", "forward"),
    "square root of a negative number": (lambda: between(Does(torch.sqrt)), mean_square, "2", "forward"),
    "division of zero by zero": (lambda: between(Does(lambda x: (x * 0) / (x * 0))), mean_square, "2", "forward"),
    "exponential that overflows": (lambda: between(Does(lambda x: (x * 0 + 100).exp())), mean_square, "2", "forward"),
    "Inf made, NaN two modules on": (
        lambda: between(Does(lambda x: (x * 0 + 100).exp()), nn.Identity(), Does(lambda x: x - x)),
        mean_square,
        "2",
        "forward",
    ),
    "softmax over a masked row": (lambda: between(Does(masked)), mean_square, "2", "forward"),
    "power of a negative number": (lambda: between(Does(lambda x: (-x.abs() - 1) ** 0.5)), mean_square, "2", "forward"),
    "overflow of float16": (lambda: between(Does(lambda x: (x * 0 + 7e4).half().float())), mean_square, "2", "forward"),
    "in place, under a rectifier": (
        lambda: between(nn.Linear(4, 4), nn.ReLU(inplace=True), Does(lambda x: x.log())),
        mean_square,
        "4",
        "forward",
    ),
    "in a residual branch": (
        lambda: between(Residual(nn.Sequential(nn.Linear(4, 4), Does(torch.log)))),
        mean_square,
        "2.branch.1",
        "forward",
    ),
    "corrupt weight": (lambda: corrupted(between(nn.Linear(4, 4)), "2"), mean_square, "2", "forward"),
    "corrupt weight, last": (lambda: corrupted(between(), "4", math.inf), mean_square, "4", "forward"),
    "normalised by a spread of zero": (
        lambda: between(Does(lambda x: (x - x) / (x * 0).std(0))),
        mean_square,
        "2",
        "forward",
    ),
    "loss of a logarithm": (between, lambda output: (-output.abs()).log().mean(), "", "loss"),
    "loss divided by zero": (between, lambda output: mean_square(output) / (output.sum() * 0), "", "loss"),
    "square root at zero, backward": (
        lambda: between(Does(lambda x: (x * 0).sqrt() + x)),
        mean_square,
        "2",
        "backward",
    ),
    "norm written by hand at zero, backward": (
        lambda: between(Does(lambda x: x + (x * 0).square().sum(1, keepdim=True).sqrt())),
        mean_square,
        "2",
        "backward",
    ),
    "where after the division, backward": (lambda: between(Bag()), mean_square, "2", "backward"),
    "atan2 at the origin, backward": (
        lambda: between(Does(lambda x: x + torch.where(x == x, x, torch.atan2(x * 0, x * 0) * torch.sqrt(x * 0)))),
        mean_square,
        "2",
        "backward",
    ),
    "power at zero, backward": (lambda: between(Does(lambda x: x + (x * 0) ** 0.5)), mean_square, "2", "backward"),
    "gradient of the loss alone": (between, lambda output: mean_square(output) + (output.sum() * 0).sqrt(), "", "loss"),
}


def by_trace_alone(watcher):
    """As where the update cannot wait for a replay: on another device, under ``on_nonfinite="report"``."""
    watcher._loop.origins.replay.remove()
    watcher._loop.origins.replay = None


def watched(model, loss_of, x, how="trace"):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradwatch.watch(model, optimizer, trace_nonfinite=how == "trace") as watcher:
        if how != "replay":
            by_trace_alone(watcher)
        for _ in range(2):
            optimizer.zero_grad()
            loss = loss_of(model(x))
            watcher.observe_loss(loss)
            loss.backward()
            optimizer.step()
        return [finding for finding in watcher.findings if finding.kind == "nonfinite"]


@pytest.mark.parametrize("how", ["trace", "replay"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_names_the_module_that_made_it(name, how):
    torch.manual_seed(0)
    make, loss_of, module, where = PROGRAMS[name]
    finding = watched(make(), loss_of, torch.randn(8, 4), how)[0]
    said = finding.cause
    assert said.startswith("Observed: ")
    title = f"{module} (" if module else "the model itself (Sequential)"
    assert title in said
    told = {"forward": "was given finite values and returned", "backward": "given finite gradients and returned"}
    assert told.get(where, "the loss made of them is not") in said or "is already NaN or Inf" in said
    assert finding.step == 0


def test_a_bad_batch_is_told_from_a_bad_module():
    x = torch.randn(8, 4)
    x[3, 1] = math.nan
    said = watched(between(), mean_square, x)[0].cause
    assert "what the model itself (Sequential) was given already held NaN or Inf, in 1 of 8 rows: 3." in said


def test_parts_of_several_models_bear_their_names():
    torch.manual_seed(0)
    models = {"first": nn.Linear(4, 4), "second": nn.Sequential(Does(torch.log), nn.Linear(4, 1))}
    optimizer = torch.optim.SGD([p for model in models.values() for p in model.parameters()], lr=0.1)
    with gradwatch.watch(models, optimizer, trace_nonfinite=True) as watcher:
        models["second"](models["first"](torch.randn(8, 4))).sum().backward()
        optimizer.step()
        (finding,) = watcher.findings
    assert "second.0 (Does) was given finite values and returned NaN" in finding.cause


def test_a_healthy_run_has_the_same_bits_and_no_hook_left():
    def trained(**options):
        torch.manual_seed(0)
        model = between(nn.Dropout(0.2), nn.ReLU(inplace=True), Residual(nn.Linear(4, 4)))
        optimizer = torch.optim.Adam(model.parameters())
        with gradwatch.watch(model, optimizer, **options) as watcher:
            for _ in range(5):
                optimizer.zero_grad()
                mean_square(model(torch.randn(8, 4))).backward()
                optimizer.step()
        assert watcher.findings == []
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert not any(module._compiled_call_impl for module in model.modules())
        return [*model.parameters(), torch.get_rng_state()]

    assert all(torch.equal(a, b) for a, b in zip(trained(), trained(trace_nonfinite=True), strict=True))


def test_without_tracing_the_finding_says_how_to_learn_the_module():
    torch.manual_seed(0)
    finding = watched(between(Does(torch.log)), mean_square, torch.randn(8, 4), "neither")[0]
    assert finding.cause.startswith("Inferred: made in the forward pass, or by the loss; the module was not seen: ")
    assert "trace_nonfinite=True" in finding.cause


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_modules_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].compile(backend="eager")
    scripted = torch.jit.script(nn.Linear(2, 2))
    compiled = model[0]._compiled_call_impl
    with gradwatch.watch({"a": model, "b": scripted}, trace_nonfinite=True):
        assert model[0]._compiled_call_impl is compiled
        assert model[1]._compiled_call_impl is not None


def test_a_fault_in_the_trace_warns_once_and_training_goes_on(monkeypatch, caplog):
    def fail(*_):
        raise ValueError("a fault made to happen")

    monkeypatch.setattr("gradwatch.explain.trace.extremes_of", fail)
    monkeypatch.setattr("gradwatch.explain.trace.origin_of", fail)
    torch.manual_seed(0)
    findings = watched(between(Does(torch.log)), mean_square, torch.randn(8, 4))
    assert [finding.kind for finding in findings] == ["nonfinite"]
    assert "Observed" not in findings[0].cause
    assert caplog.text.count("a fault in gradwatch itself (trace: origin)") == 1


def test_passes_without_gradients_and_recomputed_ones_are_not_looked_at():
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = between(Does(torch.log))
    with torch.no_grad():
        model(torch.randn(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, trace_nonfinite=True) as watcher:
        with torch.no_grad():
            model(torch.full((8, 4), math.nan))
        x = torch.randn(8, 4, requires_grad=True)
        F.mse_loss(checkpoint(model, x, use_reentrant=False), torch.zeros(8, 2)).backward()
        optimizer.step()
        (finding,) = watcher.findings
    assert "2 (Does) was given finite values and returned NaN" in finding.cause


class Parts(nn.Module):
    """A loop that calls parts by themselves."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)


@pytest.fixture(params=["trace", "replay"])
def caused_by(request):
    return partial(cause_told, how=request.param)


def cause_told(model, loss_of, how):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, trace_nonfinite=how == "trace") as watcher:
        if how == "trace":
            by_trace_alone(watcher)
        loss = loss_of(torch.randn(8, 4))
        watcher.observe_loss(loss)
        loss.backward()
        optimizer.step()
        return watcher.findings[0].cause


def test_what_is_made_between_two_calls_is_no_bad_batch(caused_by):
    model = Parts()
    said = caused_by(model, lambda x: mean_square(model.last(model.first(x).log())))
    assert "what last (Linear) was given already held NaN or Inf" in said
    assert "it was computed outside every module, after first (Linear) returned finite values" in said


def test_a_gradient_made_between_two_calls_names_both(caused_by):
    model = Parts()
    said = caused_by(model, lambda x: mean_square(model.last((model.first(x) * 0).sqrt())))
    assert "the gradient of what first (Linear) returned is already NaN or Inf" in said
    assert "while that of what last (Linear) returned is finite: made between the two, outside every module" in said


def test_a_penalty_on_a_weight_is_told_from_the_layer(caused_by):
    model = Parts()
    penalty = lambda: (model.last.weight[0] * 0).square().sum().sqrt()
    said = caused_by(model, lambda x: mean_square(model.last(model.first(x))) + penalty())
    assert "last.weight is not finite: it overflowed, or something else uses that parameter" in said


def test_a_forward_value_that_the_loss_masks_is_found(caused_by):
    model = nn.Sequential(nn.Linear(4, 4), Does(torch.log), nn.Linear(4, 2))
    keep = torch.tensor(False)
    said = caused_by(model, lambda x: torch.where(keep, model(x), torch.zeros(8, 2)).sum() + 1)
    assert "1 (Does) was given finite values and returned NaN" in said


def test_a_mask_of_minus_infinity_is_no_fault_of_later_calls(caused_by):
    class Attends(Parts):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 1, batch_first=True)

    model = Attends()
    mask = torch.zeros(8, 8)
    mask[2] = -math.inf

    def loss_of(x):
        hidden = model.first(x)[None]
        return mean_square(model.last(model.attend(hidden, hidden, hidden, attn_mask=mask, need_weights=True)[0]))

    assert "attend (MultiheadAttention) was given Inf and returned NaN" in caused_by(model, loss_of)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exporting_and_tracing_while_the_modules_are_looked_at():
    torch.manual_seed(0)
    model, x = between(nn.LayerNorm(4)), torch.randn(8, 4)
    unwatched = torch.export.export(model, (x,)).graph_module.code
    with gradwatch.watch(model, trace_nonfinite=True):
        assert torch.export.export(model, (x,)).graph_module.code == unwatched
        assert "aminmax" not in str(torch.jit.trace(model, x).inlined_graph)
        assert torch.compile(model, backend="eager", fullgraph=True)(x).shape == (8, 2)


def test_inputs_made_in_inference_mode_are_looked_at():
    with torch.inference_mode():
        x = torch.full((8, 4), math.nan)
    model = between(nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, trace_nonfinite=True) as watcher:
        batch = x.clone()
        mean_square(model(batch)).backward()
        optimizer.step()
        assert "in 8 of 8 rows" in watcher.findings[0].cause


def test_calls_that_no_update_follows_are_not_kept():
    model = between()
    with gradwatch.watch(model, trace_nonfinite=True) as watcher:
        batches = []
        for _ in range(500):
            batch = torch.randn(8, 4)
            batches.append(weakref.ref(batch))
            model(batch)
        del batch
        assert sum(kept() is not None for kept in batches) <= 8
        assert len(watcher._loop.origins.trace._calls) <= 64 * 7


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec")
@pytest.mark.parametrize("on_nonfinite", ["report", "skip", "raise"])
def test_lightning_names_the_module_too(on_nonfinite, tmp_path):
    class WatchedModel(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = between(Does(torch.log))

        def training_step(self, batch, _):
            return mean_square(self.net(batch[0]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 4)), 8)
    watch = GradWatch(trace_nonfinite=True, on_nonfinite=on_nonfinite)
    trainer = lightning.Trainer(
        max_steps=2, callbacks=[watch], logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    expected = pytest.raises(gradwatch.NonFiniteError) if on_nonfinite == "raise" else contextlib.nullcontext()
    with expected:
        trainer.fit(WatchedModel(), loader)
    assert "net.2 (Does) was given finite values and returned NaN" in watch.findings[0].cause


def test_a_loop_that_calls_the_parts_is_replayed_from_its_second_step_on():
    model = Parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(3):
            optimizer.zero_grad()
            hidden = model.first(torch.ones(8, 4))
            mean_square(model.last(hidden.sqrt() - 9 if step == 2 else hidden.abs())).backward()
            optimizer.step()
        cause = watcher.findings[0].cause
    assert "Observed: what last (Linear) was given already held NaN or Inf, in 8 of 8 rows" in cause
    assert "computed outside every module, after first (Linear) returned finite values" in cause


def test_a_mask_is_no_fault_of_a_backward_pass(caused_by):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.head = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            attended = self.attend(x, x, x, attn_mask=torch.full((8, 8), -math.inf).triu(1))[0]
            return self.head((attended * 0).sqrt() + attended)

    model = Attends()
    said = caused_by(model, lambda x: mean_square(model(x[None])))
    assert "the backward pass of the model itself (Attends) was given finite gradients" in said


class Remembers(nn.Module):
    """Counts its calls, keeps what it returned, and draws random numbers."""

    def __init__(self, turns_sick_at=None):
        super().__init__()
        self.inner, self.norm, self.calls, self.kept = nn.Linear(4, 4), nn.BatchNorm1d(4), 0, []
        self.turns_sick_at = turns_sick_at

    def forward(self, x):
        self.calls += 1
        hidden = F.dropout(self.norm(self.inner(x)), 0.5)
        self.kept.append(hidden.detach())
        return hidden.log() if x.max() > 100 or self.calls == self.turns_sick_at else hidden


@pytest.mark.parametrize("on_nonfinite", ["report", "skip"])
def test_a_replay_changes_nothing_of_the_run(on_nonfinite):
    def trained(is_watched):
        torch.manual_seed(0)
        model = Remembers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = gradwatch.watch(model, optimizer, on_nonfinite=on_nonfinite) if is_watched else None
        for step in range(4):
            optimizer.zero_grad()
            mean_square(model(torch.randn(8, 4) + 1000 * (step == 2))).backward()
            if on_nonfinite == "report" or is_watched or all(p.grad.isfinite().all() for p in model.parameters()):
                optimizer.step()
        if watcher is not None:
            (finding,) = watcher.findings
            assert "the model itself (Remembers) was given finite values and returned NaN: the logarithm of" in (
                finding.cause
            )
            watcher.close()
        return [*model.state_dict().values(), torch.get_rng_state(), *model.kept], model.calls

    (bare, calls), (watched_run, watched_calls) = trained(False), trained(True)
    assert calls == watched_calls == 4
    for a, b in zip(bare, watched_run, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_a_batch_changed_in_place_since_is_not_replayed():
    model = between(Does(torch.log))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        x = torch.randn(8, 4)
        mean_square(model(x)).backward()
        x.add_(1)
        optimizer.step()
        assert watcher.findings[0].cause.startswith("Inferred: ")


def test_a_forward_pass_that_does_something_else_the_second_time_is_not_believed():
    torch.manual_seed(0)
    model = Remembers(turns_sick_at=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(2):
            optimizer.zero_grad()
            mean_square(model(torch.randn(8, 4))).backward()
            optimizer.step()
        assert watcher.findings[0].cause.startswith("Inferred: ")


def test_weights_made_by_torchs_own_hooks_are_made_again():
    torch.manual_seed(0)
    model = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(4, 4)), Does(torch.log), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        before = {name: value.clone() for name, value in model.named_buffers()}
        mean_square(model(torch.randn(8, 4))).backward()
        moved = {name: value.clone() for name, value in model.named_buffers()}
        optimizer.step()
        assert "1 (Does) was given finite values and returned NaN" in watcher.findings[0].cause
    assert any(not torch.equal(before[name], moved[name]) for name in before)
    assert all(torch.equal(value, moved[name]) for name, value in model.named_buffers())


def test_a_lazy_module_that_was_never_called_does_not_hinder_a_replay(caplog):
    class HasUnused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = between(Does(torch.log))
            self.unused = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())

        def forward(self, x):
            return self.used(x)

    model = HasUnused()
    optimizer = torch.optim.SGD(model.used.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        mean_square(model(torch.randn(8, 4))).backward()
        optimizer.step()
        assert "used.2 (Does) was given finite values and returned NaN" in watcher.findings[0].cause
    assert not [line for line in caplog.messages if "a fault in gradwatch" in line]
    assert model.unused(torch.zeros(3, 5)).shape == (3, 2)  # made by its own first call


def test_every_micro_batch_is_replayed():
    torch.manual_seed(0)
    model = between(Does(lambda x: x.sum(1, keepdim=True).clamp(min=0).sqrt() if x.max() < -0.9 else x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        for micro in range(4):
            x = torch.randn(8, 4)
            if micro == 1:
                x[5, 2] = math.inf
            mean_square(model(x)).backward()
        optimizer.step()
        assert "already held NaN or Inf, in 1 of 8 rows: 5" in watcher.findings[0].cause


@pytest.mark.process
def test_what_the_model_returned_is_told_without_a_warning():
    code = (
        "import torch; from gradwatch.explain.operations import _range; "
        "print(_range(torch.ones(2, requires_grad=True)))"
    )
    told = run([sys.executable, "-W", "error", "-c", code], check=True)
    assert told.stdout == "(1.0, 1.0)\n"  # in a process of its own: torch warns once


# what a call itself was given, and handed back


class Tagger(nn.Module):
    """Attends to tokens through masks that the loop hands over."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens, padding, window):
        x = self.embed(tokens)
        return self.head(x + self.attention(x, x, x, attn_mask=window, key_padding_mask=padding)[0])


@pytest.mark.parametrize("by_name", [False, True])
def test_a_mask_that_is_an_argument_of_the_model_is_no_broken_batch(by_name):
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens, padding = torch.randint(20, (4, 6)), torch.zeros(4, 6)
    padding[:, 4:] = -math.inf
    window = torch.full((6, 6), -math.inf).fill_diagonal_(0.0)  # the last two see only what is padding
    with gradwatch.watch(model, optimizer) as watcher:
        masks = {"padding": padding, "window": window}
        output = model(tokens, **masks) if by_name else model(tokens, padding, window)
        output[:, :4].square().mean().backward()
        optimizer.step()
    (finding,) = watcher.findings
    assert "attention (MultiheadAttention)" in finding.cause
    assert "a softmax over a row that is −Inf throughout" in finding.cause
    assert [advice.name for advice in finding.remedies] == ["masked-softmax"]


def test_numbers_that_hold_infinity_are_a_broken_batch_all_the_same():
    model = between()
    x = torch.randn(8, 4)
    x[2, 1] = -math.inf
    (finding,) = watched(model, mean_square, x, "replay")
    assert "in 1 of 8 rows: 2" in finding.cause


class Forks(nn.Module):
    """Gives one activation to a branch that is healthy, and to a root of 0 beside it."""

    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.first(x)
        return self.last(self.branch(hidden) + (hidden - hidden).sqrt())


def test_a_module_is_judged_by_what_it_handed_back_and_not_by_the_sum_at_a_fork():
    torch.manual_seed(0)
    (finding,) = watched(Forks(), mean_square, torch.randn(8, 4), "replay")
    assert "the backward pass of the model itself (Forks)" in finding.cause
    assert "1 ÷ 0, in the derivative of sqrt" in finding.cause or "derivative of sqrt" in finding.cause
    assert "branch" not in finding.cause


# what the loss takes beside the outputs


def trained_with(loss_of, rows=16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        loss_of(model(torch.randn(rows, 4))).backward()
        optimizer.step()
    (finding,) = watcher.findings
    return finding


def a_row_of_nan(*shape, row=7):
    tensor = torch.rand(*shape)
    tensor[row] = math.nan
    return tensor


@pytest.mark.parametrize(
    ("loss_of", "said"),
    [
        (lambda y: F.mse_loss(y, a_row_of_nan(16, 1)), "takes a (16, 1) tensor that already held NaN, in row 7"),
        (lambda y: (y - a_row_of_nan(16, 1)).square().mean(), "takes a tensor that already held NaN"),
        (lambda y: (y[:, 0] * a_row_of_nan(16)).mean(), "takes a (16,) tensor that already held NaN, in row 7"),
        (lambda y: F.smooth_l1_loss(y, a_row_of_nan(16, 1)), "takes a (16, 1) tensor that already held NaN, in row 7"),
        (lambda y: F.binary_cross_entropy_with_logits(y, torch.ones(16, 1), a_row_of_nan(16, 1)),
         "takes a (16, 1) tensor that already held NaN, in row 7"),
        (lambda y: (y / a_row_of_nan(16, 1)).mean(), "takes a (16, 1) tensor that already held NaN, in row 7"),
    ],
)  # fmt: skip
def test_a_target_or_weight_that_holds_nan_is_named(loss_of, said):
    finding = trained_with(loss_of)
    assert said in finding.cause
    assert "a target or weight, computed without the model" in finding.cause
    assert [advice.name for advice in finding.remedies] == ["clean-data"]
    assert finding.remedies[0].text.startswith("mend the target or weight")


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda y: -(y * 0).log().mean(),
        lambda y: ((y * 0).log() - torch.ones(16, 1)).square().mean(),  # a finite target after the fault
        lambda y: ((1000 * y.abs() + 1000).exp() - torch.ones(16, 1)).square().mean(),
    ],
)
def test_a_target_is_not_blamed_for_what_an_operation_made(loss_of):
    assert "that already held" not in trained_with(loss_of).cause


class Bottom(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner or nn.Sequential(nn.Linear(4, 8), nn.Softplus(), Does(torch.log), nn.Linear(8, 4))

    def inverse(self, x):
        return self.inner.inverse(x) if isinstance(self.inner, Bottom) else self.inner(x)


def test_parts_that_are_called_deep_down_are_seen_from_the_second_step_on():
    torch.manual_seed(0)
    model = Bottom(Bottom(Bottom()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(2):
            x = torch.randn(16, 4) - (1e6 if step == 1 else 0)  # softplus underflows to 0
            optimizer.zero_grad()
            model.inverse(x).square().mean().backward()
            optimizer.step()
    (finding,) = watcher.findings
    assert "inner.inner.inner.2 (Does) was given finite values and returned Inf: the logarithm of 0" in finding.cause


class TwoHeads(nn.Module):
    """A model with a head for the mean and one for the logarithm of the variance."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.mean(x) + (0.5 * self.log_variance(x)).exp()


def test_the_head_whose_exponential_overflows_is_named():
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradwatch.watch(model, optimizer) as watcher:
        model(1e4 * torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    cause = watcher.findings[0].cause
    assert re.search(r"the exponential of [0-9.e+]+, of what log_variance returned\.", cause)
