"""Mixtures whose router sends everything to one expert, and mixtures that share their inputs out."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.detect.router_collapsed import CERTAIN, LATEST, PATIENCE, SHARE, UNREACHED, RouterCollapsed
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from tests.detect.training import told, train
from tests.reports import NAN, examine_all, report, sick_columns

SGD, Adam = torch.optim.SGD, torch.optim.Adam
EXPERTS = 3


def mixture_table():
    """A stem, a router after it, and three experts beside each other."""
    names = ["stem.weight", "moe.router.weight", *(f"moe.experts.{place}.weight" for place in range(EXPERTS))]
    layers = of_tensors({name: torch.zeros(2, 2) for name in names})
    after = np.zeros((5, 5), dtype=bool)
    after[0, 1:] = True
    layers.connect(after, np.ones(5, dtype=bool))
    return layers


def slow_collapsed(reports):
    """The rule in plain numbers for ``mixture_table``: sick columns of each sample, None where it says nothing."""
    verdicts, reached, steep = [], set(), False
    for step in reports:
        if not step.sampled or any(step.nonfinite > 0):
            verdicts.append(None)
            continue
        norms = [0.0 if norm != norm else norm for norm in step.grad_norm.tolist()]
        steep = steep or not step.figures["saturated_output_share"][1] >= CERTAIN
        largest = max(norms[2:])
        if steep or largest == 0:
            verdicts.append(set())
            continue
        reached |= {column for column in range(1, 5) if norms[column] > UNREACHED * largest}
        unreached = {column for column in range(2, 5) if column not in reached}
        collapsed = 1 not in reached and len(unreached) >= SHARE * EXPERTS
        verdicts.append(unreached | {1} if collapsed else set())
    return verdicts


def random_mixtures(seed):
    random = np.random.default_rng(seed)
    level = np.array([0.0, *random.choice([-2.0, -9.0], 4, p=[0.2, 0.8])])
    level[2] = 0.0
    opens = random.choice([5, 40])
    reports = []
    for step in range(30):
        norms = 10.0 ** (level + random.normal(0, 0.5, 5))
        norms[3:][random.random(2) < 0.2] = NAN
        share = 0.3 if step == opens else 1.0
        figures = {"saturated_output_share": np.array([NAN, share, NAN, NAN, NAN])}
        nonfinite = [0, int(random.random() < 0.02), 0, 0, 0]
        is_sampled = random.random() < 0.9
        rest = {"figures": figures} if is_sampled else {}
        reports.append(report(norms, step, 1.0, sampled=is_sampled, nonfinite=nonfinite, **rest))
    return reports


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_is_its_slow_twin(seed):
    reports = random_mixtures(seed)
    found = examine_all(RouterCollapsed(mixture_table(), Thresholds()), reports)
    assert [sick_columns(result) for result in found] == slow_collapsed(reports)


def test_the_random_mixtures_are_sick_and_healthy():
    sick = [seed for seed in range(30) if any(slow_collapsed(random_mixtures(seed)))]
    assert 3 < len(sick) < 27


def collapsed(ratio=1e-9, share=1.0, step=0):
    figures = {"saturated_output_share": np.array([NAN, share, NAN, NAN, NAN])}
    return report([1.0, ratio, 1.0, 0.0, NAN], step, 1.0, sampled=True, figures=figures)


def test_a_router_that_is_coming_back_is_waited_for():
    rising = [collapsed(1e-12 * 1.2**step, step=step) for step in range(20)]
    found = examine_all(RouterCollapsed(mixture_table(), Thresholds()), rising)
    assert [bool(each.mending.any()) for each in found] == [step >= PATIENCE - 1 for step in range(20)]
    noisy = [collapsed(10.0 ** (-12 + step % LATEST), step=step) for step in range(20)]
    found = examine_all(RouterCollapsed(mixture_table(), Thresholds()), noisy)
    assert not any(each.mending.any() for each in found)


def test_what_was_measured_is_said():
    detector = RouterCollapsed(mixture_table(), Thresholds())
    now = collapsed()
    result = detector.examine(now)
    assert result.badness.argmax() == 1
    evidence = detector.explain(now, 1, [1, 3, 4])
    assert "The gradient norm of moe.router.weight is 1e-09 at step 0" in evidence.measured
    assert "2 weights of the others" in evidence.cause[0]


def test_a_literal_threshold_replaces_the_rule_and_a_model_without_paths_is_not_judged():
    assert RouterCollapsed(mixture_table(), Thresholds(vanishing_norm=1e-3)).examine(collapsed()) is None
    layers = of_tensors({name: torch.zeros(2, 2) for name in mixture_table().names})
    assert RouterCollapsed(layers, Thresholds()).examine(collapsed()) is None


class Mixture(nn.Module):
    """Experts weighed by the softmax of a router; ``is_hard`` runs only the one that is chosen."""

    def __init__(self, bias=0.0, sharpness=1.0, is_hard=False, count=4):
        super().__init__()
        self.router = nn.Linear(6, count)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)) for _ in range(count))
        self.is_hard = is_hard
        with torch.no_grad():
            self.router.weight.mul_(sharpness)
            self.router.bias[1] += bias

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        if not self.is_hard:
            return (weights[..., None] * torch.stack([expert(x) for expert in self.experts], 1)).sum(1)
        weight, chosen = weights.max(-1)
        out = x.new_zeros(len(x), 2)
        for place, expert in enumerate(self.experts):
            if (is_mine := chosen == place).any():
                out[is_mine] = weight[is_mine, None] * expert(x[is_mine])
        return out


def pieces(model, make, rate):
    x = torch.randn(512, 6)
    is_right = (x[:, :1] > 0).float()
    y = torch.cat([is_right * x[:, 1:2] * 2 - (1 - is_right) * x[:, 2:3], x[:, 3:4].abs()], 1)

    def loss_of(_):
        chosen = torch.randint(len(x), (64,))
        return F.mse_loss(model(x[chosen]), y[chosen])

    return model, make(model.parameters(), rate), loss_of


class Soloists(nn.Module):
    """Heads of three tasks that take turns, behind a gate that is open on purpose."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))
        nn.init.constant_(self.gate.bias, 8.0)

    def forward(self, x):
        return torch.stack([head(x * torch.sigmoid(self.gate(x))) for head in self.heads])


def one_head_of_three():
    model, x = Soloists(), torch.randn(256, 6)
    return model, SGD(model.parameters(), 0.1), lambda _: F.mse_loss(model(x)[1], x[:, :2])


SICK = {
    "soft": lambda: pieces(Mixture(25.0), Adam, 5e-3),
    "soft_behind_a_stem": lambda: pieces(nn.Sequential(nn.Linear(6, 6), Mixture(30.0)), Adam, 5e-3),
    "hard": lambda: pieces(Mixture(30.0, is_hard=True), Adam, 5e-3),
    "two_experts_under_descent": lambda: pieces(Mixture(18.0, count=2), SGD, 0.1),
}


@pytest.mark.parametrize("make", SICK.values(), ids=SICK)
def test_a_router_collapsed_from_the_start_is_found_though_the_loss_comes_down(make):
    torch.manual_seed(0)
    (vanishing,) = told(train(*make(), 150), "vanishing")
    assert vanishing.layer.endswith("router.weight")
    assert not any("experts.1" in name for name in vanishing.layers)
    assert sum("experts" in name for name in vanishing.layers) == 2 * (len(vanishing.layers) // 2)


HEALTHY = {
    "soft": lambda: pieces(Mixture(), Adam, 5e-3),
    "hard": lambda: pieces(Mixture(is_hard=True), Adam, 5e-3),
    "sharp": lambda: pieces(Mixture(sharpness=8.0), Adam, 5e-3),
    "biased": lambda: pieces(Mixture(8.0), SGD, 0.1),
    "hard_with_many_experts": lambda: pieces(Mixture(is_hard=True, count=16), Adam, 5e-3),
    "far_off_but_coming_back": lambda: pieces(Mixture(13.0), Adam, 5e-2),
    "one_head_of_three": one_head_of_three,
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_mixtures_that_share_their_inputs_out_are_left_alone(make):
    torch.manual_seed(0)
    assert train(*make(), 120) == []
