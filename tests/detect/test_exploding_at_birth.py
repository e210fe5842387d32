"""An update that moves a weight by many times its size, and promises or does no good, is found before the NaN."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.detect.exploding_at_birth import (
    MOVED,
    MOVED_UNSEEN,
    PROMISED,
    STEEPER,
    STRETCHED,
    WINDOW,
    WORSE,
    ExplodingAtBirth,
)
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from tests.detect.training import (
    Recurrent,
    ResidualStack,
    classification,
    perceptron,
    regression,
    sequences,
    told,
    train,
)
from tests.reports import NAN, examine_all, onsets, report, table

SGD, Adam, LBFGS = torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS


def slow_at_birth(reports, ordinary):
    """The rule in plain numbers: for each step {column: onset}, None where the step says nothing."""
    verdicts, moved, start = [], [], None
    for step in reports:
        if step.update > WINDOW:
            verdicts.append({})
            continue
        if any(step.nonfinite > 0):
            verdicts.append(None)
            continue
        promises = False
        if step.sampled and not step.skipped and "update_ratio" in step.figures:
            norms, ratios = step.figures["weight_norm"].tolist(), step.figures["update_ratio"].tolist()
            sizes = [max(norm, ordinary) for norm in norms]
            now = [
                0.0 if ratio != ratio else ratio * norm / size
                for ratio, norm, size in zip(ratios, norms, sizes, strict=True)
            ]
            if max(now) >= MOVED:
                moved, start = now, step
                far = [column for column, each in enumerate(now) if each >= MOVED]
                if step.loss is not None and step.loss > 0:
                    gradients = step.grad_norm.tolist()
                    promise = max(gradients[c] * now[c] * sizes[c] / step.loss for c in far)
                    promises = promise >= PROMISED
                else:
                    promises = len(far) > 1 and sum(math.log10(now[c]) for c in far) >= STRETCHED
        worse = False
        if start is not None and step.step > start.step:
            if start.loss is not None and start.loss > 0:
                worse = step.loss is not None and step.loss >= WORSE * start.loss
            else:
                worse = max(moved) >= MOVED_UNSEEN and step.grad_norm_total >= STEEPER * start.grad_norm_total
        sick = promises or worse
        verdicts.append({c: start.step for c, each in enumerate(moved) if each >= MOVED} if sick else {})
    return verdicts


def random_births(seed):
    """Runs whose weights move far or not, with losses that rise, fall, are negative or not seen."""
    random = np.random.default_rng(seed)
    count, has_loss, sign = 3, random.random() < 0.7, random.choice([1, 1, -1])
    spread = random.choice([0.5, 2.0, 4.0])
    reports = []
    for step in range(14):
        norms = 10.0 ** random.normal(0, spread, count)
        figures = {}
        if is_sampled := step in (0, 1, 2, 4, 8, 10):
            ratios = 10.0 ** random.normal(-1, spread, count)
            ratios[random.random(count) < 0.1] = NAN
            figures = {"weight_norm": 10.0 ** random.normal(0, 1, count), "update_ratio": ratios}
        nonfinite = [0, int(random.random() < 0.05), 0]
        loss = sign * 10.0 ** random.normal(0, spread) if has_loss else None
        skipped = bool(random.random() < 0.1)
        reports.append(
            report(norms, step, loss, sampled=is_sampled, figures=figures, nonfinite=nonfinite, skipped=skipped)
        )
    return reports


@pytest.mark.parametrize("seed", range(40))
def test_the_rule_is_its_slow_twin(seed):
    reports = random_births(seed)
    ordinary = math.sqrt(2)  # of two rows and columns
    found = [onsets(result) for result in examine_all(ExplodingAtBirth(table(3), Thresholds()), reports)]
    assert found == slow_at_birth(reports, ordinary)


def test_the_random_runs_are_sick_in_every_way_that_the_rule_knows():
    sick = [seed for seed in range(40) if any(slow_at_birth(random_births(seed), math.sqrt(2)))]
    losses = {random_births(seed)[0].loss for seed in sick}
    assert None in losses
    assert any(loss is not None and loss < 0 for loss in losses)
    assert any(loss is not None and loss > 0 for loss in losses)
    assert 5 < len(sick) < 40


def test_an_ordinary_weight_keeps_the_size_of_a_signal():
    shapes = {"linear": (30, 50), "convolution": (8, 4, 3, 3), "bias": (9,), "scalar": (), "row": (1, 100)}
    layers = of_tensors({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert layers.ordinary_norm.tolist() == pytest.approx([50**0.5, 36**0.5, 1, 1, 10])
    weight = torch.randn(30, 50, dtype=torch.float64) / 30**0.5  # a deviation of 1/√min(rows, columns)
    assert float(weight.norm()) == pytest.approx(50**0.5, rel=0.05)


def recurrent(radius, nonlinearity, length, rate, **options):
    model = Recurrent(radius, nonlinearity, **options)
    return model, SGD(model.parameters(), rate), sequences(model, length)


class FixedPoint(nn.Module):
    """z = w·z + u, forty times: an implicit layer whose map does not contract."""

    def __init__(self):
        super().__init__()
        self.inputs, self.map, self.head = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 1)
        nn.init.orthogonal_(self.map.weight, gain=1.6)

    def forward(self, inputs):
        start = self.inputs(inputs)
        state = start
        for _ in range(40):
            state = self.map(state) + start
        return self.head(state)


class UnscaledAttention(nn.Module):
    """Residual layers of attention whose products are not divided by √d."""

    def __init__(self, depth=6):
        super().__init__()
        self.stem, self.head = nn.Linear(32, 256), nn.Linear(256, 10)
        self.parts = nn.ModuleList(nn.ModuleList(nn.Linear(256, 256) for _ in range(3)) for _ in range(depth))
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=2 / math.sqrt(weight.shape[1]))

    def forward(self, inputs):
        hidden = self.stem(inputs)
        for query, key, value in self.parts:
            hidden = hidden + (query(hidden) @ key(hidden).transpose(1, 2)).softmax(-1) @ value(hidden)
        return self.head(hidden[:, -1])


def residual_classifier():
    model = ResidualStack(30, 10)
    return model, SGD(model.parameters(), 0.1), classification(model)


def residual_regression():
    model = ResidualStack(20, 1)
    return model, SGD(model.parameters(), 0.01), regression(model)


def implicit_layer():
    model = FixedPoint()
    return model, SGD(model.parameters(), 1e-3), regression(model)


def unscaled_attention():
    model = UnscaledAttention()
    return model, SGD(model.parameters(), 0.1), sequences(model, 12)


def raw_inputs():
    model = perceptron(32, 64, 64, 1)
    return model, SGD(model.parameters(), 0.01), regression(model, inputs_scale=1e4)


def raw_targets():
    model = perceptron(32, 64, 64, 1)
    return model, SGD(model.parameters(), 0.01), regression(model, targets_scale=1e5)


def large_initialisation():
    model = perceptron(32, 128, 128, 128, 1, std=1.0)
    return model, SGD(model.parameters(), 0.01), regression(model)


def summed_loss():
    model = perceptron(32, 64, 64, 1)
    return model, SGD(model.parameters(), 0.1), regression(model, targets_scale=100.0, reduction="sum")


def rate_far_too_high():
    model = perceptron(32, 64, 64, 1)
    return model, SGD(model.parameters(), 100.0), regression(model)


def adam_rate_far_too_high():
    model = perceptron(32, 128, 128, 10)
    return model, Adam(model.parameters(), 10.0), classification(model)


SICK = {
    make.__name__: make
    for make in (
        residual_classifier,
        residual_regression,
        implicit_layer,
        unscaled_attention,
        raw_inputs,
        raw_targets,
        large_initialisation,
        summed_loss,
        rate_far_too_high,
        adam_rate_far_too_high,
    )
} | {
    "recurrent_radius_of_3": lambda: recurrent(3.0, "relu", 40, 0.1),
    "chaotic_tanh": lambda: recurrent(3.0, "tanh", 50, 0.01, is_random=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", SICK.values(), ids=SICK)
def test_a_run_that_explodes_at_birth_is_found_before_anything_is_nan(make):
    torch.manual_seed(0)
    findings = train(*make(), 6)
    exploding = told(findings, "exploding")
    assert [finding.step for finding in exploding] in ([0], [1])
    assert exploding[0].raised_step <= 1
    assert all(finding.step > exploding[0].raised_step for finding in told(findings, "nonfinite"))


def raw_targets_under_adam(rate):
    model = perceptron(32, 64, 64, 1)
    return model, Adam(model.parameters(), rate), regression(model, targets_scale=1e4)


def linear_on_raw_targets():
    model = nn.Linear(32, 1)
    return model, SGD(model.parameters(), 0.1), regression(model, targets_scale=1e4)


def raw_inputs_under_adam():
    model = perceptron(32, 64, 64, 1)
    return model, Adam(model.parameters(), 1e-3), regression(model, inputs_scale=1e4)


def tiny_initialisation():
    model = perceptron(32, 128, 128, 10, std=1e-4)
    return model, Adam(model.parameters(), 1e-2), classification(model)


def zero_head():
    model = perceptron(32, 128, 128, 10)
    nn.init.zeros_(model[-1].weight)
    return model, SGD(model.parameters(), 0.5), classification(model)


def lbfgs_on_raw_features():
    model = nn.Linear(8, 1)
    inputs = torch.randn(200, 8) * torch.tensor([1, 10, 100, 1000, 1, 1, 5, 50.0])
    targets = 1e3 * inputs @ torch.randn(8, 1)
    return model, LBFGS(model.parameters(), 1.0), lambda _: nn.functional.mse_loss(model(inputs), targets)


def image_from_nothing():
    model = nn.ParameterDict({"image": torch.zeros(1, 3, 16, 16)})
    target = 255 * torch.rand(1, 3, 16, 16)
    return model, LBFGS(model.parameters(), 1.0), lambda _: nn.functional.mse_loss(model["image"], target)


def factors():
    model = nn.ParameterDict({"rows": 1e-3 * torch.randn(50, 8), "columns": 1e-3 * torch.randn(8, 40)})
    target = 10 * torch.randn(50, 8) @ torch.randn(8, 40)
    loss_of = lambda _: nn.functional.mse_loss(model["rows"] @ model["columns"], target)
    return model, Adam(model.parameters(), 0.1), loss_of


def steep_logistic_regression():
    model = nn.Linear(2, 1)
    inputs = torch.randn(200, 2)
    targets = (inputs[:, :1] > 0).float()
    loss_of = lambda _: nn.functional.binary_cross_entropy_with_logits(model(inputs), targets)
    return model, SGD(model.parameters(), 10.0), loss_of


def one_entry():
    model = nn.Linear(1, 1)
    inputs = torch.randn(64, 1)
    return model, SGD(model.parameters(), 0.4), lambda _: nn.functional.mse_loss(model(inputs), 1e4 * inputs)


def physics():
    model = perceptron(1, 32, 32, 1, function=nn.Tanh)
    times = torch.linspace(0, 1, 64)[:, None].requires_grad_()

    def loss_of(_):
        (slope,) = torch.autograd.grad(model(times).sum(), times, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), times, create_graph=True)
        ends = model(torch.tensor([[0.0], [1.0]]))
        return (bend + 100 * torch.sin(10 * times)).square().mean() + 1000 * ends.square().mean()

    return model, Adam(model.parameters(), 1e-3), loss_of


def policy_gradient():
    """The loss of normalised advantages is zero but for rounding: nothing may be measured in such losses."""
    model = perceptron(4, 64, 2, function=nn.Tanh)

    def loss_of(_):
        states = torch.randn(64, 4)
        log_probs = model(states).log_softmax(1)
        actions = torch.distributions.Categorical(logits=log_probs).sample()
        advantages = (actions == (states[:, 0] > 0)).float()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        chosen = log_probs.gather(1, actions[:, None])[:, 0]
        return -((chosen - chosen.detach()).exp() * advantages).mean()

    return model, Adam(model.parameters(), 3e-3), loss_of


HEALTHY = {
    make.__name__: make
    for make in (
        linear_on_raw_targets,
        raw_inputs_under_adam,
        tiny_initialisation,
        zero_head,
        lbfgs_on_raw_features,
        image_from_nothing,
        factors,
        steep_logistic_regression,
        one_entry,
        physics,
        policy_gradient,
    )
} | {
    "raw_targets_under_adam": lambda: raw_targets_under_adam(1e-2),
    "raw_targets_under_adam_at_a_rate_of_1": lambda: raw_targets_under_adam(1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_a_run_that_only_looks_like_it_is_left_alone(make):
    torch.manual_seed(0)
    assert train(*make(), 21) == []


@pytest.mark.slow
@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_it_is_left_alone_by_this_rule_where_no_loss_is_seen(make):
    torch.manual_seed(0)
    findings = train(*make(), 21, observes=False)
    assert [finding.measured for finding in findings if "times its size" in finding.measured] == []


@pytest.mark.parametrize("make", [residual_regression, raw_inputs, unscaled_attention])
def test_without_a_loss_many_moved_weights_or_a_leap_of_the_total_tell(make):
    torch.manual_seed(0)
    findings = train(*make(), 6, observes=False)
    assert findings[0].kind == "exploding"
    assert findings[0].raised_step <= 1


def two_layers_by_hand(rate):
    """The loop of examples/two_layer_net.py, whose updates are seen one step later."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 1000), torch.randn(64, 10)
    first, last = torch.randn(1000, 100), torch.randn(100, 10)
    with gradwatch.watch_tensors({"first": first, "last": last}) as watcher:
        for _ in range(12):
            hidden = inputs @ first
            error = hidden.clamp(min=0) @ last - targets
            gradient_last = hidden.clamp(min=0).T @ (2 * error)
            gradient_first = inputs.T @ (2 * error @ last.T).masked_fill(hidden < 0, 0)
            watcher.step(grads={"first": gradient_first, "last": gradient_last}, loss=error.square().sum())
            first -= rate * gradient_first
            last -= rate * gradient_last
    return watcher.findings


def test_a_loop_without_an_optimizer_shows_the_update_one_step_later():
    assert two_layers_by_hand(1e-6) == []
    finding = two_layers_by_hand(1e-3)[0]
    assert (finding.kind, finding.raised_step) == ("exploding", 1)


def test_such_an_update_is_judged_by_the_figures_before_it():
    detector = ExplodingAtBirth(table(2), Thresholds())
    norms = {"weight_norm": np.array([2.0, 2.0])}
    assert not detector.examine(report([1e4, 1.0], 0, 1.0, sampled=True, figures=norms)).is_sick
    figures = {"weight_norm": np.array([2e3, 2.0]), "update_ratio": np.array([1e3, 0.01])}
    result = detector.examine(report([1.0, 1.0], 1, 0.5, sampled=True, figures=figures))
    assert (onsets(result), result.value.tolist()) == ({0: 0}, [1e3, 0.01])


def far_report(step=0, loss=1.0, norm=1e4, ratio=1e3, **rest):
    figures = {"weight_norm": np.array([2.0, 2.0]), "update_ratio": np.array([ratio, 0.01])}
    return report([norm, 1.0], step, loss, sampled=True, figures=figures, **rest)


def test_what_was_measured_is_said_with_its_figures():
    detector = ExplodingAtBirth(table(2), Thresholds())
    now = far_report()
    result = detector.examine(now)
    assert (result.value.tolist(), result.threshold.tolist()) == ([1e3, 0.01], [MOVED, MOVED])
    evidence = detector.explain(now, 0, [0])
    assert "The update of step 0 moved w0 by 1e+03 times its size (normal: up to 10 times" in evidence.measured
    assert "2e+07 times the loss of 1 off the loss" in evidence.cause[0]
    assert evidence.clues == ("update too large",)


def test_the_loss_after_it_is_named_where_that_decided():
    detector = ExplodingAtBirth(table(2), Thresholds())
    assert not detector.examine(far_report(norm=1e-3)).is_sick
    later = report([1.0, 1.0], 1, 50.0)
    assert onsets(detector.examine(later)) == {0: 0}
    assert detector.explain(later, 0, [0]).cause[0].startswith("The loss was 1 before that update, and is 50 at step 1")


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(far_report(ratio=5.0), id="moved by less than ten times its size"),
        pytest.param(far_report(norm=1e-3), id="promises little"),
        pytest.param(far_report(ratio=NAN), id="movement unknown"),
        pytest.param(far_report(skipped=True), id="no update was made"),
        pytest.param(far_report(step=20), id="late in the run"),
        pytest.param(far_report(loss=-1.0), id="one weight under a negative loss"),
    ],
)
def test_one_step_alone_is_no_explosion(now):
    assert not ExplodingAtBirth(table(2), Thresholds()).examine(now).is_sick


def test_a_step_with_nan_is_left_to_nonfinite_and_a_literal_threshold_replaces_the_rule():
    assert ExplodingAtBirth(table(2), Thresholds()).examine(far_report(nonfinite=[1, 0])) is None
    literal = ExplodingAtBirth(table(2), Thresholds(exploding_growth=5.0))
    assert not literal.examine(far_report()).is_sick


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_show_the_same(dtype):
    torch.manual_seed(0)
    model = ResidualStack(20, 1).to(dtype)
    inputs, targets = torch.randn(64, 32, dtype=dtype), torch.randn(64, 1, dtype=dtype)
    loss_of = lambda _: nn.functional.mse_loss(model(inputs), targets)
    assert train(model, SGD(model.parameters(), 0.01), loss_of, 2)[0].kind == "exploding"


def test_an_infinite_update_of_a_weight_without_a_gradient_warns_of_nothing():
    """Its promise would be 0 · Inf; numpy's warnings are errors in the tests, as they are under ``python -W error``."""
    figures = {"update_ratio": np.array([np.inf, 0.1]), "weight_norm": np.array([1.0, 1.0])}
    run = [report([0.0, 1.0], step, 1.0, sampled=True, figures=figures) for step in range(3)]
    told = examine_all(ExplodingAtBirth(table(2), Thresholds()), run)
    assert [result is not None and bool(result.sick.any()) for result in told] == [False] * 3
