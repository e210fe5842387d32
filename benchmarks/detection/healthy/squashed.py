"""Runs that learn although sigmoids, tanhs or softmaxes are flat: for they are right, masked, or flat only at first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits
from benchmarks.detection.faulty.certain import Recall, on_recall
from benchmarks.detection.faulty.saturated import Gated, Highway, on_hill
from benchmarks.detection.healthy.everyday import adam, network, on_digits
from benchmarks.detection.program import Observe, Training, healthy, plain


def on_pixels(
    model: nn.Module, target_of: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor], steps: int = 300
) -> Training:
    """Images made from themselves."""
    x, _ = digits()

    def loss_of(step: int) -> Tensor:
        target = target_of(x[torch.randint(len(x), (64,))])
        return loss(model(target), target)

    return plain(model, adam(model, 5e-3), loss_of, steps)


@healthy(falls_to=0.5)
def images_of_signs(seed: int) -> Training:
    """A generator's tanh for pixels that are −1 or 1: it saturates as the images become right."""
    model = nn.Sequential(*network(64, 128, 64, 128, 64), nn.Tanh())
    return on_pixels(model, lambda x: (x > 0.5).float() * 2 - 1, F.mse_loss)


@healthy(falls_to=0.5)
def images_of_bits(seed: int) -> Training:
    """A decoder's sigmoid under binary cross-entropy, images of zeros and ones."""
    model = nn.Sequential(*network(64, 96, 48, 96, 64), nn.Sigmoid())
    return on_pixels(model, lambda x: (x > 0.5).float(), F.binary_cross_entropy)


@healthy(falls_to=0.4)
def full_left_or_full_right(seed: int) -> Training:
    """A policy squashed by tanh whose best action is nearly always −1 or 1."""
    model = nn.Sequential(*network(8, 64, 64, 2), nn.Tanh())
    direction = torch.randn(8, 2)

    def loss_of(step: int) -> Tensor:
        state = torch.randn(64, 8)
        return (1 - model(state) * (state @ direction).sign()).mean()

    return plain(model, adam(model), loss_of, 200)


@healthy(falls_to=0.2)
def sure_of_two_classes(seed: int) -> Training:
    """Zeros against ones, by a sigmoid and binary cross-entropy: soon certain, rightly."""
    model = nn.Sequential(*network(64, 32, 1), nn.Sigmoid())
    x, y = digits()
    x, y = x[y < 2], y[y < 2]

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return F.binary_cross_entropy(model(x[chosen]).squeeze(1), y[chosen].float())

    return plain(model, adam(model, 1e-2), loss_of, 150)


@healthy(falls_to=0.2)
def sure_by_a_softmax(seed: int) -> Training:
    """Threes against fives, a softmax by hand over two classes, squared error."""
    model = network(64, 32, 2)
    x, y = digits()
    is_chosen = (y == 3) | (y == 5)
    x, y = x[is_chosen], (y[is_chosen] == 5).long()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return (F.softmax(model(x[chosen]), dim=1) - F.one_hot(y[chosen], 2)).square().sum(1).mean()

    return plain(model, adam(model, 1e-2), loss_of, 150)


@healthy(falls_to=0.1)
def memorised_through_a_softmax(seed: int) -> Training:
    """Thirty-two digits learned by heart through a softmax and its logarithm: every row certain."""
    model = network(64, 64, 10)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        likelihood = model(x[:32]).softmax(-1)
        return -likelihood.gather(1, y[:32, None]).clamp(min=1e-12).log().mean()

    return plain(model, adam(model, 1e-2), loss_of, 150)


@healthy(falls_to=0.1)
def attention_grown_sharp(seed: int) -> Training:
    """Recall of one of eight: attention starts even and ends on the right key alone."""
    model = Recall(16, 2.0)
    return on_recall(model, adam(model, 1e-2), 200)


@healthy(falls_to=0.1)
def fused_attention_grown_sharp(seed: int) -> Training:
    """The same by the fused kernel."""
    model = Recall(32, 4.0, fused=True)
    return on_recall(model, adam(model, 1e-2), 150)


@healthy(falls_to=0.2)
def copied_by_position(seed: int) -> Training:
    """Twelve letters are reversed by attention over positions alone, which must end on one place each."""
    model = nn.ModuleDict(
        {
            "asks": nn.Embedding(12, 24),
            "seats": nn.Embedding(12, 24),
            "read": nn.Embedding(16, 24),
            "head": nn.Linear(24, 16),
        }
    )
    places = torch.arange(12)

    def loss_of(step: int) -> Tensor:
        letters = torch.randint(16, (32, 12))
        weights = torch.softmax(model["asks"](places) @ model["seats"](places).T / 24**0.5, -1)
        return F.cross_entropy(model["head"](weights @ model["read"](letters)).flatten(0, 1), letters.flip(1).flatten())

    return plain(model, adam(model, 3e-2), loss_of, 200)


@healthy(falls_to=0.2)
def first_number_remembered(seed: int) -> Training:
    """Gates that open for the first of twelve numbers, and then stay shut to keep it."""
    model = Gated(16)
    nn.init.constant_(model.forget.bias, 4.0)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(64, 12)
        x[:, 1:] = 3 + 0.1 * x[:, 1:]
        return F.mse_loss(model(x), x[:, :1].clamp(-1, 1))

    return plain(model, adam(model, 1e-2), loss_of, 150)


@healthy(falls_to=0.3)
def state_kept_unless_marked(seed: int) -> Training:
    """A gated unit by hand keeps its state, z near 1, save where a mark says to take the number."""
    model = nn.ModuleDict({"keep": nn.Linear(2, 16), "content": nn.Linear(2, 16), "head": nn.Linear(16, 1)})
    nn.init.constant_(model["keep"].bias, 2.0)

    def loss_of(step: int) -> Tensor:
        x, marked = torch.randn(64, 10), torch.randint(10, (64,))
        marks = F.one_hot(marked, 10).float() * 4
        state = torch.zeros(64, 16)
        for seen in torch.stack([x, marks], -1).unbind(1):
            keep = torch.sigmoid(model["keep"](seen))
            state = keep * state + (1 - keep) * torch.tanh(model["content"](seen))
        return F.mse_loss(model["head"](state), x.gather(1, marked[:, None]).clamp(-1, 1))

    return plain(model, adam(model, 2e-2), loss_of, 200)


@healthy(falls_to=0.4)
def bits_straight_through(seed: int) -> Training:
    """Signs forward, the slope of a hardtanh backward (arXiv:1602.02830): half of the entries lie beyond one."""
    first, second, head = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 10)
    norms = nn.ModuleList(nn.BatchNorm1d(128) for _ in range(2))
    model = nn.ModuleDict({"first": first, "second": second, "head": head, "norms": norms})
    for norm in norms:
        nn.init.constant_(norm.weight, 1.5)
    x, y = digits()

    def bits(hidden: Tensor) -> Tensor:
        soft = F.hardtanh(hidden)
        return soft + (hidden.sign() - soft).detach()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        hidden = bits(norms[1](second(bits(norms[0](first(x[chosen]))))))
        return F.cross_entropy(head(hidden), y[chosen])

    return plain(model, adam(model), loss_of, 200)


@healthy(falls_to=0.5)
def rows_masked_to_one_key(seed: int) -> Training:
    """Sequences of one real token and seven of padding: a mask of −∞ leaves most rows a single key."""
    layers = {"ask": nn.Linear(8, 16), "key": nn.Linear(8, 16), "value": nn.Linear(8, 16), "head": nn.Linear(16, 10)}
    model = nn.ModuleDict(layers)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        rows = x[chosen].reshape(-1, 8, 8)
        scores = model["ask"](rows) @ model["key"](rows).mT / 4
        allowed = torch.eye(8, dtype=torch.bool)
        allowed[0] = True
        weights = F.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
        return F.cross_entropy(model["head"]((weights @ model["value"](rows)).relu().amax(1)), y[chosen])

    return plain(model, adam(model, 1e-2), loss_of, 200)


@healthy(falls_to=0.3)
def router_that_is_sure(seed: int) -> Training:
    """A softmax over two experts; the sign of a feature, soon learned, decides between two opposite maps."""
    model = nn.ModuleDict({"first": nn.Linear(8, 4), "second": nn.Linear(8, 4), "route": nn.Linear(8, 2)})
    truth = torch.randn(8, 4)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(128, 8)
        x[:, 0] = x[:, 0].sign() * 2
        weights = torch.softmax(model["route"](x), -1)
        output = weights[:, :1] * model["first"](x) + weights[:, 1:] * model["second"](x)
        return F.mse_loss(output, x[:, :1].sign() * (x @ truth))

    return plain(model, adam(model, 3e-2), loss_of, 300)


@healthy(falls_to=0.4)
def expert_for_one_in_fifty(seed: int) -> Training:
    """A sigmoid lets a second expert add to the first on one input in fifty; on all others it is shut, rightly."""
    model = nn.ModuleDict({"common": network(8, 32, 1), "rare": network(8, 16, 1), "gate": nn.Linear(8, 1)})
    nn.init.constant_(model["gate"].bias, -5.0)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(256, 8)
        x[:, 7] = torch.rand(256) < 0.02
        y = x[:, :1] + x[:, 1:2].abs() + 4 * x[:, 7:]
        gate = model["gate"](x).sigmoid()
        return F.mse_loss(model["common"](x) + gate * model["rare"](x), y)

    return plain(model, adam(model, 1e-2), loss_of, 200)


@healthy(falls_to=0.4)
def tanh_started_somewhat_large(seed: int) -> Training:
    """Two tanh layers at four times Xavier's deviation: half flat at first, and learned nevertheless."""
    model = network(64, 64, 64, 10, activation=nn.Tanh)
    for index in (0, 2):
        nn.init.xavier_normal_(model[index].weight, 4.0)
    return on_digits(model, adam(model))


@healthy(falls_to=0.3)
def gates_open_from_the_start(seed: int) -> Training:
    """Squeeze and excitation that begins as the identity, its last bias at 5: flat, open, and no hindrance."""
    layers = {"conv": nn.Conv2d(1, 16, 3), "squeeze": nn.Linear(16, 4), "excite": nn.Linear(4, 16)}
    model = nn.ModuleDict(layers | {"head": nn.Linear(576, 10)})
    nn.init.constant_(model["excite"].bias, 5.0)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        maps = F.relu(model["conv"](x[chosen].reshape(-1, 1, 8, 8)))
        gate = torch.sigmoid(model["excite"](F.silu(model["squeeze"](maps.mean((2, 3))))))
        return F.cross_entropy(model["head"]((maps * gate[:, :, None, None]).flatten(1)), y[chosen])

    return plain(model, adam(model), loss_of, 120)


@healthy(falls_to=0.2)
def highway_by_its_paper(seed: int) -> Training:
    """A highway network whose gates start at −3 (arXiv:1505.00387, 2.2): nearly shut, then opened where needed."""
    model = Highway(4, 24)
    for layer in model.layers:
        nn.init.constant_(layer["gate"].bias, -3.0)
    return on_hill(model, adam(model, 5e-3), 150)


@healthy(falls_to=0.5)
def choice_annealed_to_hard(seed: int) -> Training:
    """A soft choice among four maps whose temperature falls from 2 to 0.05: hard at the end, as planned."""
    model = nn.ModuleDict({"choose": nn.Linear(8, 4), "maps": nn.Linear(8, 4)})
    truth = torch.randn(8, 1)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(128, 8)
        temperature = max(0.05, 2 * 0.98**step)
        weights = torch.softmax(model["choose"](x) / temperature, -1)
        return F.mse_loss((weights * model["maps"](x)).sum(1, keepdim=True), (x @ truth).abs())

    return plain(model, adam(model, 2e-2), loss_of, 250)


@healthy(falls_to=0.5)
def actor_that_has_decided(seed: int) -> Training:
    """Policy gradients whose softmax is certain of the right action in the end; the regret is what falls."""
    model = network(8, 32, 2)
    best = torch.randn(8)
    optimizer = adam(model, 1e-2)

    def step(number: int, observe: Observe) -> None:
        state = torch.randn(128, 8)
        policy = model(state).softmax(-1)
        action = torch.multinomial(policy.detach(), 1)
        reward = (action.squeeze(1) == (state @ best > 0)).float()
        optimizer.zero_grad()
        observe(1 - reward.mean())
        likelihood = policy.gather(1, action).squeeze(1)
        (-(reward - reward.mean()) * (likelihood + 1e-8).log()).mean().backward()
        optimizer.step()

    return Training(model, [optimizer], 200, step)


@healthy(falls_to=0.4)
def hard_sigmoid_gates_in_range(seed: int) -> Training:
    """Channels weighed by a hard sigmoid, a quarter of them beyond its ends."""
    model = nn.ModuleDict({"gate": nn.Linear(64, 64), "inner": nn.Linear(64, 64), "head": nn.Linear(64, 10)})
    nn.init.normal_(model["gate"].weight, std=0.6)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        inputs = x[chosen]
        hidden = F.hardsigmoid(model["gate"](inputs)) * F.hardswish(model["inner"](inputs))
        return F.cross_entropy(model["head"](hidden), y[chosen])

    return plain(model, adam(model), loss_of, 200)
