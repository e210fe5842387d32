"""A generator whose discriminator is sure of itself, beside games that look like it and go on."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.detect.shut_ahead import ShutAhead
from gradwatch.findings import Thresholds
from gradwatch.measure.activation_figures import Activations
from gradwatch.measure.layers import of_model
from tests.detect.training import told
from tests.reports import NAN, examine_all, report, sick_columns, table


def slow_shut_ahead(reports):
    """The rule in plain numbers: the sick columns of each sample it can judge, else None."""
    verdicts, losses = [], []
    for count, step in enumerate(reports):
        losses.append(step.loss)
        if not step.sampled or count < 10 or "shut_ahead" not in step.figures:
            verdicts.append(None)
            continue
        recent = losses[0]
        for number, loss in enumerate(losses, 1):
            recent += (loss - recent) / min(number, 50)
        beginning = max(losses[0], sum(losses[:10]) / 10)
        came_down = beginning - recent > 0.1 * abs(beginning)
        is_shut = max(share for share in step.figures["shut_ahead"] if not math.isnan(share)) >= 0.8
        largest = [max(each.grad_norm[column] for each in reports[:10]) for column in range(2)]
        faded = {column for column in range(2) if step.grad_norm[column] <= largest[column] / 100}
        verdicts.append(faded if is_shut and not came_down else set())
    return verdicts


@pytest.mark.parametrize("seed", range(10))
def test_the_rule_is_its_slow_twin(seed):
    random = np.random.default_rng(seed)
    reports = []
    for step in range(40):
        fade = 1.0 if step < 10 else random.choice([1.0, 1e-3])
        figures = {"shut_ahead": np.array([NAN, random.choice([0.5, 0.8, 1.0])])} if random.random() < 0.8 else {}
        norms = random.uniform(0.5, 2.0, 2) * fade
        reports.append(report(norms, step, -random.uniform(0.7, 1.0), sampled=random.random() < 0.7, figures=figures))
    found = examine_all(ShutAhead(table(2), Thresholds()), reports)
    assert [None if each is None else sick_columns(each) for each in found] == slow_shut_ahead(reports)


def test_a_literal_threshold_replaces_the_rule():
    detector = ShutAhead(table(1), Thresholds(vanishing_norm=1.0))
    figures = {"shut_ahead": np.ones(1)}
    reports = [report([1.0 if step < 10 else 1e-6], step, -1.0, sampled=True, figures=figures) for step in range(20)]
    assert set(examine_all(detector, reports)) == {None}


ONES, ZEROS = torch.ones(64, 1), torch.zeros(64, 1)
FUNCTIONS = {  # the loss of made samples, by the logits of a discriminator, and its slope
    "sigmoid and a logarithm": (
        lambda logits: (1 - logits.sigmoid()).log().mean(),
        lambda x: 4 * math.exp(-abs(x)) / (1 + math.exp(-abs(x))) ** 2,
    ),
    "binary_cross_entropy_with_logits": (
        lambda logits: -F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)),
        lambda x: 1 / (1 + math.exp(-x)),
    ),
    "logsigmoid": (lambda logits: F.logsigmoid(-logits).mean(), lambda x: 1 / (1 + math.exp(-x))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_share_of_flat_entries_before_the_loss_is_that_of_its_twin(name):
    loss_of, slope = FUNCTIONS[name]
    torch.manual_seed(0)
    maker, judge = nn.Linear(4, 4), nn.Linear(4, 1)
    nn.init.constant_(judge.bias, -3.5)
    models = {"maker": maker, "judge": judge}
    layers = of_model(nn.ModuleDict(models))
    activations = Activations(models, layers)
    activations.begin()
    x = torch.randn(64, 4)
    logits = judge(maker(x))
    activations.observe_loss(loss_of(logits))
    taken = activations.take([layers.names.index("maker.weight"), layers.names.index("maker.bias")])
    activations.remove()
    slopes = [slope(value) for value in logits.double().flatten().tolist()]
    expected = sum(each <= 0.05 for each in slopes) / len(slopes)
    assert 0 < expected < 1
    share = taken["shut_ahead"]
    assert [layers.names[column] for column in share.columns] == ["maker.weight"]
    assert share.values.tolist() == pytest.approx([expected])
    assert layers.names[int(taken["shut_after"].values[0])] == "judge.weight"


def test_a_loss_after_a_layer_of_the_same_optimizer_is_not_judged():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    activations = Activations({"": model}, of_model(model))
    activations.begin()
    activations.observe_loss(F.logsigmoid(-model(torch.randn(8, 4))).mean())
    assert "shut_ahead" not in activations.take(range(4))
    activations.remove()


def minimax(logits):
    return -F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


def non_saturating(logits):
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def play(loss_of_maker, *, lead=10.0, steps=200, function=nn.Identity, judged=F.binary_cross_entropy_with_logits):
    """Findings of a game on a Gaussian far from where the maker begins; the judge learns ``lead`` times as fast."""
    torch.manual_seed(0)
    maker = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    leaky = nn.LeakyReLU(0.2)
    judge = nn.Sequential(nn.Linear(2, 128), leaky, nn.Linear(128, 128), leaky, nn.Linear(128, 1), function())
    of_maker = torch.optim.Adam(maker.parameters(), lr=2e-4)
    of_judge = torch.optim.Adam(judge.parameters(), lr=2e-4 * lead)
    with gradwatch.watch({"maker": maker, "judge": judge}, [of_maker, of_judge]) as watcher:
        for _ in range(steps):
            real, made = 8 + 0.1 * torch.randn(64, 2), maker(torch.randn(64, 8))
            (judged(judge(real), ONES) + judged(judge(made.detach()), ZEROS)).backward()
            of_judge.step()
            of_judge.zero_grad()
            of_maker.zero_grad()
            loss_of_maker(judge(made)).backward()
            of_maker.step()
            of_judge.zero_grad()
    return watcher.findings


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"loss_of_maker": minimax},
        {"loss_of_maker": lambda logits: F.logsigmoid(-logits).mean()},
        {
            "loss_of_maker": lambda chances: -F.binary_cross_entropy(chances, ZEROS),
            "function": nn.Sigmoid,
            "judged": F.binary_cross_entropy,
        },
    ],
    ids=["with logits", "logsigmoid", "sigmoid module"],
)
def test_a_maker_whose_judge_is_sure_of_itself_gets_no_gradient(options):
    (finding,) = told(play(**options), "vanishing")
    assert finding.layer.startswith("maker.")
    assert finding.layer.endswith("weight")
    assert "after judge.4.weight it is flat for 100% of the entries" in finding.cause
    assert finding.remedies[0].name == "non-saturating-loss"
    assert finding.value <= finding.threshold


def hinge(logits, target):
    return F.relu(1 - logits).mean() if target is ONES else F.relu(1 + logits).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"loss_of_maker": non_saturating},
        {"loss_of_maker": lambda logits: -logits.mean(), "judged": hinge},
        {"loss_of_maker": minimax, "lead": 0.5},
        {
            "loss_of_maker": lambda chances: F.binary_cross_entropy(chances, ONES),
            "function": nn.Sigmoid,
            "judged": F.binary_cross_entropy,
        },
    ],
    ids=["non-saturating", "hinge", "an even game", "non-saturating, sigmoid module"],
)
def test_a_game_in_which_gradients_arrive_is_left_alone(options):
    assert told(play(**options), "vanishing") == []


def test_a_wasserstein_critic_of_clamped_weights_is_left_alone():
    torch.manual_seed(0)
    maker, critic = nn.Linear(8, 2), nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
    of_maker = torch.optim.RMSprop(maker.parameters(), lr=5e-4)
    of_critic = torch.optim.RMSprop(critic.parameters(), lr=5e-4)
    with gradwatch.watch({"maker": maker, "critic": critic}, [of_maker, of_critic]) as watcher:
        for step in range(200):
            real, made = 8 + 0.1 * torch.randn(64, 2), maker(torch.randn(64, 8))
            loss = critic(made.detach()).mean() - critic(real).mean()
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-0.01, 0.01)
            if step % 5 == 4:
                of_maker.zero_grad()
                (-critic(made).mean()).backward()
                of_maker.step()
    assert told(watcher.findings, "vanishing") == []
