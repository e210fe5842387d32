import math
import random
import re
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.prescription import outcome, ranking
from gradwatch.prescription.trial import TrialRun
from tests.forked_python import run

pytestmark = pytest.mark.usefixtures("clock")


def descent(rate):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def classes(count=640, features=16, batch=64):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, features, generator=generator)
    y = (x @ torch.randn(features, 4, generator=generator)).argmax(1)
    return list(zip(x.split(batch), y.split(batch), strict=True))


def stack(depth, activation, width=24):
    layers = [nn.Linear(16, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class Functional(nn.Module):
    """Five layers whose activation functions are calls inside ``forward``."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 24), *(nn.Linear(24, 24) for _ in range(6))])
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


class LongMemory(nn.Module):
    """A vanilla RNN whose recurrent weights treble what they carry."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNN(2, 16, nonlinearity="relu", batch_first=True), nn.Linear(16, 1)
        nn.init.orthogonal_(self.cell.weight_hh_l0, 1.6)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def sequences():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(320, 12, 2, generator=generator)
    y = x[..., :1].mean(1)
    return list(zip(x.split(32), y.split(32), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("make_model", [lambda: stack(8, nn.Sigmoid), Functional], ids=["modules", "functions"])
def test_deep_sigmoids_are_cured(make_model):
    found = gradwatch.prescribe(make_model, descent(0.1), classes(), F.cross_entropy, seeds=1, budget_seconds=8)
    assert found.best is not None, str(found)
    assert found.best is found.ranking[0]
    assert {finding.kind for finding in found.findings} == {"vanishing"}
    assert found.best.loss <= 0.9 * found.best.baseline_loss
    assert found.best.code in str(found)
    assert "vanishing is cured by" in found.note
    assert 0 < found.controls["random choice"][0] < 1
    assert found.controls["do nothing"] == (0.0, pytest.approx(found.best.baseline_loss))


@pytest.mark.slow
def test_an_exploding_recurrent_network_is_cured():
    found = gradwatch.prescribe(LongMemory, descent(0.05), sequences(), F.mse_loss, seeds=2, budget_seconds=7)
    assert found.best is not None, str(found)
    assert not any(finding.severity == "error" for finding in found.best.findings)


def test_a_loss_that_turns_nan_is_cured():
    def likelihood(output, y):
        return -F.relu(output).log().gather(1, y[:, None]).mean() + output.square().mean()

    found = gradwatch.prescribe(
        lambda: stack(1, nn.ReLU), descent(0.05), classes(), likelihood, seeds=1, budget_seconds=5
    )
    assert found.ranking, str(found)
    assert any(trial.remedy == "safe-log" and not trial.findings for trial in found.ranking)


class Gaussian(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x):
        mean, log_deviation = self.body(x).split(1, dim=1)
        return mean, log_deviation.exp()


def large_sums():
    x = torch.randn(640, 8, generator=torch.Generator().manual_seed(5))
    return list(zip(x.split(32), (100 * x.sum(1, keepdim=True)).split(32), strict=True))


def test_a_loss_that_raises_where_it_meets_nan_is_a_loss_that_is_not_finite():
    def likelihood(output, y):
        return -torch.distributions.Normal(*output, validate_args=True).log_prob(y).mean()

    found = gradwatch.prescribe(Gaussian, descent(0.05), large_sums(), likelihood, seeds=1, budget_seconds=5)
    assert {"nonfinite"} <= {finding.kind for finding in found.findings}
    assert math.isnan(found.controls["do nothing"][1])
    assert found.ranking, str(found)
    assert not any("raised" in why for name, why in found.not_applicable.items() if "learning-rate" in name)


def test_a_batch_that_the_untrained_model_cannot_take_is_no_loss():
    batches = classes()
    batches[3] = (batches[3][0][:, :15], batches[3][1])
    said = "in update 3, on training batch 3: RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match=said):
        gradwatch.prescribe(lambda: stack(1, nn.ReLU), descent(0.1), batches, F.cross_entropy, budget_seconds=3)


def test_a_broken_row_in_every_batch_is_cured_by_leaving_it_out():
    batches = classes()
    for x, _ in batches:
        x[7, 3] = math.nan
    found = gradwatch.prescribe(
        lambda: stack(1, nn.ReLU), descent(0.1), batches, F.cross_entropy, seeds=1, budget_seconds=4
    )
    assert found.best is not None, str(found)
    assert "clean-data" in found.best.remedy
    assert any(trial.remedy == "clean-data" and trial.cured for trial in found.ranking)


def test_batches_whose_labels_are_all_masked_are_cured_by_leaving_them_out():
    batches = [(x, torch.full_like(y, -1) if number in (7, 9) else y) for number, (x, y) in enumerate(classes())]

    def mean_over_labels(output, y):
        return (F.cross_entropy(output, y.clamp(min=0), reduction="none") * (y >= 0)).sum() / (y >= 0).sum()

    found = gradwatch.prescribe(
        lambda: stack(1, nn.ReLU), descent(0.1), batches, mean_over_labels, seeds=1, budget_seconds=4
    )
    assert any(trial.remedy == "clean-data" and trial.cured for trial in found.ranking), str(found)


def test_large_targets_that_stay_unscaled_are_told():
    batches = [(50 * x, y) for x, y in large_sums()]
    found = gradwatch.prescribe(
        Gaussian, descent(0.05), batches, lambda output, y: F.mse_loss(output[0], y), seeds=1, budget_seconds=4
    )
    assert any(trial.remedy == "scaled-inputs" for trial in found.ranking), str(found)
    assert found.not_applicable["scaled-inputs"].startswith("only the inputs were scaled; targets have a deviation")
    assert "Not tried, or not in full:" in str(found)


def test_a_held_out_batch_that_the_model_cannot_take_is_named_and_the_error_ends_in_one_full_stop():
    batches = classes()
    batches[9] = (batches[9][0], torch.full((64,), 7))

    def loss_fn(output, y):
        if y.max() > 3:
            raise ValueError("There are four classes.")
        return F.cross_entropy(output, y)

    said = r"trained: on held-out batch 1: ValueError: There are four classes\. Check that"
    with pytest.raises(RuntimeError, match=said):
        gradwatch.prescribe(lambda: stack(1, nn.ReLU), descent(0.1), batches, loss_fn, budget_seconds=3)


def test_where_nothing_is_sick_nothing_is_tried():
    found = gradwatch.prescribe(lambda: stack(2, nn.ReLU), descent(0.1), classes(), F.cross_entropy, seeds=1)
    assert (found.ranking, found.best, found.findings) == ([], None, ())
    assert found.note.startswith("Nothing was sick")


class SickInEvalMode(nn.Module):
    """As batch normalisation may be, whose running statistics are not those of the data."""

    def __init__(self):
        super().__init__()
        self.body = stack(2, nn.ReLU)

    def forward(self, x):
        return self.body(x) if self.training else self.body(x).sub(1e6).sqrt()


def test_a_model_that_is_sick_in_eval_mode_alone_is_called_so():
    found = gradwatch.prescribe(SickInEvalMode, descent(0.1), classes(), F.cross_entropy, seeds=1)
    assert found.note.startswith("Training shows nothing: 300 updates on 1 seed raised no finding.")
    assert "held-out loss is not finite after it, nor was it before. Look at the model in eval mode" in found.note
    assert "not finite after it, before it was. Look" in outcome.nothing_sick({0: a_run(0.5), 1: a_run(math.nan)})


class Muted(nn.Module):
    def forward(self, x):
        return 0 * x


def test_where_nothing_has_helped_yet_it_is_said_how_much_was_tried():
    def make_model():
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4), Muted())

    found = gradwatch.prescribe(make_model, descent(0.1), classes(), F.cross_entropy, seeds=1, budget_seconds=3)
    assert found.best is None
    assert found.ranking
    assert found.note.startswith(f"The time ran out: {len(found.ranking)} of ")
    assert "were tried against vanishing, and none of these cured it. Give a larger budget_seconds." in found.note


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.body, self.seconds = stack(8, nn.Sigmoid), seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.body(x)


@pytest.mark.slow
def test_the_budget_is_kept_by_the_clock_on_the_wall(monkeypatch):
    monkeypatch.undo()
    begin = time.perf_counter()
    gradwatch.prescribe(lambda: Slow(0.01), descent(0.1), classes(), F.cross_entropy, budget_seconds=2)
    assert time.perf_counter() - begin < 30  # on a busy machine, too; all trials would take minutes


def test_the_budget_is_kept():
    begin = time.perf_counter()
    found = gradwatch.prescribe(lambda: Slow(0.01), descent(0.1), classes(), F.cross_entropy, budget_seconds=6)
    assert time.perf_counter() - begin < 7
    assert found.ranking, str(found)
    assert found.steps >= 30


def test_a_budget_that_is_too_small_is_called_so():
    begin = time.perf_counter()
    found = gradwatch.prescribe(lambda: Slow(0.2), descent(0.1), classes(), F.cross_entropy, budget_seconds=2)
    assert time.perf_counter() - begin < 2.7
    assert (found.ranking, found.best) == ([], None)
    assert found.note.startswith("budget_seconds=2 was too small")
    (seconds,) = re.findall(r"About (\d+) s would do", found.note)
    assert 4 * 30 * 0.2 <= int(seconds) < 4 * 30 * 0.4


@pytest.mark.parametrize(
    ("steps", "seconds_per_step", "seconds_around", "said"),
    [
        (7, 2.0, 10.0, "About 280 s would do. "),  # 4 × (10 + 30 × 2)
        (50, 0.2, 0.0, "About 40 s would do. "),  # that whole run, and a trial as long
        (0, 0.0, 10.0, "It takes more than 40 s. "),  # not one update was seen
        (0, 0.0, 0.5, ""),
        (40, 0.01, 0.1, ""),  # there was time: treated, a model was slower
    ],
)
def test_a_budget_that_is_too_small_says_what_would_do(steps, seconds_per_step, seconds_around, said):
    seen = TrialRun(0, steps, 1.0, math.nan, (), seconds_per_step, False, seconds_around=seconds_around)
    assert f"did not fit. {said}Give more, or smaller batches." in outcome.too_little(20, seen)


def slow_to_make():
    time.sleep(0.3)
    return stack(8, nn.Sigmoid)


def test_the_budget_is_kept_where_models_take_long_to_make():
    begin = time.perf_counter()
    found = gradwatch.prescribe(slow_to_make, descent(0.1), classes(), F.cross_entropy, budget_seconds=5)
    assert time.perf_counter() - begin < 5.3
    assert len(found.ranking) > 2, str(found)
    assert found.steps >= 30


def test_where_only_making_a_model_was_seen_the_time_for_that_is_told(clock):
    clock.tick = 1e-4
    found = gradwatch.prescribe(slow_to_make, descent(0.1), classes(), F.cross_entropy, budget_seconds=0.5)
    assert re.search(r"did not fit\. It takes more than 1\.[2-9] s\. Give more", found.note)


def test_the_budget_is_kept_where_the_held_out_batches_take_long():
    class SlowToJudge(Slow):
        def forward(self, x):
            time.sleep(0 if self.training else self.seconds)
            return self.body(x)

    begin = time.perf_counter()
    gradwatch.prescribe(lambda: SlowToJudge(1.0), descent(0.1), classes(), F.cross_entropy, budget_seconds=1.5)
    assert time.perf_counter() - begin < 3.5


@pytest.mark.slow
def test_what_is_the_users_stays_as_it_was():
    model = stack(8, nn.Sigmoid)
    batches = classes()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = [(x.clone(), y.clone()) for x, y in batches]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = gradwatch.prescribe(lambda: model, descent(0.1), batches, F.cross_entropy, seeds=1, budget_seconds=4)
    assert found.ranking, str(found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks
    assert model.training
    assert all(torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in zip(batches, given, strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


@pytest.mark.process
def test_the_first_call_in_a_process_draws_no_random_number_of_the_user():
    code = (
        "import random, sys; from gradwatch.prescription.progress import bar; before = random.getstate()\n"
        "assert 'rich' not in sys.modules\n"
        "with bar(9) as advance: advance(1.0, 'relu')\n"
        "assert 'rich' in sys.modules and random.getstate() == before"
    )
    run([sys.executable, "-c", code], check=True)


class Tempered(nn.Module):
    """A loss that learns a temperature and counts what it saw."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, y):
        self.seen += 1
        return F.cross_entropy(output / self.temperature, y)


@pytest.mark.slow
def test_a_loss_that_learns_is_another_in_each_trial_and_the_users_stays_as_it_was():
    loss_fn, seen = Tempered(), []
    loss_fn.temperature.grad = torch.tensor(3.0)

    def make_optimizer(parameters):
        optimizer = torch.optim.SGD([*parameters, *loss_fn.parameters()], lr=0.1)
        optimizer.register_step_post_hook(lambda *_: seen.append(optimizer.param_groups[0]["params"][-1].item()))
        return optimizer

    found = gradwatch.prescribe(
        lambda: stack(8, nn.Sigmoid), make_optimizer, classes(), loss_fn, seeds=1, budget_seconds=4
    )
    assert found.ranking, str(found)
    assert len(set(seen)) > 30  # the copies learn
    assert torch.equal(loss_fn.temperature, torch.tensor(2.0))
    assert torch.equal(loss_fn.temperature.grad, torch.tensor(3.0))
    assert torch.equal(loss_fn.seen, torch.zeros(()))
    assert loss_fn.training


def test_a_loss_that_cannot_be_copied_is_used_as_it_is():
    class Single(Tempered):
        def __deepcopy__(self, memo):
            raise TypeError("there is but one")

    loss_fn = Single()
    found = gradwatch.prescribe(lambda: stack(2, nn.ReLU), descent(0.1), classes(), loss_fn, seeds=1, budget_seconds=2)
    assert found.note.startswith("Nothing was sick")
    assert loss_fn.seen > 0


@pytest.mark.slow
def test_a_model_that_works_in_place_spoils_no_batch():
    batches = [(x.abs(), y) for x, y in classes()]
    given = [x.clone() for x, _ in batches]

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = stack(8, nn.Sigmoid)

        def forward(self, x):
            return self.body(x.mul_(2.0))

    found = gradwatch.prescribe(InPlace, descent(0.1), batches, F.cross_entropy, seeds=1, budget_seconds=4)
    assert found.ranking, str(found)
    assert all(torch.equal(x, before) for (x, _), before in zip(batches, given, strict=True))


def test_batches_may_be_mappings_and_targets_any_structure():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = stack(8, nn.Sigmoid)

        def forward(self, features, scale=1.0):
            return {"logits": self.body(features * scale)}

    batches = [{"inputs": {"features": x}, "targets": {"of": (y, 1.0)}} for x, y in classes()]

    def loss_fn(output, targets):
        y, weight = targets["of"]
        return weight * F.cross_entropy(output["logits"], y)

    found = gradwatch.prescribe(Named, descent(0.1), batches, loss_fn, seeds=1, budget_seconds=3)
    assert found.ranking, str(found)


def test_runs_to_compare_are_written(tmp_path):
    gradwatch.prescribe(
        lambda: stack(8, nn.Sigmoid),
        descent(0.1),
        classes(),
        F.cross_entropy,
        seeds=1,
        budget_seconds=3,
        log_dir=tmp_path,
    )
    runs = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("events.out.tfevents*")}
    assert {run.split("/")[0] for run in runs} > {"do-nothing"}


class NeedsRate(torch.optim.SGD):
    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"make_model": 3}, TypeError, "make_model: expected something to call, found int. Write lambda"),
        ({"make_model": lambda: 3}, TypeError, "make_model: expected it to return an nn.Module, found int"),
        ({"make_optimizer": 3}, TypeError, "make_optimizer: expected something to call, found int. Write lambda"),
        ({"make_optimizer": lambda parameters: None}, TypeError, "make_optimizer: expected a torch.optim.Optimizer"),
        (
            {"make_optimizer": torch.optim.Adam(nn.Linear(2, 2).parameters())},
            TypeError,
            r"found an optimizer \(Adam\).* write lambda parameters: Adam\(parameters, lr=…\)",
        ),
        (
            {"make_optimizer": NeedsRate},
            TypeError,
            r"it raised TypeError: .*'lr'\. NeedsRate needs more than parameters: write lambda parameters: NeedsRate\(",
        ),
        (
            {"make_model": nn.Identity, "make_optimizer": torch.optim.Adam},
            TypeError,
            "it raised ValueError: optimizer got an empty parameter list.$",
        ),
        (
            {"make_optimizer": lambda model: torch.optim.SGD(model.parameters())},
            TypeError,
            "make_optimizer: called with the model's parameters, it raised AttributeError: 'list' object has no",
        ),
        ({"batches": iter(())}, ValueError, "batches: expected two or more, one of them to hold out, found 0"),
        ({"batches": None}, TypeError, "batches: expected a sequence of batches, a DataLoader or a"),
        ({"batches": classes()[:1]}, ValueError, "batches: expected two or more"),
        ({"batches": [torch.ones(2)] * 4}, TypeError, r"batches\[0\]: expected \(inputs, targets\)"),
        (
            {"batches": [(torch.full((4, 16), math.nan), torch.zeros(4))] * 5},
            ValueError,
            r"nothing of those held out \(numbers 4",
        ),
        ({"loss_fn": lambda output, y: output}, TypeError, r"loss_fn: expected it to return a scalar tensor"),
        (
            {"loss_fn": lambda output, y: F.mse_loss(output, y)},
            RuntimeError,
            "the untreated model could not be trained",
        ),
        ({"seeds": 0}, ValueError, "seeds=0: expected a whole number, 1 or more"),
        ({"budget_seconds": -1}, ValueError, "budget_seconds=-1: expected a finite number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_sense_are_refused(change, error, said):
    arguments = {
        "make_model": lambda: stack(1, nn.ReLU),
        "make_optimizer": descent(0.1),
        "batches": classes(),
        "loss_fn": F.cross_entropy,
        **change,
    }
    with pytest.raises(error, match=said):
        gradwatch.prescribe(**arguments)


def finding(kind, severity="error"):
    return gradwatch.Finding(kind, severity, "w", ("w",), 0, 0, 0, 1.0, 1.0, "", "")


def a_run(after, *findings, before=1.0, seed=0):
    return TrialRun(seed, 300, before, after, findings, 1e-3, True)


@pytest.mark.parametrize(
    ("treated", "untreated", "cured"),
    [
        (a_run(0.5), a_run(1.0, finding("vanishing")), True),
        (a_run(0.95), a_run(1.0, finding("vanishing")), False),  # not by a tenth
        (a_run(0.5, finding("vanishing")), a_run(1.0, finding("vanishing")), False),  # still there
        (a_run(0.5, finding("nonfinite")), a_run(1.0, finding("vanishing")), False),  # another error came
        (a_run(0.5, finding("saturated", "warning")), a_run(1.0, finding("vanishing")), True),
        (a_run(0.95), a_run(math.nan, finding("nonfinite")), False),  # learnt nothing
        (a_run(0.5), a_run(math.nan, finding("nonfinite")), True),
        (a_run(0.5), a_run(math.inf, finding("nonfinite"), before=math.nan), True),
        (a_run(0.95), a_run(math.inf, finding("nonfinite"), before=math.nan), False),  # learnt nothing of its own
        (a_run(math.nan), a_run(math.nan, finding("vanishing")), False),
        (a_run(-2.0), a_run(-1.0, finding("vanishing")), True),  # losses below zero
        (a_run(-1.05), a_run(-1.0, finding("vanishing")), False),
    ],
)
def test_what_counts_as_a_cure(treated, untreated, cured):
    kind = untreated.findings[0].kind
    assert ranking.is_cured(treated, untreated, kind) == cured


def a_trial(loss, *findings):
    return ranking.Trial("he", False, loss, 1.0, findings, 1e-3, (loss, loss), (0,), 1.0, "")


def test_what_has_no_loss_is_not_called_the_nearest():
    trials = [a_trial(math.nan), a_trial(2.0, finding("vanishing"))]
    assert outcome.sentence(trials, "vanishing") == (
        "Nothing helped: of 2 remedies tried against vanishing, none cured it; with 1 of them the finding was gone."
    )
    assert outcome.sentence(trials[1:], "vanishing").endswith(
        "none cured it. Nearest came he: the finding was there, held-out loss 2 where the untreated run ends at 1. "
        "A cure has to be better by a tenth than that and than an untrained model."
    )


def test_where_each_remedy_has_a_reason_the_budget_is_not_blamed():
    made = []

    def make_model():
        made.append(stack(8, nn.Sigmoid))
        if len(made) > 2:  # the untreated one, and another beside it
            raise RuntimeError("no more of these")
        return made[-1]

    found = gradwatch.prescribe(make_model, descent(0.1), classes(), F.cross_entropy, seeds=1, budget_seconds=4)
    assert found.note == "No remedy against vanishing could be tried: each one is in .not_applicable, with the reason."
    assert "raised RuntimeError: no more of these" in found.not_applicable["he"]


def test_the_table_names_the_controls():
    found = gradwatch.prescribe(
        lambda: nn.Linear(16, 4), descent(3e3), classes(), F.cross_entropy, seeds=1, budget_seconds=3
    )
    assert re.search(r"do nothing +0%", str(found))
    assert re.search(r"random choice +\d+%", str(found))
    assert found.ranking == sorted(found.ranking, key=lambda trial: not trial.cured)
