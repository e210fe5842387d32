"""NaN by arithmetic: the optimizer's own, an argument's, a target's, a weight's, a derivative's, a format's."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import windows
from benchmarks.detection.others.parts import accuracy_of, adam, explained, network, sample, scored, sgd
from benchmarks.detection.program import Observe, Pair, Training, plain


def on_digits(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int, Tensor, Tensor], Tensor],
    steps: int = 150,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Training:
    """Train with a loss of (number, inputs, classes); the score is the accuracy on held-out digits."""

    def loss_of(step: int) -> Tensor:
        return loss(step, *sample())

    return scored(plain(model, optimizer, loss_of, steps), accuracy_of(forward or model))


def half_precision_table(epsilon: float) -> Training:
    """Embeddings of bytes in float16, of which only those that occur get a gradient; Adam with ``epsilon``."""
    model = nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), nn.Linear(64, 128)).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, eps=epsilon)

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(64, 4)
        return F.cross_entropy(model(inputs).float(), targets[:, -1])

    def score() -> Tensor:
        inputs, targets = windows(400, 4)
        return -F.cross_entropy(model(inputs).float(), targets[:, -1])

    return scored(plain(model, optimizer, loss_of, 200), score)


HALF = Pair("float16 under Adam", reaches=-3.8)


@HALF.sick("nonfinite", cause="Adam's epsilon of 1e-8 is zero in float16: its update is 0/0 where the gradient is zero")
def epsilon_rounds_to_zero_in_float16(seed: int) -> Training:
    """Rows that do not occur have a gradient of zero, and Adam divides it by the root of zero plus zero."""
    return half_precision_table(1e-8)


@HALF.healthy
def epsilon_large_enough_for_float16(seed: int) -> Training:
    """An epsilon of 1e-4, which float16 can hold."""
    return half_precision_table(1e-4)


class LayerwiseRates(torch.optim.Optimizer):
    """LARS: the gradient of each tensor is brought to a share of the tensor's own norm."""

    def __init__(self, parameters, lr: float, epsilon: float) -> None:
        super().__init__(parameters, {"lr": lr, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    share = parameter.norm().clamp_min(0.1) / (parameter.grad.norm() + group["epsilon"])
                    parameter.sub_(group["lr"] * share * parameter.grad)


def layerwise(epsilon: float) -> Training:
    """A network whose last layer starts at zero, so that the first gradient below it is exactly zero."""
    model = network(64, 48, 48, 10)
    nn.init.zeros_(model[4].weight)
    optimizer = LayerwiseRates(model.parameters(), 0.03, epsilon)
    return on_digits(model, optimizer, lambda step, x, y: F.cross_entropy(model(x), y), 300)


LAYERWISE = Pair("layerwise rates", reaches=0.6)


@LAYERWISE.sick(
    "nonfinite", layers=("0.*", "2.*"), cause="the optimizer divides by the norm of a gradient that is zero"
)
def layerwise_rate_of_a_zero_gradient(seed: int) -> Training:
    """No epsilon: where the head of zeros sends back nothing, the optimizer's ratio is 0/0."""
    return layerwise(0.0)


@LAYERWISE.healthy
def layerwise_rate_with_epsilon(seed: int) -> Training:
    """The same optimizer with an epsilon of 1e-6."""
    return layerwise(1e-6)


def normalised_by_its_total(epsilon: float) -> Training:
    """A loop that divides all gradients by their total norm; the 60th batch has nothing to learn from."""
    model = network(8, 32, 1)
    x = torch.randn(512, 8)
    y = torch.sin(x[:, :1] * 2)
    optimizer = sgd(model, 0.1)

    def step(number: int, observe: Observe) -> None:
        chosen = torch.randint(len(x), (64,))
        is_valid = torch.zeros(64, 1) if number == 60 else torch.ones(64, 1)
        loss = ((model(x[chosen]) - y[chosen]).square() * is_valid).mean()
        optimizer.zero_grad()
        observe(loss)
        loss.backward()
        total = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        for parameter in model.parameters():
            parameter.grad.div_(total + epsilon)
        optimizer.step()

    return scored(Training(model, [optimizer], 300, step), explained(model, x, y))


TOTAL = Pair("gradients over their norm", reaches=0.4)


@TOTAL.sick("nonfinite", cause="gradients are divided by their total norm, which one batch makes zero")
def gradient_over_a_norm_of_zero(seed: int) -> Training:
    """One batch has no valid item, its gradient is zero, and the normalised one is 0/0: weights become NaN."""
    return normalised_by_its_total(0.0)


@TOTAL.healthy
def gradient_over_its_norm(seed: int) -> Training:
    """The same with an epsilon beside the norm."""
    return normalised_by_its_total(1e-8)


class Masked(nn.Module):
    """Tokens attend to those that are no padding; the mask is an argument."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.token = nn.Linear(8, width)
        self.joint, self.head = nn.Linear(width, 3 * width), nn.Linear(width, 10)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = torch.tanh(self.token(x.view(-1, 8, 8)) + torch.linspace(-1, 1, 8)[:, None])
        query, key, value = self.joint(h).chunk(3, -1)
        scores = query @ key.transpose(-1, -2) / h.shape[-1] ** 0.5 + mask[:, None, :]
        return self.head((h + scores.softmax(-1) @ value).mean(1))


def masked(make_mask: Callable[[Tensor], Tensor]) -> Training:
    """Rows of digits with padding at the end, of a random length from batch to batch; from batch 40 on."""
    model = Masked()

    def keep(step: int, count: int) -> Tensor:
        lengths = torch.randint(6, 9, (count, 1)) if step >= 40 else torch.full((count, 1), 8)
        return (torch.arange(8) < lengths).float()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        kept = keep(step, len(x))
        mask = make_mask(kept) if step >= 40 else torch.zeros_like(kept)
        return F.cross_entropy(model(x, mask), y)

    return on_digits(model, adam(model, 5e-3), loss, 200, lambda x: model(x, torch.zeros(len(x), 8)))


MASK = Pair("mask of padding", reaches=0.5)


@MASK.sick("nonfinite", cause="the mask, an argument of the model, holds NaN: zero times minus infinity")
def mask_of_zero_times_infinity(seed: int) -> Training:
    """``(1 − keep) · −inf``: where a token is kept the product is 0 · ∞, which is NaN."""
    return masked(lambda kept: (1 - kept) * -torch.inf)


@MASK.healthy
def mask_filled_with_infinity(seed: int) -> Training:
    """``masked_fill`` with −inf, which leaves kept tokens at zero."""
    return masked(lambda kept: torch.zeros_like(kept).masked_fill(kept == 0, -torch.inf))


def sensors(is_filtered: bool) -> Training:
    """Regression of a sensor's value; from item 300 on, one reading in 200 is missing and stored as NaN."""
    x = torch.randn(600, 6)
    y = torch.sin(x @ torch.randn(6, 1) / 6**0.5)[:, 0]
    recorded = y.clone()
    recorded[300::200] = torch.nan
    model = network(6, 32, 32, 1)

    def loss_of(step: int) -> Tensor:
        chosen = torch.arange(step * 8, step * 8 + 32) % 600
        target = recorded[chosen]
        output = model(x[chosen])[:, 0]
        if is_filtered:
            is_there = target.isfinite()
            output, target = output[is_there], target[is_there]
        return F.mse_loss(output, target)

    return scored(plain(model, adam(model, 5e-3), loss_of, 200), explained(lambda rows: model(rows)[:, 0], x, y))


SENSORS = Pair("readings of a sensor", reaches=0.7)


@SENSORS.sick("nonfinite", cause="a target is NaN: a missing reading")
def target_missing(seed: int) -> Training:
    """A missing reading reaches the loss as a target of NaN."""
    return sensors(False)


@SENSORS.healthy
def targets_that_are_there(seed: int) -> Training:
    """Missing readings are left out."""
    return sensors(True)


def weighted(least: float) -> Training:
    """Classes weighed by the inverse of their count in the batch; batches are small, and class 9 is rare."""
    model = network(64, 48, 10)

    def loss_of(step: int) -> Tensor:
        x, y = sample(64)
        if step == 30:
            x, y = x[y != 9], y[y != 9]
        counts = torch.bincount(y, minlength=10).float()
        weights = (1 / counts.clamp_min(least)) * (counts / counts.clamp_min(least))
        return (weights[None] * F.one_hot(y, 10) * -model(x).log_softmax(1)).sum() / (counts > 0).sum()

    return scored(plain(model, adam(model, 3e-3), loss_of, 150), accuracy_of(model))


WEIGHTS = Pair("weights of the classes", reaches=0.75)


@WEIGHTS.sick("nonfinite", cause="a weight in the loss is NaN: one over the count of a class that the batch lacks")
def class_weight_of_an_absent_class(seed: int) -> Training:
    """One batch lacks a class; its weight is 0/0, and NaN times zero stays NaN."""
    return weighted(0.0)


@WEIGHTS.healthy
def class_weight_clamped(seed: int) -> Training:
    """The same with counts of at least one."""
    return weighted(1.0)


def rotation(six: Tensor) -> Tensor:
    """Return the rotation matrix of six numbers by Gram–Schmidt (Zhou et al. 2019)."""
    first = F.normalize(six[:, :3], dim=1)
    second = F.normalize(six[:, 3:] - (first * six[:, 3:]).sum(1, keepdim=True) * first, dim=1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=2)


def drawn_rotations(batch: int, spread: float) -> Tensor:
    return rotation(torch.eye(3)[:, :2].T.flatten() + spread * torch.randn(batch, 6))


class Pose(nn.Module):
    """Tells a rotation from three points; its last layer starts at zero, with the identity for its bias."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body, self.outlet = network(9, 64, 64), nn.Linear(64, outputs)
        nn.init.zeros_(self.outlet.weight)
        identity = torch.eye(3) if outputs == 9 else torch.eye(3)[:, :2].T
        with torch.no_grad():
            self.outlet.bias.copy_(identity.flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.outlet(F.relu(self.body(x)))


def pose(outputs: int, to_matrix: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> Training:
    """Learn the rotation of three points; the score is the share of its variance explained."""
    model = Pose(outputs)
    points = torch.randn(3, 3)

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        truth = drawn_rotations(batch, 0.5)
        truth[: batch // 8] = torch.eye(3)
        return (truth @ points).flatten(1), truth

    def loss_of(step: int) -> Tensor:
        x, truth = draw(64)
        return loss(to_matrix(model(x)), truth)

    x, truth = draw(400)
    return scored(plain(model, adam(model), loss_of, 200), explained(lambda rows: to_matrix(model(rows)), x, truth))


def by_svd(nine: Tensor) -> Tensor:
    """Return the nearest orthogonal matrix, U Vᵀ; ``svd`` raises on NaN, hence the guard."""
    left, _, right = torch.linalg.svd(nine.nan_to_num().view(-1, 3, 3))
    return left @ right


def by_iteration(nine: Tensor) -> Tensor:
    """Return the same by Newton and Schulz, which needs no singular vectors."""
    matrix = nine.view(-1, 3, 3)
    matrix = matrix / torch.linalg.matrix_norm(matrix, dim=(1, 2), keepdim=True)
    for _ in range(12):
        matrix = 1.5 * matrix - 0.5 * matrix @ matrix.transpose(1, 2) @ matrix
    return matrix


def squares(output: Tensor, truth: Tensor) -> Tensor:
    return (output - truth).square().sum((1, 2)).mean()


def geodesic(output: Tensor, truth: Tensor, margin: float) -> Tensor:
    """Return the mean angle between two rotations."""
    cosine = ((output * truth).sum((1, 2)) - 1) / 2
    return torch.acos(cosine.clamp(-1 + margin, 1 - margin)).mean()


POSES = Pair("rotations", reaches=0.5)


@POSES.sick("nonfinite", cause="the derivative of acos at 1 is infinite: predicted and true rotation coincide")
def geodesic_angle_of_zero(seed: int) -> Training:
    """The network starts at the identity, which is the truth of some items: acos(1) has no derivative."""
    return pose(6, rotation, lambda output, truth: geodesic(output, truth, 0.0))


@POSES.healthy
def geodesic_angle_clamped(seed: int) -> Training:
    """The same angle with a cosine that stays a millionth away from 1."""
    return pose(6, rotation, lambda output, truth: geodesic(output, truth, 1e-5))


@POSES.sick(
    "nonfinite", cause="the derivative of singular vectors divides by differences of singular values that are equal"
)
def singular_values_equal(seed: int) -> Training:
    """Nine numbers that start at the identity: three equal singular values."""
    return pose(9, by_svd, squares)


@POSES.healthy
def nearest_rotation_by_iteration(seed: int) -> Training:
    """The nearest orthogonal matrix by Newton and Schulz."""
    return pose(9, by_iteration, squares)


def gamma_corrected(offset: float) -> Training:
    """A network that paints digits from noisy copies, through a gamma curve; a mask hides the picture's edge."""
    model = network(64, 48, 64)
    is_shown = F.pad(torch.ones(8, 6), (1, 1)).flatten()

    def paint(x: Tensor) -> Tensor:
        return (model(x).sigmoid() * is_shown + offset).pow(1 / 2.2)

    def loss_of(step: int) -> Tensor:
        x, _ = sample()
        return F.mse_loss(paint(x + 0.2 * torch.randn_like(x)), x * is_shown)

    x, _ = sample(500)
    return scored(plain(model, adam(model, 3e-3), loss_of, 250), explained(paint, x, x * is_shown))


GAMMA = Pair("gamma correction", reaches=0.4)


@GAMMA.sick("nonfinite", cause="the derivative of a power below 1 at exactly 0 is infinite")
def gamma_curve_at_black(seed: int) -> Training:
    """The mask makes exact zeros, at which x^(1/2.2) is infinitely steep: ∞ · 0."""
    return gamma_corrected(0.0)


@GAMMA.healthy
def gamma_curve_above_black(seed: int) -> Training:
    """The same curve, entered at 1e-4 or more."""
    return gamma_corrected(1e-4)


class Summed(nn.Module):
    """Squares of 64 features, summed, under autocast; then a network."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.mix, self.head = nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast("cpu", dtype):
            h = self.inlet(x)
            power = (h * h * h) * 16
            normed = power / power.norm(dim=1, keepdim=True).clamp_min(1e-3)
            return self.head(F.relu(self.mix(4 * normed))).float()


def autocast(dtype: torch.dtype, scale: float = 16.0) -> Training:
    """Digits of 0 to 16, whose cubes leave the range of float16."""
    model = Summed()
    return on_digits(
        model,
        adam(model, 3e-3),
        lambda step, x, y: F.cross_entropy(model(scale * x, dtype), y),
        150,
        lambda x: model(scale * x, dtype),
    )


AUTOCAST = Pair("cubes under autocast", reaches=0.6)


@AUTOCAST.sick("nonfinite", cause="activations above 65,504 overflow float16 in the forward pass under autocast")
def cubes_overflow_float16(seed: int) -> Training:
    """Cubes of features of 20 and more, times 16, are beyond 65,504: Inf, and Inf over Inf."""
    return autocast(torch.float16)


@AUTOCAST.healthy
def cubes_in_brain_floats(seed: int) -> Training:
    """The same in bfloat16, whose range is float32's."""
    return autocast(torch.bfloat16)


def bounded_boxes(least: float) -> Training:
    """A grid of 16 cells, one image in three with an object; the box loss is the mean over the cells with one."""
    model = network(64, 48, 48, 16)
    fixed = functools.partial(torch.randn, 64)
    pattern = fixed()

    def draw(step: int, batch: int = 16) -> tuple[Tensor, Tensor]:
        has_object = (torch.rand(batch) < (0.0 if step == 35 else 0.35)).float()
        cell = torch.randint(16, (batch,))
        truth = F.one_hot(cell, 16).float() * has_object[:, None]
        image = 0.3 * torch.randn(batch, 64) + truth.repeat_interleave(4, 1) * pattern
        return image, truth

    def loss_of(step: int) -> Tensor:
        x, truth = draw(step)
        scores = model(x)
        probability = scores.sigmoid()
        weight = torch.where(truth > 0, 0.75 * (1 - probability) ** 2, 0.25 * probability**2)
        focal = (weight * F.binary_cross_entropy_with_logits(scores, truth, reduction="none")).sum()
        return focal / truth.sum().clamp_min(least)

    x, truth = draw(0, 600)
    has_object = truth.sum(1) > 0

    def score() -> Tensor:
        return (model(x[has_object]).argmax(1) == truth[has_object].argmax(1)).float().mean()

    def finite_score() -> Tensor:
        return score() + 0 * model(x).sum()

    return scored(plain(model, adam(model, 3e-3), loss_of, 300), finite_score)


BOXES = Pair("detector of rare objects", reaches=0.7)


@BOXES.sick("nonfinite", cause="the focal loss is divided by the number of objects, and one batch has none")
def detector_divides_by_no_objects(seed: int) -> Training:
    """A batch without objects: the loss is a sum over zero."""
    return bounded_boxes(0.0)


@BOXES.healthy
def detector_divides_by_one_at_least(seed: int) -> Training:
    """The same focal loss over the number of objects or one; its size changes with every batch."""
    return bounded_boxes(1.0)
