"""NaN and Inf: a formula at the edge of its domain, a number beyond its format, a corrupt item or weight."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.program import Training, faulty, plain, supervised

BatchLoss = Callable[[int, Tensor, Tensor], Tensor]
"""Number of the update, inputs, targets → loss."""


def network(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with activations between."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


def convolutional(channels: int = 8, *, between: Callable[[int], nn.Module] = lambda _: nn.Identity()) -> nn.Sequential:
    """Three convolutions over 8 × 8 pixels, then a linear layer; ``between`` follows each convolution."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for inner in (1, channels, channels):
        layers += [nn.Conv2d(inner, channels, 3, padding=1), between(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels * 16, 10))


def sgd(model: nn.Module, rate: float = 0.1, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, **options)


def adam(model: nn.Module, rate: float = 3e-3, **options) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=rate, **options)


def on_pairs(
    x: Tensor,
    y: Tensor,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: BatchLoss,
    steps: int = 80,
    *,
    batch: int = 64,
    **options,
) -> Training:
    """Random batches of (x, y)."""

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (batch,))
        return loss(step, x[chosen], y[chosen])

    return plain(model, optimizer, loss_of, steps, **options)


def on_digits(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: BatchLoss | None = None,
    steps: int = 80,
    *,
    scale: float = 1.0,
    batch: int = 64,
    **options,
) -> Training:
    """Random batches of digits, classified unless ``loss`` says otherwise."""
    x, y = digits(scale)
    if loss is not None:
        return on_pairs(x, y, model, optimizer, loss, steps, batch=batch, **options)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (batch,))
        return x[chosen], y[chosen]

    return supervised(model, optimizer, draw, F.cross_entropy, steps, **options)


def curve(items: int = 512, features: int = 8) -> tuple[Tensor, Tensor]:
    """(items, features) normal inputs and (items, 1) a smooth function of them."""
    x = torch.randn(items, features)
    return x, (x @ torch.randn(features, 1) / features**0.5).sin()


# Logarithms and exponentials ----------------------------------------------------------------------------------------


@faulty("nonfinite")
def log_sum_exp_without_a_shift(seed: int) -> Training:
    """By hand, log Σ exp overflows where a logit passes 88; inputs a hundred times too bright arrive at update 60."""
    model = network(64, 32, 10)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x * 100 if step == 60 else x)
        return (logits.exp().sum(1).log() - logits.gather(1, y[:, None])[:, 0]).mean()

    return on_digits(model, sgd(model, 0.5), loss, 100)


@faulty("nonfinite")
def poisson_rate_overflows(seed: int) -> Training:
    """Count regression with rate exp(output): at update 45 one item's features come in the wrong unit."""
    x, _ = curve()
    counts = torch.poisson((x[:, :1] * 0.5).exp())
    model = network(8, 32, 1)

    def loss(step: int, inputs: Tensor, target: Tensor) -> Tensor:
        if step == 45:
            inputs = torch.cat(
                [
                    inputs[:-1],
                    1e4 * torch.ones(1, 8),
                ]
            )
        output = model(inputs)
        return (output.exp() - target * output).mean()

    return on_pairs(x, counts, model, sgd(model, 0.05), loss, 90)


@faulty("nonfinite")
def divergence_from_hard_labels(seed: int) -> Training:
    """KL by hand, p (log p − log q): when label smoothing is switched off at update 50, p log p is 0 times −Inf.

    The gradient never meets that term and stays right: only the loss is NaN.
    """
    model = convolutional(4)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        smoothing = 0.1 if step < 50 else 0.0
        p = F.one_hot(y, 10) * (1 - smoothing) + smoothing / 10
        return (p * (p.log() - model(x).log_softmax(1))).sum(1).mean()

    return on_digits(model, sgd(model, 0.3), loss, 80, batch=32)


@faulty("nonfinite")
def padding_masked_by_a_product(seed: int) -> Training:
    """A mask multiplies log-likelihoods that are −Inf on padding: 0 times Inf; the first padded batch comes at 30."""
    model = nn.Sequential(nn.Embedding(128, 16), nn.Linear(16, 128))

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(16, 16)
        mask = torch.ones(16, 16)
        if step >= 30 and step % 10 == 0:
            mask[3, 9:] = 0
        p = model(inputs).softmax(2).gather(2, targets[..., None])[..., 0] * mask
        return -(mask * p.log()).sum() / mask.sum()

    return plain(model, adam(model), loss_of, 70)


@faulty("nonfinite", also=("exploding",))
def variance_rectified_to_zero(seed: int) -> Training:
    """Gaussian likelihood whose variance is a ReLU: where it is off, the error is divided by 0."""
    x, y = curve()
    model = network(8, 32, 2)
    with torch.no_grad():
        model[-1].bias[1] = 2.0

    def loss(step: int, inputs: Tensor, target: Tensor) -> Tensor:
        mean, variance = model(inputs).split(1, 1)
        variance = variance.relu()
        return (variance.log() + (target - mean).square() / variance).mean()

    return on_pairs(x, y, model, sgd(model, 0.02), loss, 120)


@faulty("nonfinite", also=("exploding",))
def temperature_annealed_to_zero(seed: int) -> Training:
    """The temperature of a softmax falls linearly and reaches 0 at update 80: logits divided by 0."""
    model = network(64, 32, 10)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        temperature = max(1 - step / 80, 0)
        return F.cross_entropy(model(x) / torch.tensor(temperature), y)

    return on_digits(model, sgd(model, 0.02), loss, 110)


# Roots, norms and angles --------------------------------------------------------------------------------------------


@faulty("nonfinite")
def same_item_on_both_sides(seed: int) -> Training:
    """Contrastive distances √Σd²: once a batch pairs an item with itself, the root's gradient is Inf times 0."""
    model = network(64, 32, 8)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        left, right = torch.randint(len(x), (2, 48))
        distance = (model(x[left]) - model(x[right])).square().sum(1).sqrt()
        return torch.where(y[left] == y[right], distance, (1 - distance).relu()).mean()

    return plain(model, sgd(model, 0.05), loss_of, 300)


@faulty("nonfinite", layers=("2.weight",))
def group_lasso_on_a_pruned_row(seed: int) -> Training:
    """Pruning zeroes a row of one layer at update 50; the penalty √Σw² of that row has gradient 0/0. Only there."""
    model = network(64, 32, 32, 10)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        if step == 50:
            with torch.no_grad():
                model[2].weight[7] = 0
        return F.cross_entropy(model(x), y) + 1e-3 * model[2].weight.square().sum(1).sqrt().sum()

    return on_digits(model, sgd(model), loss, 90)


@faulty("nonfinite")
def cosine_of_a_blank_image(seed: int) -> Training:
    """Cosine similarity by hand, ab/(‖a‖‖b‖): a blank image through layers without biases is a zero vector."""
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))
    prototypes = torch.randn(10, 8)
    x, y = digits()
    x = torch.cat([x, torch.zeros(1, 64)])
    y = torch.cat([y, y[:1]])

    def loss(step: int, inputs: Tensor, classes: Tensor) -> Tensor:
        a, b = model(inputs), prototypes[classes]
        return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()

    return on_pairs(x, y, model, sgd(model), loss, 300)


@faulty("nonfinite")
def weight_norm_of_zeros(seed: int) -> Training:
    """A last layer started at zero under weight normalisation: its direction is 0/0 (g·v/‖v‖)."""
    last = nn.Linear(32, 10)
    nn.init.zeros_(last.weight)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.utils.parametrizations.weight_norm(last))
    return on_digits(model, sgd(model), None, 40)


@faulty("nonfinite")
def angle_reaches_zero(seed: int) -> Training:
    """The loss is the angle arccos(u·v): once the prediction is right, u·v rounds to 1, where the slope is infinite."""
    x = torch.randn(512, 6)
    target = F.normalize(x @ torch.randn(6, 2), dim=1)
    model = network(6, 32, 2)

    def loss(step: int, inputs: Tensor, direction: Tensor) -> Tensor:
        return (F.normalize(model(inputs), dim=1) * direction).sum(1).clamp(-1, 1).acos().mean()

    return on_pairs(x, target, model, adam(model), loss, 300, batch=32)


@faulty("nonfinite")
def squashed_actions_inverted(seed: int) -> Training:
    """Actions tanh(a), stored in half precision, are inverted by atanh: one that was rounded to 1 becomes Inf."""
    x = torch.randn(1024, 6)
    actions = torch.tanh(1.4 * torch.randn(1024, 1) + x[:, :1]).half().float()
    model = network(6, 32, 2, activation=nn.Tanh)

    def loss(step: int, inputs: Tensor, action: Tensor) -> Tensor:
        mean, log_deviation = model(inputs).split(1, 1)
        return (((action.atanh() - mean) / log_deviation.exp()).square() / 2 + log_deviation).mean()

    return on_pairs(x, actions, model, adam(model), loss, 120, batch=8)


@faulty("nonfinite")
def generalised_mean_of_negatives(seed: int) -> Training:
    """Generalised-mean pooling, (mean of xᵖ)^(1/p) with p learned, without the clamp: a power of a negative number."""
    features = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    model = nn.ParameterDict({"power": nn.Parameter(torch.tensor(3.0))})
    model = nn.ModuleDict({"features": features, "pool": model, "head": nn.Linear(16, 10)})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        h, power = features(x).flatten(2), model["pool"]["power"]
        # Until the clean-up at update 40 the features were clamped.
        h = h if step >= 40 else h.clamp(min=1e-6)
        return F.cross_entropy(model["head"](h.pow(power).mean(2).pow(1 / power)), y)

    return on_digits(model, sgd(model, 0.1), loss, 80, batch=32)


@faulty("nonfinite")
def root_behind_a_where(seed: int) -> Training:
    """``where(h > 0, √h, 0)``: the branch not taken still gives its gradient, 0 times NaN."""
    first, second = nn.Linear(64, 32), nn.Linear(32, 10)
    model = nn.Sequential(first, second)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        h = first(x)
        return F.cross_entropy(second(torch.where(h > 0, h.sqrt(), torch.zeros(()))), y)

    return on_digits(model, sgd(model), loss, 40)


@faulty("nonfinite")
def mean_over_an_empty_mask(seed: int) -> Training:
    """Mean of embeddings over a mask: at update 55 one text of the batch is empty, 0/0."""
    model = nn.Sequential(nn.Embedding(128, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 128))

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(32, 12)
        mask = (torch.arange(12) < torch.randint(1, 13, (32, 1))).float()
        if step == 55:
            mask[4] = 0
        pooled = (model[0](inputs) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.cross_entropy(model[1:](pooled), targets[:, -1])

    return plain(model, adam(model), loss_of, 90)


@faulty("nonfinite")
def every_label_ignored_in_one_batch(seed: int) -> Training:
    """All targets of batch 40 are the ignored index: the mean loss is 0/0, while the gradients are all 0."""
    model = network(64, 32, 10)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), torch.full_like(y, -100) if step == 40 else y)

    return on_digits(model, sgd(model), loss, 80)


@faulty("nonfinite")
def constant_pixels_standardised(seed: int) -> Training:
    """Inputs are divided by their standard deviation over the batch; some pixels are always 0."""
    model = network(64, 32, 10)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model((x - x.mean(0)) / x.std(0)), y)

    return on_digits(model, adam(model), loss, 40)


class BatchNormByHand(nn.Module):
    """Batch normalisation without the epsilon."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x - x.mean(0)).square().mean(0).sqrt()


@faulty("nonfinite")
def batch_norm_by_hand_without_epsilon(seed: int) -> Training:
    """Normalises after a ReLU without an epsilon: once a unit is off for the whole batch, 0/0."""
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), BatchNormByHand(), nn.Linear(48, 10))
    return on_digits(model, sgd(model, 0.3), None, 300, batch=16)


@faulty("nonfinite")
def deviation_of_a_last_batch_of_one(seed: int) -> Training:
    """Features are divided by their unbiased deviation; an epoch's last batch holds one item: 0/0."""
    x, y = digits()
    x, y = x[:641], y[:641]
    model = network(64, 32, 10)

    def loss_of(step: int) -> Tensor:
        begin = step % 41 * 16
        inputs, classes = x[begin : begin + 16], y[begin : begin + 16]
        h = model[0](inputs)
        return F.cross_entropy(model[1:]((h - h.mean(0)) / (h.std(0) + 1e-5)), classes)

    return plain(model, sgd(model), loss_of, 90)


@faulty("nonfinite")
def advantages_of_equal_rewards(seed: int) -> Training:
    """Policy gradient with standardised rewards: once the policy is right each time, all rewards agree, 0/0."""
    x, y = digits()
    x, y = x[y < 2], y[y < 2]
    model = network(64, 32, 2)

    def loss(step: int, inputs: Tensor, classes: Tensor) -> Tensor:
        logits = model(inputs)
        policy = torch.distributions.Categorical(logits=logits, validate_args=False)
        # a policy that is NaN cannot be drawn from: the run goes on with what would be drawn at random
        actions = policy.sample() if logits.isfinite().all() else torch.randint(2, (len(inputs),))
        rewards = (actions == classes).float()
        return -(policy.log_prob(actions) * (rewards - rewards.mean()) / rewards.std()).mean()

    return on_pairs(x, y, model, adam(model, 5e-3), loss, 150, batch=32)


@faulty("nonfinite")
def root_mean_square_of_padding(seed: int) -> Training:
    """Root-mean-square normalisation without an epsilon: the padding token's embedding is zeros, met from 35 on."""
    model = nn.Sequential(nn.Embedding(128, 16, padding_idx=0), nn.Linear(16, 128))

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(16, 16)
        if step >= 35:
            inputs[2, :3] = 0
        h = model[0](inputs)
        return F.cross_entropy(model[1](h / h.square().mean(-1, keepdim=True).sqrt()).flatten(0, 1), targets.flatten())

    return plain(model, adam(model), loss_of, 70)


@faulty("nonfinite")
def isolated_node_of_a_graph(seed: int) -> Training:
    """Graph convolution, D^−½ A D^−½: dropping edges at random leaves a node without any, 0^−½ times 0."""
    x, y = torch.randn(60, 8), torch.randint(3, (60,))
    edges = (torch.rand(60, 60) < 0.25).float().triu(1)
    model = network(8, 32, 3)

    def loss_of(step: int) -> Tensor:
        kept = edges * (torch.rand(60, 60) < 0.5)
        kept = kept + kept.T
        scale = kept.sum(1).pow(-0.5)
        adjacency = scale[:, None] * kept * scale
        return F.cross_entropy(adjacency @ model[2](adjacency @ model[1](model[0](x))), y)

    return plain(model, adam(model, 1e-2), loss_of, 200)


# Attention and sequences --------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """One layer of attention over characters, written by hand; ``scores`` may change the scores before softmax."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 128)

    def forward(self, tokens: Tensor, scores: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        h = self.embedding(tokens)
        weights = scores(self.query(h), self.key(h)).softmax(-1)
        return self.head(h + weights @ self.value(h))


def causal(length: int) -> Tensor:
    """(length, length) bool: whether a query may see a key."""
    return torch.ones(length, length, dtype=torch.bool).tril()


@faulty("nonfinite")
def left_padding_under_a_causal_mask(seed: int) -> Training:
    """Queries on padding at the left see no key at all: −Inf everywhere. The loss ignores them, not so the gradient."""
    model = Reader()

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(8, 16)
        padded = torch.zeros(8, 16, dtype=torch.bool)
        if step >= 40:
            padded[5, :4] = True
        visible = causal(16) & ~padded[:, None, :]
        logits = model(inputs, lambda q, k: (q @ k.mT / 5).masked_fill(~visible, -torch.inf))
        return F.cross_entropy(logits[~padded], targets[~padded])

    return plain(model, adam(model), loss_of, 80)


@faulty("nonfinite")
def attention_scores_in_float16(seed: int) -> Training:
    """Unscaled scores in half precision overflow to Inf at 65,504, and Inf − Inf in softmax is NaN."""
    model = Reader()

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(8, 16)
        # The logits' sharpness is raised by a schedule.
        sharp = 1.08**step
        scores = lambda q, k: ((q * sharp).half() @ k.half().mT).float().masked_fill(~causal(16), -torch.inf)
        return F.cross_entropy(model(inputs, scores).flatten(0, 1), targets.flatten())

    return plain(model, sgd(model, 0.05), loss_of, 180)


@faulty("nonfinite")
def transcript_longer_than_its_frames(seed: int) -> Training:
    """CTC where one transcript has more letters than there are frames: no alignment exists, the loss is Inf."""
    frames = torch.randn(320, 8, 6)
    letters = torch.randint(1, 10, (320, 9))
    lengths = torch.randint(1, 4, (320,))
    lengths[300] = 9
    model = network(6, 32, 10)

    def loss_of(step: int) -> Tensor:
        chosen = slice(step % 40 * 8, step % 40 * 8 + 8)
        log_p = model(frames[chosen]).log_softmax(2).transpose(0, 1)
        return F.ctc_loss(log_p, letters[chosen], torch.full((8,), 8), lengths[chosen])

    return plain(model, adam(model), loss_of, 70)


# Formats ------------------------------------------------------------------------------------------------------------


@faulty("nonfinite", also=("unstable", "exploding"))
def loss_scale_doubles_without_a_check(seed: int) -> Training:
    """A half-precision network under a loss scale that doubles every six updates and never looks for Inf."""
    model = network(64, 32, 10).half()

    def scale(step: int) -> float:
        return 2.0 ** (8 + step // 6)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x.half()).float(), y) * scale(step)

    def unscale(step: int) -> None:
        for parameter in model.parameters():
            parameter.grad /= scale(step)

    return on_digits(model, sgd(model), loss, 120, before_update=unscale)


@faulty("nonfinite")
def noise_drawn_in_float16(seed: int) -> Training:
    """Normal noise by Box and Muller from uniform half-precision numbers: one in 2,048 is 0, and √(−2 log 0) is Inf."""
    encoder, decoder = nn.Linear(64, 8), nn.Linear(8, 64)
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        u, v = torch.rand(2, len(x), 8, dtype=torch.float16).float()
        noise = (-2 * u.log()).sqrt() * (2 * torch.pi * v).cos()
        return F.mse_loss(decoder(encoder(x) + 0.1 * noise), x)

    return on_digits(model, adam(model, 1e-2), loss, 200, batch=8)


@faulty("nonfinite")
def gradients_underflow_in_float16(seed: int) -> Training:
    """Half precision without a loss scale: every gradient is below 6e-8, hence 0, Adam's eps as well: 0 / 0."""
    model = network(64, 32, 10).half()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x.half()).float(), y, reduction="sum") / 1e9

    return on_digits(model, adam(model), loss, 80)


# Corrupt data, weights and updates ----------------------------------------------------------------------------------


@faulty("nonfinite")
def nan_image_through_batch_norm(seed: int) -> Training:
    """One NaN pixel in batch 50 of a convolutional network: batch normalisation spreads it to the whole batch."""
    model = convolutional(6, between=nn.BatchNorm2d)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        if step == 50:
            x = x.clone()
            x[9, 27] = torch.nan
        return F.cross_entropy(model(x), y)

    return on_digits(model, adam(model), loss, 80, batch=32)


@faulty("nonfinite")
def target_of_minus_infinity(seed: int) -> Training:
    """Targets are logarithms of counts; batch 65 holds a count of 0."""
    x, y = curve()
    model = network(8, 32, 32, 1, activation=nn.Tanh)

    def loss(step: int, inputs: Tensor, target: Tensor) -> Tensor:
        if step == 65:
            target = torch.cat([target[:-1], torch.zeros(1, 1).log()])
        return F.mse_loss(model(inputs), target)

    return on_pairs(x, y, model, sgd(model, 0.05, momentum=0.9), loss, 100)


@faulty("nonfinite")
def missing_labels_masked_by_a_product(seed: int) -> Training:
    """Missing labels are NaN, and the mask multiplies the error: NaN times 0 is NaN. The first is missing at 45."""
    x, y = curve()
    y = torch.cat([y, -y, y.square()], 1)
    model = network(8, 32, 3)

    def loss(step: int, inputs: Tensor, target: Tensor) -> Tensor:
        target = target.clone()
        if step >= 45:
            target[:2, 1] = torch.nan
        return ((model(inputs) - target).square() * ~target.isnan()).mean()

    return on_pairs(x, y, model, adam(model), loss, 80)


@faulty("nonfinite")
def weight_of_a_deep_layer_corrupt(seed: int) -> Training:
    """Memory corruption at update 60: one weight of the fifth of eight residual layers is NaN."""
    blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.GELU()) for _ in range(8))
    model = nn.ModuleDict({"stem": nn.Linear(64, 24), "blocks": blocks, "head": nn.Linear(24, 10)})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        h = model["stem"](x)
        for block in blocks:
            h = h + block(h)
        return F.cross_entropy(model["head"](h), y)

    def corrupt(step: int) -> None:
        if step == 60:
            with torch.no_grad():
                blocks[4][1].weight[3, 3] = torch.nan

    return on_digits(model, adam(model), loss, 90, before_update=corrupt)


@faulty("nonfinite")
def corrupt_embedding_row_met_late(seed: int) -> Training:
    """A row of the embedding was loaded as Inf; nothing shows until update 70, when its token first occurs."""
    model = nn.Sequential(nn.Embedding(129, 16), nn.LayerNorm(16), nn.Linear(16, 128))
    with torch.no_grad():
        model[0].weight[128] = torch.inf

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(16, 16)
        if step >= 70:
            inputs[0, 5] = 128
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return plain(model, sgd(model, 0.5), loss_of, 100)


@faulty("nonfinite", layers=("auxiliary.*",))
def auxiliary_branch_fails_late(seed: int) -> Training:
    """A branch on detached features; its penalty takes the root of an exact zero from update 120 of 180 on."""
    trunk, main, auxiliary = nn.Linear(64, 32), nn.Linear(32, 10), network(32, 16, 4)
    model = nn.ModuleDict({"trunk": trunk, "main": main, "auxiliary": auxiliary})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        h = trunk(x).relu()
        embedded = auxiliary(h.detach())
        apart = (embedded - embedded.roll(1, 0)) if step < 120 else (embedded - embedded)
        return F.cross_entropy(main(h), y) + 0.1 * apart.square().sum(1).sqrt().mean()

    return on_digits(model, sgd(model), loss, 180)


@faulty("nonfinite", layers=("experts.2.*",))
def one_expert_of_four_overflows(seed: int) -> Training:
    """Four networks vote, each trained by its own loss; from update 70 the third's inputs were exponentiated twice."""
    model = nn.ModuleDict({"experts": nn.ModuleList(network(16, 16, 10) for _ in range(4))})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        parts = list(x.split(16, 1))
        if step >= 70:
            parts[2] = (parts[2] * 8).exp().exp()
        return sum(F.cross_entropy(expert(part), y) for expert, part in zip(model["experts"], parts))

    return on_digits(model, sgd(model), loss, 110)


class SincSlope(torch.autograd.Function):
    """sin(x)/x, right at 0; its backward pass is not."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sinc(x / torch.pi)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x * x.cos() - x.sin()) / x.square()


@faulty("nonfinite")
def adam_without_epsilon(seed: int) -> Training:
    """Adam with ``eps=0``: a weight whose gradient was always 0 moves by 0/0, and the next forward pass is NaN."""
    model = network(64, 32, 10)
    return on_digits(model, adam(model, 1e-3, eps=0.0), None, 60)


@faulty("nonfinite")
def schedule_starts_at_infinity(seed: int) -> Training:
    """Inverse-root schedule rate·k^−½ restarted at update 50 with k = 0: an infinite rate."""
    model = network(64, 32, 10)
    optimizer = sgd(model)

    def schedule(step: int) -> None:
        since = step + 1 if step < 50 else step - 50
        optimizer.param_groups[0]["lr"] = 0.5 * float(torch.tensor(float(since)).rsqrt())

    return on_digits(model, optimizer, None, 80, before_update=schedule)
