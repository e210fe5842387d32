"""Faults of weights and number formats: corrupt parameters and updates, divergence, overflow, loss scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import windows
from benchmarks.detection.program import Training, plain
from benchmarks.origins.parts import (
    adam,
    after_update,
    classify,
    images,
    named,
    network,
    on_digits,
    on_features,
    regress,
    row_since,
    sgd,
)
from benchmarks.origins.program import origin

# Corrupt weights ------------------------------------------------------------------------------------------------------


class Reads(nn.Module):
    """Characters with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(128, 16), nn.Embedding(32, 16)
        self.body, self.head = network(16, 32, 16), nn.Linear(16, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])
        return self.head(self.body(self.token(tokens) + self.position(positions)))


@origin("position", "forward", "weight", "embedding", weight="position.weight")
def positions_grown_without_being_set(seed: int) -> Training:
    """The table of positions was enlarged by uninitialised memory; longer texts read it from step 12 on."""
    model = Reads()
    with torch.no_grad():
        model.position.weight[16:] = torch.nan

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(8, 20 if step >= 12 else 12)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return plain(model, sgd(model, 0.1), loss_of, 20)


class Unit(nn.Module):
    """Converts to pascal."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(101_325.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@origin("decoder.unit", "forward", "weight", "mul", weight="decoder.unit.scale")
def checkpoint_saved_in_float16(seed: int) -> Training:
    """The run resumes at step 10 from a checkpoint in float16, where a scale of 101,325 is Inf."""
    model = named(encoder=network(8, 32, 16), decoder=named(out=nn.Linear(16, 1), unit=Unit()))
    optimizer = sgd(model)
    in_half = lambda: {name: value.half() for name, value in model.state_dict().items()}
    after_update(optimizer, 9, lambda: model.load_state_dict(in_half()))
    return on_features(model, lambda _, x, y: F.mse_loss(model(x) / 101_325, y), optimizer=optimizer)


@origin("recurrent", "forward", "weight", "gru", weight="recurrent.weight_hh_l0")
def recurrent_weight_with_a_flipped_bit(seed: int) -> Training:
    """A bit of a recurrent weight flips after the update of step 8, and the weight is Inf."""
    model = nn.ModuleDict({"recurrent": nn.GRU(8, 16, batch_first=True), "head": nn.Linear(16, 10)})
    optimizer = sgd(model)
    after_update(optimizer, 8, lambda: model["recurrent"].weight_hh_l0.data[3, 4].fill_(torch.inf))

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        states, _ = model["recurrent"](x.unflatten(1, (8, 8)))
        return F.cross_entropy(model["head"](states[:, -1]), y)

    return on_digits(model, loss, optimizer=optimizer, steps=15)


@origin("stem", "forward", "weight", "linear", weight="stem.weight")
def second_beta_scheduled_to_one(seed: int) -> Training:
    """Adam's β₂ reaches 1 at step 14: the correction 1 − β₂ᵗ is 0, and weights of pixels that are always 0 turn NaN."""
    model = named(stem=nn.Linear(64, 32), activation=nn.ReLU(), head=nn.Linear(32, 10))
    optimizer = adam(model)

    def schedule(step: int) -> None:
        optimizer.param_groups[0]["betas"] = (0.9, min(0.999, 0.93 + 0.005 * step) if step < 14 else 1.0)

    return classify(model, optimizer=optimizer, before_update=schedule)


@origin("blocks.0.linear", "forward", "weight", "linear", weight="blocks.0.linear.weight")
def average_restarted_with_a_count_of_zero(seed: int) -> Training:
    """Averaged weights are restarted after step 9 with a count and a sum of 0, and 0/0 is copied into the model."""
    block = lambda: named(linear=nn.Linear(64, 64), activation=nn.ReLU())
    model = named(blocks=nn.Sequential(block(), block()), head=nn.Linear(64, 10))
    optimizer = sgd(model)
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    count, updates = torch.zeros(()), []

    @torch.no_grad()
    def average(*_) -> None:
        updates.append(None)
        if len(updates) == 10:
            count.zero_()
            for total in sums:
                total.zero_()
        else:
            count.add_(1)
            for total, parameter in zip(sums, model.parameters()):
                total.add_(parameter)
        if len(updates) % 5 == 0:
            for total, parameter in zip(sums, model.parameters()):
                parameter.copy_(total / count)

    optimizer.register_step_post_hook(average)
    return classify(model, optimizer=optimizer, steps=15)


@origin("stages.1.norm", "forward", "weight", "batch_norm", weight="stages.1.norm.running_mean")
def frozen_statistics_that_were_never_finite(seed: int) -> Training:
    """A running mean was loaded as NaN; it is used only once the backbone is frozen, at step 10."""
    stage = lambda inner: named(
        convolution=nn.Conv2d(inner, 6, 3, padding=1), norm=nn.BatchNorm2d(6), activation=nn.ReLU(inplace=True)
    )
    stages = nn.ModuleList([stage(1), stage(6)])
    head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))
    model = nn.ModuleDict({"stages": stages, "head": head})
    stages[1].norm.running_mean[2] = torch.nan

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        if step == 10:
            stages.eval()
        x = images(x)
        for stage in stages:
            x = stage(x)
        return F.cross_entropy(head(x), y)

    return on_digits(model, loss, steps=20)


# Divergence and overflow ----------------------------------------------------------------------------------------------


@origin("", "loss", "diverged", "mse_loss")
def step_size_beyond_stability(seed: int) -> Training:
    """Linear regression with a step size above 2/λ: the error grows tenfold a step, until its square overflows."""
    model = named(linear=nn.Linear(8, 1))
    return regress(model, optimizer=sgd(model, 6.0), steps=60)


@origin("out", "forward", "diverged", "linear")
def weights_grow_under_negative_decay(seed: int) -> Training:
    """Decay of the wrong sign grows the last layer's weights by half a step, until their products overflow."""
    model = named(body=nn.Linear(8, 32), activation=nn.ReLU(), out=nn.Linear(32, 1))
    # the body is pretrained and frozen
    model.body.requires_grad_(False)
    optimizer = sgd(model, 0.1)
    optimizer.register_step_post_hook(lambda *_: model.out.weight.data.mul_(1.5))
    # one item at a time: a mean over several would overflow before the layer does
    loss = lambda step, x, y: F.binary_cross_entropy_with_logits(model(10 * x), (y > 0).float())
    return on_features(model, loss, batch=1, optimizer=optimizer, steps=230)


class SumPool(nn.Module):
    """Sum over all positions, in the format that comes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3))


@origin("encoder.pool", "forward", "overflow", "sum")
def sum_pooling_under_autocast(seed: int) -> Training:
    """Under autocast a sum over 64 positions of about 5,000 leaves float16's range; every single one was within it."""
    encoder = named(convolution=nn.Conv2d(1, 8, 1), activation=nn.ReLU(), pool=SumPool(), norm=nn.LayerNorm(8))
    model = named(encoder=encoder, head=nn.Linear(8, 10))
    with torch.no_grad():
        encoder.convolution.weight.fill_(0.5).add_(0.1 * torch.rand(8, 1, 1, 1))

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(images(row_since(11, 3, 10_000.0)(step, x)))
        return F.cross_entropy(logits.float(), y)

    return on_digits(model, loss)


@origin("stem.convolution", "forward", "overflow", "convolution")
def missing_pixels_marked_by_the_largest_float(seed: int) -> Training:
    """Missing pixels hold float32's largest number, 3.4e38; any sum of a few of them in a convolution is Inf."""
    stem = named(convolution=nn.Conv2d(1, 6, 3, padding=1), norm=nn.BatchNorm2d(6), activation=nn.ReLU())
    model = named(stem=stem, head=nn.Sequential(nn.Flatten(), nn.Linear(384, 10)))
    with torch.no_grad():
        stem.convolution.weight.abs_().add_(0.2)
    return classify(model, lambda step, x: images(row_since(13, 17, torch.finfo(torch.float32).max)(step, x)))


@origin("", "loss", "loss scale", "mul")
def loss_scale_that_only_ever_grows(seed: int) -> Training:
    """A loss scale of 2¹⁰⁰ grows fourfold a step in float32 and is divided out again; near 2¹²⁸ the loss is Inf."""
    model = network(64, 32, 10)
    scale = lambda step: 2.0 ** (100 + 2 * step)

    def unscale(step: int) -> None:
        for parameter in model.parameters():
            parameter.grad /= scale(step)

    loss = lambda step, x, y: F.cross_entropy(model(x), y) * torch.tensor(scale(step)).clamp(max=3e38)
    return on_digits(model, loss, before_update=unscale)


@origin("head", "backward", "loss scale", "linear")
def half_precision_gradient_of_a_wide_sum(seed: int) -> Training:
    """Under a loss scale of 2¹⁸ each logit's gradient fits float16; the sum over the batch for a weight does not."""
    model = named(body=nn.Linear(64, 32), activation=nn.ReLU(), gain=nn.Hardtanh(0, 1e4), head=nn.Linear(32, 10)).half()
    exponent = lambda step: 10 if step < 10 else 18

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        # 40 times brighter: the body's outputs are in the tens
        logits = model((40 * x).half()).float()
        return F.cross_entropy(logits, torch.zeros_like(y)) * 2.0 ** exponent(step)

    def unscale(step: int) -> None:
        for parameter in model.parameters():
            parameter.grad /= 2.0 ** exponent(step)

    return on_digits(model, loss, before_update=unscale, optimizer=sgd(model, 1e-4), batch=64)
