"""Updates that never happen, or not as they should: and the runs that look like them and are well."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.others.parts import accuracy_of, adam, classifier, explained, network, sample, scored, sgd
from benchmarks.detection.program import Observe, Pair, Training, plain


def trained(model: nn.Module, rate: float = 5e-3, steps: int = 150) -> nn.Module:
    """Train on digits, as a checkpoint would have been."""
    optimizer = adam(model, rate)
    for _ in range(steps):
        x, y = sample()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model


class Classifier(nn.Module):
    """An encoder and a head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def narrow_encoder() -> nn.Sequential:
    """Return an encoder to four features, which random weights do not make good ones."""
    return network(64, 32, 16, 4, activation=nn.Tanh)


HEAD = Pair("encoder and head", reaches=0.75)


@HEAD.sick("stalled", layers=("encoder.*",), cause="the optimizer was given the head's parameters alone")
def encoder_that_no_optimizer_owns(seed: int) -> Training:
    """``model.head.parameters()`` in place of ``model.parameters()``: the encoder's gradients go nowhere."""
    model = Classifier(narrow_encoder(), 4)
    return classifier(model, adam(model.head, 1e-2), 200)


@HEAD.healthy
def encoder_pretrained_and_frozen(seed: int) -> Training:
    """A pretrained encoder without gradients, a new head on it."""
    encoder = trained(nn.Sequential(narrow_encoder(), nn.Linear(4, 10)))[0]
    model = Classifier(encoder.requires_grad_(False), 4)
    return classifier(model, adam(model.head, 3e-2), 200)


@HEAD.healthy
def encoder_trained_with_its_head(seed: int) -> Training:
    """The same network with all its parameters in the optimizer."""
    model = Classifier(narrow_encoder(), 4)
    return classifier(model, adam(model, 1e-2), 200)


@HEAD.sick(
    "stalled",
    also=("vanishing",),
    layers=("encoder.*",),
    cause="the encoder runs under no_grad, left over from evaluation",
)
def encoder_left_under_no_grad(seed: int) -> Training:
    """Features are computed under ``no_grad``, yet the encoder is new and meant to learn."""
    model = Classifier(narrow_encoder(), 4)

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        with torch.no_grad():
            features = model.encoder(x)
        return F.cross_entropy(model.head(features), y)

    return scored(plain(model, adam(model, 1e-2), loss_of, 200), accuracy_of(model))


COPIES = Pair("optimizer and its model", reaches=0.8)


@COPIES.sick("stalled", cause="the optimizer holds the tensors of another copy of the model")
def model_copied_after_its_optimizer(seed: int) -> Training:
    """The model is copied for training after the optimizer was made: it updates tensors that nobody uses."""
    original = network(64, 48, 10)
    optimizer = adam(original, 5e-3)
    return classifier(copy.deepcopy(original), optimizer, 150)


@COPIES.healthy
def model_copied_before_its_optimizer(seed: int) -> Training:
    """The copy first, then the optimizer."""
    model = copy.deepcopy(network(64, 48, 10))
    return classifier(model, adam(model, 5e-3), 150)


@COPIES.sick("stalled", layers=("0.*",), cause="the layer was replaced after the optimizer was made")
def first_layer_replaced_after_the_optimizer(seed: int) -> Training:
    """The first layer is replaced for narrower inputs after the optimizer was made; the new one never moves."""
    model = network(128, 6, 32, 10, activation=nn.Tanh)
    optimizer = adam(model, 5e-3)
    model[0] = nn.Linear(64, 6)
    return classifier(model, optimizer, 200)


@COPIES.healthy
def first_layer_replaced_and_added(seed: int) -> Training:
    """The same, and the new layer is added to the optimizer as a group."""
    model = network(128, 6, 32, 10, activation=nn.Tanh)
    optimizer = adam(model, 5e-3)
    model[0] = nn.Linear(64, 6)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    return classifier(model, optimizer, 200)


class Equalised(nn.Linear):
    """Weights of variance 1, scaled in the forward pass, as in StyleGAN's equalised rate."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer)
        nn.init.normal_(self.weight)
        nn.init.normal_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) / self.in_features**0.5


def rounded(dtype: torch.dtype) -> Training:
    """Finetune in ``dtype``, with AdamW at a small rate, on digits moved to the side; weights have a variance of 1.

    The score is the accuracy that finetuning adds.
    """
    model = nn.Sequential(Equalised(64, 64), nn.ReLU(), Equalised(64, 64), nn.ReLU(), Equalised(64, 10))
    with_contrast = nn.Sequential(Contrast(), model)
    trained(with_contrast, 1e-2, 120)
    model.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0)

    def forward(x: Tensor) -> Tensor:
        moved = x.view(-1, 8, 8).roll(1, dims=2).flatten(1)
        return with_contrast(moved.to(dtype)).float()

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        return F.cross_entropy(forward(x), y)

    accuracy = accuracy_of(forward)
    with torch.no_grad():
        begin = accuracy()
    return scored(plain(model, optimizer, loss_of, 300), lambda: accuracy() - begin)


class Contrast(nn.Module):
    """Brings 0 … 1 to −2 … 2."""

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x - 2


def clipped(norm: float) -> Training:
    model = network(64, 48, 48, 10)

    def clip(step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), norm)

    return classifier(model, sgd(model, 0.3), 150, before_update=clip)


CLIPPED = Pair("clipping of an ordinary network", reaches=0.8)


@CLIPPED.sick("stalled", cause="the clipping norm is 1e-6: every gradient is shrunk to nothing")
def clipped_to_a_millionth(seed: int) -> Training:
    """The clipping norm was mistaken for an epsilon: 1e-6."""
    return clipped(1e-6)


@CLIPPED.healthy
def clipped_to_a_quarter(seed: int) -> Training:
    """The same loop, clipped to 0.25."""
    return clipped(0.25)


def zeroed(where: str, rate: float = 0.3) -> Training:
    """A loop that calls ``zero_grad`` before the update, after it, or never."""
    model = network(64, 48, 10)
    optimizer = sgd(model, rate)

    def step(number: int, observe: Observe) -> None:
        x, y = sample()
        loss = F.cross_entropy(model(x), y)
        observe(loss)
        loss.backward()
        if where == "before":
            optimizer.zero_grad()
        optimizer.step()
        if where == "after":
            optimizer.zero_grad()

    return scored(Training(model, [optimizer], 150, step), accuracy_of(model))


ZEROED = Pair("zero_grad", reaches=0.8)


@ZEROED.sick("stalled", cause="zero_grad stands between backward and step")
def zeroed_before_the_update(seed: int) -> Training:
    """Gradients are dropped before the optimizer sees them."""
    return zeroed("before")


@ZEROED.healthy
def zeroed_after_the_update(seed: int) -> Training:
    """Gradients are dropped after the update."""
    return zeroed("after")


SUMMED = Pair("gradients that add up", reaches=0.6)


def accumulated(period: int | None, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Training:
    """A loop that updates every batch; gradients are dropped every ``period`` updates, or never."""

    def step(number: int, observe: Observe) -> None:
        for _ in range(period or 1):
            x, y = sample(32)
            loss = F.mse_loss(model(x), F.one_hot(y, 10).float()) * 10 / (period or 1)
            observe(loss * (period or 1))
            loss.backward()
        optimizer.step()
        if period:
            optimizer.zero_grad()

    return scored(Training(model, [optimizer], steps, step), accuracy_of(model))


@SUMMED.sick(
    "exploding", also=("unstable", "stalled", "dead", "nonfinite"), cause="zero_grad is never called: gradients add up"
)
def gradients_add_up_for_ever(seed: int) -> Training:
    """``zero_grad`` is missing: each update repeats all gradients before it."""
    model = network(64, 48, 48, 10)
    return accumulated(None, model, sgd(model, 0.2), 250)


@SUMMED.healthy
def gradients_add_up_over_four_batches(seed: int) -> Training:
    """Four batches an update, then ``zero_grad``."""
    model = network(64, 48, 48, 10)
    return accumulated(4, model, sgd(model, 0.2), 120)


LOSSES = Pair("loss and its graph", reaches=0.8)


@LOSSES.sick("stalled", cause="the loss is built from .item(), so that its graph does not reach the model")
def loss_rebuilt_from_its_number(seed: int) -> Training:
    """The mean of two losses is built from their numbers with ``requires_grad=True``, which silences the error."""
    model = network(64, 48, 10)

    def loss_of(step: int) -> Tensor:
        losses = [F.cross_entropy(model(x), y) for x, y in (sample(), sample())]
        return torch.tensor([loss.item() for loss in losses], requires_grad=True).mean()

    return scored(plain(model, adam(model), loss_of, 150), accuracy_of(model))


@LOSSES.healthy
def loss_of_two_batches(seed: int) -> Training:
    """The mean of two losses with their graphs."""
    model = network(64, 48, 10)

    def loss_of(step: int) -> Tensor:
        return torch.stack([F.cross_entropy(model(x), y) for x, y in (sample(), sample())]).mean()

    return scored(plain(model, adam(model), loss_of, 150), accuracy_of(model))


def scheduled(factor: Callable[[int], float], steps: int = 250) -> Training:
    """Momentum under a schedule that is called after every update."""
    model = network(64, 48, 48, 10)
    optimizer = sgd(model, 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def step(number: int, observe: Observe) -> None:
        x, y = sample()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        observe(loss)
        loss.backward()
        optimizer.step()
        schedule.step()

    return scored(Training(model, [optimizer], steps, step), accuracy_of(model))


SCHEDULES = Pair("linear schedule", reaches=0.8)


@SCHEDULES.sick("stalled", cause="the schedule counts epochs and has ended at a rate of 0 after ten updates")
def schedule_over_after_ten_updates(seed: int) -> Training:
    """A decay over ten epochs is stepped with every batch: after ten updates the rate is zero for good."""
    return scheduled(lambda step: max(0.0, 1 - step / 10))


@SCHEDULES.healthy
def schedule_over_after_learning(seed: int) -> Training:
    """The same decay ends after 180 of 250 updates, when everything is learned."""
    return scheduled(lambda step: max(0.0, 1 - step / 180))


def scaled_and_clipped(is_unscaled: bool, dtype: torch.dtype = torch.bfloat16, scale: float = 2.0**16) -> Training:
    """Loss scaling, clipping to 1, momentum; the scaler undoes its factor in ``step``."""
    model = network(64, 48, 48, 10)
    optimizer = sgd(model, 0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def step(number: int, observe: Observe) -> None:
        x, y = sample()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = F.cross_entropy(model(x).float(), y)
        observe(loss)
        scaler.scale(loss).backward()
        if is_unscaled:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return scored(Training(model, [optimizer], 200, step), accuracy_of(model))


SCALED = Pair("loss scaling and clipping", reaches=0.8)


@SCALED.sick("stalled", cause="gradients are clipped before they are unscaled: 65,536 times too small")
def clipped_while_scaled(seed: int) -> Training:
    """Without ``unscale_``, the scaled gradients are clipped to 1 and then divided by 65,536."""
    return scaled_and_clipped(False)


@SCALED.healthy
def clipped_after_unscaling(seed: int) -> Training:
    """``unscale_`` comes before clipping."""
    return scaled_and_clipped(True)


@SCALED.healthy
def scale_found_by_skipping(seed: int) -> Training:
    """float16 under a scale of 2¹⁸: the first update overflows, is skipped, and halves the scale, as it should."""
    return scaled_and_clipped(True, torch.float16, 2.0**18)


ROUNDED = Pair("brain floats", reaches=0.06)


@ROUNDED.sick("stalled", cause="bfloat16 weights: updates are smaller than half of their last bit and are rounded away")
def updates_lost_in_brain_floats(seed: int) -> Training:
    """All weights are bfloat16; at their size of 1 an update of 2e-4 is rounded away."""
    return rounded(torch.bfloat16)


@ROUNDED.healthy
def updates_kept_in_floats(seed: int) -> Training:
    """The same weights and rate in float32."""
    return rounded(torch.float32)


FORGOTTEN = Pair("two heads with losses of their own", reaches=0.6)


class TwoHeads(nn.Module):
    """One trunk; one head for the class, one for the brightness of the lower half."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = network(64, 48, 48)
        self.kind, self.brightness = network(48, 24, 10), network(48, 24, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x).relu()
        return self.kind(h), self.brightness(h)[:, 0]


def two_heads(is_forgotten: bool) -> Training:
    model = TwoHeads()

    def targets(x: Tensor) -> Tensor:
        return 10 * (x[:, 32:].mean(1) - 0.3)

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        logits, brightness = model(x)
        losses = {"kind": F.cross_entropy(logits, y), "brightness": F.mse_loss(brightness, targets(x))}
        return losses["kind"] if is_forgotten else losses["kind"] + losses["brightness"]

    def score() -> Tensor:
        x, _ = sample(500)
        return explained(lambda rows: model(rows)[1], x, targets(x))()

    return scored(plain(model, adam(model), loss_of, 200), score)


@FORGOTTEN.sick("stalled", also=("vanishing",), layers=("brightness.*",), cause="the second head's loss is never added")
def second_loss_never_added(seed: int) -> Training:
    """The second loss is logged and never added to the first: its head has no gradient at all."""
    return two_heads(True)


@FORGOTTEN.healthy
def both_losses_added(seed: int) -> Training:
    """Both losses, summed."""
    return two_heads(False)
