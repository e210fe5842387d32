"""The reason of a finding, and its first remedy, in small runs whose fault is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.detect.unstable import Unstable
from gradwatch.explain.current import current_norms, spectral_radius
from gradwatch.explain.flat import flat_operation
from gradwatch.explain.idle_norms import idle_norms
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.rates import RateCourse
from gradwatch.measure.layers import of_model, of_tensors
from tests.reports import report


def net(width=16, outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


def findings_of(model, optimizer, steps, *, batch=None, loss_of=None, before=None):
    """Train, and return what was found; ``before`` is called with the number of each step."""
    generator = torch.Generator().manual_seed(0)
    with gradwatch.watch(model, optimizer) as watcher:
        for number in range(steps):
            if before is not None:
                before(number)
            x = torch.randn(32, 4, generator=generator)
            x, y = (x, x[:, :1]) if batch is None else batch(x)
            loss = (loss_of or nn.functional.mse_loss)(model(x), y)
            watcher.observe_loss(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watcher.findings


def first_of(kind, found):
    return next(finding for finding in found if finding.kind == kind)


def test_a_rate_that_jumps_is_answered_by_the_one_before():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def jump(number):
        optimizer.param_groups[0]["lr"] = 50.0 if number >= 30 else 0.05

    finding = first_of("exploding", findings_of(model, optimizer, 34, before=jump))
    assert "The learning rate is 50, 1e+03 times the 0.05 of step 24, where the loss was lowest." in finding.cause
    assert str(finding.remedies[0]) == "a lower learning rate (0.05, as it was before, where it is 50)"


def test_a_schedule_that_is_over_names_the_rate_that_it_began_with():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.3)
    found = findings_of(model, optimizer, 131, before=lambda number: number and schedule.step())
    finding = first_of("stalled", found)
    assert "The learning rate has fallen to " in finding.cause
    assert "it was 0.001 at step 0" in finding.cause
    assert [remedy.name for remedy in finding.remedies[:2]] == ["longer-schedule", "higher-learning-rate"]
    assert "(0.001, as it was before, where it is " in str(finding.remedies[1])


def test_a_rate_course_remembers_as_a_slow_twin_does():
    generator = np.random.default_rng(0)
    rates = np.exp(generator.normal(size=50)).tolist()
    losses = generator.normal(size=50).tolist()
    course = RateCourse()
    for step, (rate, loss) in enumerate(zip(rates, losses, strict=True)):
        course.add(report([1.0], step=step, learning_rate=rate, loss=loss))
        lowest = int(np.argmin(losses[: step + 1]))
        assert course.good_rate == rates[max(lowest - 1, 0)]
        assert course.peak == max(rates[lowest : step + 1])
        assert course.highest == max(rates[: step + 1])


@pytest.mark.parametrize(("moved", "lower"), [(math.nan, 0.1), (0.05, 0.1), (16.0, 1e-3), (1e9, 1e-4)])
def test_a_rate_is_lowered_to_what_an_update_moves(moved, lower):
    course = RateCourse()
    course.add(report([1.0], step=0, learning_rate=1.0, loss=1.0))
    assert course.lower(moved) == pytest.approx(lower)


def test_raw_targets_are_named_and_scaled():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    finding = findings_of(model, optimizer, 4, batch=lambda x: (x, 2e5 + 8e4 * x[:, :1]))[0]
    assert finding.cause.startswith("The targets are raw numbers: their root mean square is 2e+05.")
    assert str(finding.remedies[0]).startswith("targets scaled to mean 0 and variance 1")


def test_raw_targets_are_named_where_the_loop_squares_by_itself():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = findings_of(
        model, optimizer, 4, batch=lambda x: (x, 2e5 + 8e4 * x[:, :1]), loss_of=lambda p, y: ((p - y) ** 2).mean()
    )
    assert "The targets are raw numbers: the first outputs lay 2e+05 away from them." in found[0].cause


def test_raw_inputs_are_named_and_scaled():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    finding = findings_of(model, optimizer, 4, batch=lambda x: (1e5 + 1e4 * x, x[:, :1]))[0]
    assert "0 is given raw numbers: their root mean square is about 1e+05." in finding.cause
    assert str(finding.remedies[0]).startswith("inputs scaled to mean 0 and variance 1")


def test_ordinary_numbers_are_not_called_raw():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    found = findings_of(model, optimizer, 12)
    assert found
    assert not any("raw numbers" in finding.cause for finding in found)


@pytest.mark.parametrize("bias", [-20.0, 400.0])
def test_a_large_bias_makes_no_inputs_raw(bias):
    model = net()
    nn.init.constant_(model[0].bias, bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3 if bias < 0 else 30.0)
    found = findings_of(model, optimizer, 80 if bias < 0 else 12)
    assert found
    assert not any("raw numbers" in finding.cause for finding in found)


def test_a_weight_that_something_else_overwrote_is_named():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def flip(number):
        if number == 33:
            with torch.no_grad():
                model[2].weight[3, 5] = 1e12

    finding = findings_of(model, optimizer, 36, before=flip)[0]
    assert "2.weight has norm 1e+12" in finding.cause
    assert "something other than the optimizer wrote into it" in finding.cause
    assert str(finding.remedies[0]).startswith("restore 2.weight from the last checkpoint")


def test_one_batch_unlike_the_others_is_named():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    numbers = iter(range(100))

    def outlier(x):
        return x, torch.full((32, 1), 1e4) if next(numbers) == 30 else x[:, :1]

    finding = first_of("exploding", findings_of(model, optimizer, 33, batch=outlier))
    assert "at step 30, though the updates before were small: the batch of that step is unlike those" in finding.cause
    assert [remedy.name for remedy in finding.remedies[:2]] == ["clip-norm", "clean-data"]


def test_a_recurrent_matrix_that_stretches_is_named():
    torch.manual_seed(0)
    model = nn.RNN(4, 16, nonlinearity="relu")
    nn.init.orthogonal_(model.weight_hh_l0, gain=2.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(3):
            loss = model(torch.randn(60, 8, 4))[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    finding = watcher.findings[0]
    assert "weight_hh_l0 has spectral radius 2.5" in finding.cause
    assert str(finding.remedies[0]) == "orthogonal initialisation of weight_hh_l0"


def test_branches_that_add_up_are_told_from_weights_that_are_large():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Linear(16, 16)
            nn.init.kaiming_normal_(self.branch.weight)

        def forward(self, x):
            return x + self.branch(x).relu()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), *(Sum() for _ in range(30)), nn.Linear(16, 1))
    finding = findings_of(model, torch.optim.SGD(model.parameters(), lr=0.05), 3)[0]
    assert "branches add up" in finding.cause
    assert finding.remedies[0].name == "depth-scaled"


def test_a_loss_without_a_lower_bound_is_named():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def rewarded(p, y):
        return nn.functional.mse_loss(p, y) - 0.1 * sum(weight.square().sum() for weight in model.parameters())

    finding = first_of("exploding", findings_of(model, optimizer, 400, loss_of=rewarded))
    assert "nothing bounds it from below" in finding.cause
    assert "a term of the loss with the wrong sign" in str(finding.remedies[0])


def test_a_normalisation_over_single_values_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = findings_of(
        model, optimizer, 60, batch=lambda x: (x, (x[:, 0] > 0).long()), loss_of=nn.functional.cross_entropy
    )
    finding = first_of("vanishing", found)
    assert finding.cause.startswith("1 (GroupNorm) returns the same for whatever it is given")
    assert "Gradients shrink along depth" not in finding.cause
    assert str(finding.remedies[0]).startswith("let the module of 1.weight normalise over several values")


@pytest.mark.parametrize(
    ("loss_of", "words", "advice"),
    [
        (lambda p, y: nn.functional.mse_loss((p + 9).clamp(0, 1), y), "clamp", "compute the loss from what the model"),
        (lambda p, y: 0 * nn.functional.mse_loss(p, y) + 1, "mul before the loss: its other factor is 0", "find the"),
        (lambda p, y: nn.functional.mse_loss(p.round(), y), "round before the loss: it is made of steps", "compute"),
        (lambda p, y: nn.functional.mse_loss((p - 99).relu(), y), "relu before the loss", "compute the loss"),
        (lambda p, y: nn.functional.mse_loss((p + 99).sigmoid(), y), "sigmoid before the loss", "compute the loss"),
    ],
)
def test_an_operation_that_passes_no_gradient_is_named(loss_of, words, advice):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    finding = first_of("vanishing", findings_of(model, optimizer, 12, loss_of=loss_of))
    assert f"No gradient passes the {words}" in finding.cause
    assert str(finding.remedies[0]).startswith(advice)


@pytest.mark.parametrize(
    "open_one",
    [
        lambda x: x.clamp(-9, 9), lambda x: x.relu(), lambda x: 0.5 * x, lambda x: x.sigmoid(),
        lambda x: torch.where(x > 0, x, torch.zeros(())), lambda x: x.masked_fill(x > 0, 0.0),
    ],
)  # fmt: skip
def test_an_operation_that_passes_some_gradient_is_not_named(open_one):
    assert flat_operation(open_one(torch.tensor([-1.0, 1.0], requires_grad=True)).sum().grad_fn) is None


def test_what_is_read_of_weights_is_right_or_not_read():
    tensors = {"w": torch.full((2, 2), 3e30), "half": torch.ones(4).half(), "n": torch.ones(2, dtype=torch.long)}
    layers = of_tensors(tensors)
    assert current_norms(layers)[:2].tolist() == pytest.approx([6e30, 2.0])
    assert np.isnan(current_norms(layers)[2])
    assert spectral_radius(torch.tensor([[0.0, -3.0], [3.0, 0.0]])) == pytest.approx(3.0)
    assert spectral_radius(torch.ones(2, 3)) is None
    assert spectral_radius(torch.full((2, 2), math.nan)) is None


@pytest.mark.parametrize(("moved", "higher"), [(math.nan, 10.0), (0.0, 10.0), (1e-2, 10.0), (1e-6, 1e3), (1e-12, 1e9)])
def test_a_rate_is_raised_to_what_an_update_should_move(moved, higher):
    course = RateCourse()
    course.add(report([1.0], step=0, learning_rate=1.0, loss=1.0))
    assert course.higher(moved) == pytest.approx(higher)


def test_a_rate_of_nearly_nothing_is_raised_by_far():
    model = net()
    finding = first_of("stalled", findings_of(model, torch.optim.Adam(model.parameters(), lr=1e-12), 120))
    assert finding.remedies[0].name == "higher-learning-rate"
    told = float(finding.remedies[0].text.partition("(")[2].partition(" ")[0])
    assert told >= 1e-5


def test_a_path_that_ctc_does_not_find_is_no_overflow():
    """Its target is longer than its input."""
    torch.manual_seed(0)
    model = nn.Linear(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def ctc(scores, y):
        return nn.functional.ctc_loss(
            scores[:3, None].log_softmax(-1), torch.ones(1, 6, dtype=torch.long), torch.tensor([3]), torch.tensor([6])
        )

    finding = first_of("nonfinite", findings_of(model, optimizer, 1, loss_of=ctc))
    assert "largest float32" not in finding.cause
    assert finding.remedies[0].name != "clip-norm"


def test_a_loss_that_grows_may_chase_its_targets():
    torch.manual_seed(0)
    detector = Unstable(of_tensors({"w": torch.zeros(2, 2)}), gradwatch.Thresholds())
    losses = [1.0, *(4.0 + 3.0 * (number % 2) for number in range(30))]
    for step, loss in enumerate(losses):
        detector.examine(report([1.0], step=step, loss=loss))
    evidence = detector.explain(report([1.0], step=30, loss=7.0), 0, [0])
    assert evidence.cause[0].startswith("Updates overshoot, or the targets of the loss move with the model")


def test_a_normalisation_left_in_eval_mode_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1)).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = findings_of(model, optimizer, 40, batch=lambda x: (500 + 5 * x, x[:, :1]))
    finding = first_of("saturated", found)
    assert finding.cause.startswith("Module 1 (BatchNorm1d) trains in eval mode with the statistics that it began with")
    assert str(finding.remedies[0]) == "call model.train() before training, and model.eval() for measuring only"


def test_normalisations_that_train_or_that_have_seen_data_are_not_called_idle():
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.BatchNorm1d(16, track_running_stats=False))
    assert not [*idle_norms(of_model(model))]
    model(torch.randn(8, 4))
    assert not [*idle_norms(of_model(model.eval()))]
    assert [fact.weight for fact in idle_norms(of_model(nn.Sequential(nn.BatchNorm1d(4)).eval()))] == ["0.weight"]


def chase(model, discount, steps):
    """Train on targets that the model itself makes; return the watcher's findings."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(steps):
            state = torch.randn(32, 4, generator=generator)
            with torch.no_grad():
                targets = state[:, :1].abs() + discount * model(state + 0.1).amax(1, keepdim=True)
            loss = nn.functional.mse_loss(model(state)[:, :1], targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watcher.findings


def test_targets_that_grow_with_the_model_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    finding = first_of("exploding", chase(model, 1.3, 600))
    assert finding.cause.startswith("The targets of the loss have grown from a root mean square of ")
    assert finding.remedies[0].name == "target-network"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1, 1, 1, 2, 9, 9, 9, 10], (1.0, 10.0)),
        ([1, 1, 1, 2, 2, 2, 2, 2.9], None),  # by too little
        ([1, 1, 1, 0.5, 9, 9, 9, 9], None),  # they had not grown at the look before
        ([1, 1, 1, 9], None),  # one look
    ],
)
def test_the_growth_of_targets_is_read_at_powers_of_two(sizes, expected):
    losses = LossGraph()
    for size in sizes:
        losses.observe(nn.functional.mse_loss(torch.zeros(8, requires_grad=True), torch.full((8,), float(size))))
    assert losses.target_growth() == expected


def test_what_follows_from_an_explosion_points_to_it():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = findings_of(model, optimizer, 12, batch=lambda x: (x, 2e5 + 8e4 * x[:, :1]))
    first, later = first_of("exploding", found), first_of("nonfinite", found)
    where = f"exploding in {first.layer}, which began at step {first.step}: mend that first."
    assert later.cause.endswith(f"This may follow from {where}")
    assert "follow" not in first.cause


def test_rounding_is_one_finding_with_its_reason():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1)).bfloat16()
    inputs = torch.randn(64, 4, dtype=torch.bfloat16)
    found = findings_of(
        model, torch.optim.Adam(model.parameters(), lr=1e-6), 160, batch=lambda _: (inputs, inputs[:, :1])
    )
    assert [finding.layer for finding in found if finding.kind == "stalled"] == [""]
    assert "Weights in bfloat16 round away what is less than 0.0039 of an entry." in found[0].cause
    assert found[0].remedies[0].name == "float32-weights"


def test_an_explosion_from_birth_is_told_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_of = nn.functional.binary_cross_entropy_with_logits
    found = findings_of(model, optimizer, 120, batch=lambda x: (1e6 + 1e5 * x, (x[:, :1] > 0).float()), loss_of=loss_of)
    assert [finding.kind for finding in found].count("exploding") == 1


def test_inputs_that_are_zero_throughout_are_those_of_the_model():
    model = net()
    finding = first_of(
        "vanishing", findings_of(model, torch.optim.Adam(model.parameters()), 30, batch=lambda x: (0 * x, x[:, :1]))
    )
    assert "the inputs of the model are 0 wherever a gradient comes from." in finding.cause
    assert str(finding.remedies[0]).startswith("look at the batches that the model is given")


def test_inputs_are_not_called_zero_where_rows_that_are_not_zero_pass_no_gradient():
    rows = torch.arange(32)[:, None] % 2.0

    def loss_of(outputs, _):
        return ((1 - rows) * (outputs - 1).square()).mean()  # rows of ones count for nothing

    model = net()
    found = findings_of(
        model, torch.optim.Adam(model.parameters()), 30, batch=lambda x: (rows + 0 * x, x), loss_of=loss_of
    )
    finding = first_of("vanishing", found)
    assert "the inputs of the model are 0 wherever a gradient comes from." in finding.cause
    assert "if other rows are not 0, find why their loss passes no gradient" in str(finding.remedies[0])
