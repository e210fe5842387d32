"""Slow growth without bound, no step of which is steep; and runs whose weights grow and that are well."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.others.parts import adam, classifier, explained, held_out, network, sample, scored, sgd
from benchmarks.detection.program import Observe, Pair, Training, plain


def held_out_loss(model: nn.Module) -> Callable[[], Tensor]:
    """Return the score of a classifier that is minus its loss on held-out digits."""

    def score() -> Tensor:
        x, y = held_out()
        return -F.cross_entropy(model(x), y)

    return score


def decayed(weight_decay: float) -> Training:
    """Momentum with a weight decay that a schedule of the loop writes into the group."""
    model = network(64, 48, 48, 10)
    optimizer = sgd(model, 0.1, momentum=0.9)

    def loss_of(step: int) -> Tensor:
        optimizer.param_groups[0]["weight_decay"] = weight_decay
        x, y = sample()
        return F.cross_entropy(model(x), y)

    return scored(plain(model, optimizer, loss_of, 350), held_out_loss(model))


DECAY = Pair("weight decay set by the loop", reaches=-0.6)


@DECAY.sick(
    "exploding", also=("nonfinite", "unstable"), cause="the weight decay is negative: weights grow by 1 % an update"
)
def weight_decay_negative(seed: int) -> Training:
    """The decay's sign is lost in a config: every update lengthens every weight by one per cent."""
    return decayed(-0.01)


@DECAY.healthy
def weight_decay_positive(seed: int) -> Training:
    """The same decay with its sign."""
    return decayed(1e-3)


def penalised(sign: float) -> Training:
    """Regression whose penalty on the squares of the weights is written into the loss."""
    x = torch.randn(400, 10)
    y = torch.sin(x @ torch.randn(10, 1) / 10**0.5)
    model = network(10, 32, 32, 1, activation=nn.Tanh)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        penalty = sum(parameter.square().sum() for parameter in model.parameters())
        return F.mse_loss(model(x[chosen]), y[chosen]) + sign * penalty

    return scored(plain(model, sgd(model, 0.1), loss_of, 400), explained(model, x, y))


PENALTY = Pair("penalty on squared weights", reaches=0.9)


@PENALTY.sick("exploding", also=("saturated", "unstable"), cause="the penalty is subtracted: it rewards large weights")
def penalty_of_the_wrong_sign(seed: int) -> Training:
    """The penalty is subtracted, and the weights grow by two per cent an update."""
    return penalised(-0.1)


@PENALTY.healthy
def penalty_of_the_right_sign(seed: int) -> Training:
    """The penalty is added, and small."""
    return penalised(1e-3)


class Baird(nn.Module):
    """Baird's seven states: linear values of which the upper six share a weight with the lower one."""

    def __init__(self) -> None:
        super().__init__()
        features = torch.zeros(7, 8)
        features[:6, :6], features[:6, 7] = 2 * torch.eye(6), 1.0
        features[6, 6], features[6, 7] = 1.0, 2.0
        self.register_buffer("features", features)
        self.values = nn.Linear(8, 1, bias=False)
        with torch.no_grad():
            self.values.weight.fill_(1.0)
            self.values.weight[0, 6] = 10.0

    def forward(self, states: Tensor) -> Tensor:
        return self.values(self.features[states])[:, 0]


def bootstrapped(is_on_policy: bool) -> Training:
    """Temporal differences towards the lowest state; all rewards are zero, so that zero is the true value."""
    model = Baird()

    def loss_of(step: int) -> Tensor:
        states = torch.full((32,), 6) if is_on_policy else torch.randint(7, (32,))
        if is_on_policy and step % 4 == 0:
            states = torch.randint(7, (32,))  # an episode begins anywhere, then stays at the lowest state
        with torch.no_grad():
            targets = 0.95 * model(torch.full((32,), 6))
        return F.mse_loss(model(states), targets)

    optimizer = sgd(model, 0.05)
    return scored(plain(model, optimizer, loss_of, 400), lambda: -model(torch.arange(7)).abs().mean())


BAIRD = Pair("bootstrapped values of seven states", reaches=-5.0)


@BAIRD.sick(
    "exploding", also=("nonfinite", "unstable"), cause="bootstrapped targets off policy under linear features diverge"
)
def values_bootstrapped_off_policy(seed: int) -> Training:
    """States are drawn uniformly, not by the policy: Baird's counterexample (1995) diverges."""
    return bootstrapped(False)


@BAIRD.healthy
def values_bootstrapped_on_policy(seed: int) -> Training:
    """States as the policy meets them, mostly the lowest: values go to zero."""
    return bootstrapped(True)


def fitted_values(has_target: bool, discount: float) -> Training:
    """Values of a ring of 20 states by a small network, each step bootstrapped from the next state."""
    model, target = network(2, 48, 48, 1), network(2, 48, 48, 1)
    target.load_state_dict(model.state_dict())
    angles = torch.arange(20) * (2 * torch.pi / 20)
    states = torch.stack([angles.cos(), angles.sin()], dim=1)
    rewards = (angles.cos() > 0.5).float()
    truth = sum(discount**k * rewards.roll(-k) for k in range(400))

    def loss_of(step: int) -> Tensor:
        if has_target and step % 10 == 0:
            target.load_state_dict(model.state_dict())
        chosen = torch.randint(20, (32,))
        with torch.no_grad():
            following = (target if has_target else model)(states[(chosen + 1) % 20])[:, 0]
        return F.mse_loss(model(states[chosen])[:, 0], rewards[chosen] + discount * following)

    made = plain(model, adam(model, 3e-3), loss_of, 400)
    return scored(made, lambda: -(model(states)[:, 0] - truth).abs().mean() / truth.abs().mean())


RING = Pair("discounted values on a ring", reaches=-0.35)


@RING.sick("exploding", also=("unstable",), cause="the discount is above 1: bootstrapped values have no fixed point")
def values_with_a_discount_above_one(seed: int) -> Training:
    """1.1 in place of 0.9: every sweep multiplies the values again."""
    return fitted_values(False, 1.1)


@RING.healthy
def values_with_a_discount_below_one(seed: int) -> Training:
    """The same with 0.9 and a target network."""
    return fitted_values(True, 0.9)


def separated(is_normalised: bool, rate: float) -> Training:
    """Two classes that a line separates: the weights of the line grow for ever, as they should."""
    x = torch.randn(300, 6)
    y = (x[:, 0] + x[:, 1] > 0).float()
    x = x + 0.3 * (2 * y[:, None] - 1) * torch.tensor([1.0, 1, 0, 0, 0, 0])
    model = nn.Sequential(nn.Linear(6, 1))
    nn.init.normal_(model[0].weight, std=1e-2)
    nn.init.zeros_(model[0].bias)

    def loss_of(step: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x)[:, 0], y)

    return scored(
        plain(model, sgd(model, rate), loss_of, 300), lambda: ((model(x)[:, 0] > 0) == (y > 0)).float().mean()
    )


GROWS_WELL = Pair("weights that grow and are well", reaches=0.8)


@GROWS_WELL.healthy
def separable_classes(seed: int) -> Training:
    """Logistic regression on separable classes: the weight grows by more than 100 times, the loss falls."""
    return separated(False, 5.0)


@GROWS_WELL.healthy
def embeddings_that_start_tiny(seed: int) -> Training:
    """Weights that start with a deviation of 1e-3 and grow a hundredfold while the network learns."""
    model = network(64, 64, 10, activation=nn.Tanh)
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=1e-3)
    return classifier(model, adam(model, 5e-3), 250)


@GROWS_WELL.healthy
def normalised_weights_without_decay(seed: int) -> Training:
    """Batch normalisation after every layer, a high rate, no decay: scale-free weights only ever grow."""
    layers: list[nn.Module] = []
    for inner in (64, 64, 64):
        layers += [nn.Linear(inner, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return classifier(model, sgd(model, 0.5, momentum=0.9), 200)


@GROWS_WELL.sick(
    "exploding", also=("unstable",), cause="a penalty on the logits is subtracted: logits grow without bound"
)
def logits_rewarded_for_their_size(seed: int) -> Training:
    """The z-loss of large language models with its sign lost: every logit grows for ever."""
    model = network(64, 48, 48, 10)

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        logits = model(x)
        return F.cross_entropy(logits, y) - 0.05 * logits.logsumexp(1).square().mean()

    return scored(plain(model, adam(model, 3e-3), loss_of, 300), lambda: held_out_loss(model)() + 1.6)


@GROWS_WELL.healthy
def logits_held_by_a_penalty(seed: int) -> Training:
    """The z-loss with its sign; its score is the loss, too."""
    model = network(64, 48, 48, 10)

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        logits = model(x)
        return F.cross_entropy(logits, y) + 0.01 * logits.logsumexp(1).square().mean()

    return scored(plain(model, adam(model, 3e-3), loss_of, 300), lambda: held_out_loss(model)() + 1.6)


def actor_that_keeps_entropy(is_right: bool) -> Training:
    """Soft actor-critic's temperature by itself: log α is driven by the distance of the entropy from its target."""
    policy, log_alpha = nn.Linear(4, 8), nn.Parameter(torch.zeros(()))
    model = nn.ModuleDict({"policy": policy, "temperature": nn.ParameterList([log_alpha])})
    optimizer = adam(model, 2e-2)
    values = torch.randn(4, 8) * 2
    target = 1.2

    def step(number: int, observe: Observe) -> None:
        states = torch.eye(4)[torch.randint(4, (64,))]
        logs = policy(states).log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        actor = -(logs.exp() * (states @ values)).sum(-1).mean() - log_alpha.exp().detach() * entropy.mean()
        surplus = (entropy.detach() - target).mean()
        temperature = log_alpha.exp() * (surplus if is_right else -surplus)
        optimizer.zero_grad()
        loss = actor + temperature
        observe(loss)
        loss.backward()
        optimizer.step()

    def score() -> Tensor:
        logs = policy(torch.eye(4)).log_softmax(-1)
        return -(-(logs.exp() * logs).sum(-1).mean() - target).abs()

    return scored(Training(model, [optimizer], 400, step), score)


TEMPERATURE = Pair("temperature of a soft actor", reaches=-0.3)


@TEMPERATURE.sick("exploding", also=("unstable", "vanishing"), cause="the temperature's loss has the wrong sign")
def temperature_driven_away(seed: int) -> Training:
    """Too much entropy raises the temperature, which raises the entropy: α grows without bound."""
    return actor_that_keeps_entropy(False)


@TEMPERATURE.healthy
def temperature_that_settles(seed: int) -> Training:
    """Too much entropy lowers the temperature."""
    return actor_that_keeps_entropy(True)
