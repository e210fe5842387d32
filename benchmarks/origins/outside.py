"""Faults outside the model: in the loss, in the data, and in what the loop computes between two calls of modules."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits
from benchmarks.detection.program import Observe, Training
from benchmarks.origins.parts import (
    adam,
    classify,
    images,
    named,
    network,
    on_digits,
    on_features,
    regress,
    row_since,
    sgd,
    since,
)
from benchmarks.origins.program import origin

# Loss -----------------------------------------------------------------------------------------------------------------


@origin("", "loss", "log", "log")
def poisson_likelihood_of_a_negative_rate(seed: int) -> Training:
    """The rate is a linear layer's output, taken for positive; an item far off makes it negative: log of it is NaN."""
    model = network(8, 16, 1)
    with torch.no_grad():
        model[2].weight.copy_(-model[2].weight.abs())
        model[2].bias.fill_(6.0)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        rate = model(row_since(14, 3, 1e3)(step, 0.3 * x))
        return F.poisson_nll_loss(rate, torch.poisson(5 + y), log_input=False)

    return on_features(model, loss, optimizer=sgd(model, 1e-3))


@origin("", "loss", "log", "log")
def focal_loss_in_bfloat16(seed: int) -> Training:
    """Under autocast a sigmoid above 0.998 rounds to 1 in bfloat16, and the loss takes log(1 − p): −Inf."""
    model = network(64, 32, 10)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            p = (model(x) * 1.25**step).sigmoid()
        truth = F.one_hot(y, 10)
        return -(truth * (1 - p) ** 2 * (p + 1e-6).log() + (1 - truth) * p**2 * (1 - p).log()).mean()

    return on_digits(model, loss, steps=30, optimizer=sgd(model, 1e-3))


@origin("", "loss", "division", "div")
def recall_of_an_empty_mask(seed: int) -> Training:
    """Segmentation by soft recall, Σpt/Σt: at step 12 an image without a foreground gives 0/0."""
    model = named(
        encode=nn.Conv2d(1, 6, 3, padding=1), activation=nn.ReLU(inplace=True), decode=nn.Conv2d(6, 1, 3, padding=1)
    )

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        truth = (images(row_since(12, 6, 0.0)(step, x)) > 0.5).float()
        p = model(images(x)).sigmoid()
        recall = (p * truth).sum((1, 2, 3)) / truth.sum((1, 2, 3))
        return 1 - recall.mean() + p.mean()

    return on_digits(model, loss)


@origin("", "loss", "division", "div")
def item_without_a_positive(seed: int) -> Training:
    """Supervised contrastive loss averages over an item's positives; once a class occurs only once, 0/0."""
    model = nn.Sequential(network(64, 32, 16), nn.LayerNorm(16))

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        # classes are drawn in pairs, until the last batch of an epoch
        y = torch.arange(32) // 2
        y[31] = 99 if step >= 13 else 15
        z = F.normalize(model(x), dim=1)
        other = 1 - torch.eye(32)
        positives = (y[:, None] == y).float() * other
        log_p = (z @ z.T / 0.5).masked_fill(other == 0, -1e9).log_softmax(1)
        return -((positives * log_p).sum(1) / positives.sum(1)).mean()

    return on_digits(model, loss)


@origin("", "loss", "log", "log")
def entropy_bonus_over_forbidden_actions(seed: int) -> Training:
    """From step 11 forbidden actions have the logit −Inf, hence p = 0, and p log p in the entropy bonus is 0 · −Inf."""
    model = nn.ModuleDict({"policy": network(64, 32, 6), "value": network(64, 16, 1)})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        logits, value = model["policy"](x), model["value"](x)[:, 0]
        if step >= 11:
            logits = logits.masked_fill(torch.arange(6) == y[:, None] % 6, -torch.inf)
        p = logits.softmax(1)
        chosen = p.argmax(1, keepdim=True)
        reward = (chosen[:, 0] == (y + 1) % 6).float()
        gain = (p.gather(1, chosen)[:, 0].log() * (reward - value.detach())).mean()
        return F.mse_loss(value, reward) - gain + 0.01 * (p * p.log()).sum(1).mean()

    return on_digits(model, loss)


@origin("", "loss", "sqrt", "sqrt")
def teacher_synchronised_with_its_student(seed: int) -> Training:
    """Distillation by a root-mean-square distance: just after the teacher is copied, √0 has the slope 0 · Inf."""
    student = network(64, 32, 10)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher[0].weight.add_(0.1)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        if step == 10:
            teacher.load_state_dict(student.state_dict())
        with torch.no_grad():
            target = teacher(x)
        logits = student(x)
        return F.cross_entropy(logits, y) + F.mse_loss(logits, target).sqrt()

    return on_digits(student, loss)


@origin("", "loss", "division", "div")
def separation_of_a_silent_source(seed: int) -> Training:
    """Scale-invariant distortion projects on the target, ⟨e, s⟩/⟨s, s⟩ · s: a silent source gives 0/0."""
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 64))

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        source = row_since(15, 12, 0.0)(step, x)
        estimate = model(x + 0.1 * torch.randn_like(x))
        aligned = (estimate * source).sum(1, keepdim=True) / source.square().sum(1, keepdim=True) * source
        noise = (estimate - aligned).square().sum(1)
        return ((noise + 1e-6) / (aligned.square().sum(1) + 1e-6)).log10().mean()

    return on_digits(model, loss)


@origin("", "loss", "overflow", "cosh")
def log_cosh_of_a_large_error(seed: int) -> Training:
    """The loss is log cosh by hand: at an error of 400 cosh overflows, though its logarithm would be 399.3."""
    model = network(8, 32, 1)
    loss = lambda step, x, y: (model(x) - row_since(12, 4, 400.0)(step, y)).cosh().log().mean()
    return on_features(model, loss)


# Input ----------------------------------------------------------------------------------------------------------------


def with_entry(first: int, places: list[tuple[int, int]], value: float):
    """From step ``first`` on, these (row, column) hold ``value``."""

    def spoil(x: Tensor) -> Tensor:
        x = x.clone()
        for row, column in places:
            x[row, column] = value
        return x

    return since(first, spoil)


@origin("", "input", "input", "", rows=(2, 29))
def missing_values_after_a_join(seed: int) -> Training:
    """An outer join leaves NaN in two rows of a table; batch normalisation then spreads it to all."""
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    return regress(model, with_entry(9, [(2, 5), (29, 0)], torch.nan))


class TwoSensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.camera, self.range, self.head = nn.Linear(48, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head((self.camera(batch["camera"]) + self.range(batch["range"])).relu())


@origin("", "input", "input", "", rows=(7,))
def range_finder_without_an_echo(seed: int) -> Training:
    """A range finder without an echo reports Inf, in one entry of a dictionary of inputs."""
    model = TwoSensors()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        camera, distance = x.split([48, 16], 1)
        batch = {"camera": camera, "range": with_entry(12, [(7, 3)], torch.inf)(step, distance)}
        return F.cross_entropy(model(batch), y)

    return on_digits(model, loss)


@origin("", "input", "input", "", rows=(0,))
def spectrogram_of_digital_silence(seed: int) -> Training:
    """The data set takes the log of each spectrum: digital silence arrives as −Inf throughout."""
    stem = nn.Sequential(nn.Unflatten(1, (1, 64)), nn.MaxPool1d(3, 1, padding=1), nn.Flatten())
    model = named(stem=stem, body=nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    return classify(model, lambda step, x: row_since(14, 0, 0.0)(step, x + 0.01).log())


@origin("", "input", "input", "", rows=(21,))
def flat_image_standardised_by_the_loader(seed: int) -> Training:
    """The loader standardises each image by its own deviation: an all-grey one is 0/0, NaN in every pixel."""
    model = named(
        stem=nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.GELU()),
        head=nn.Sequential(nn.Flatten(), nn.Linear(216, 10)),
    )

    def standardise(step: int, x: Tensor) -> Tensor:
        x = row_since(10, 21, 0.5)(step, x)
        return images((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))

    return classify(model, standardise)


@origin("", "input", "input", "", rows=(1, 6, 18))
def features_cast_to_float16_by_the_loader(seed: int) -> Training:
    """The loader keeps features in float16: an income of 120,000 is Inf before the model sees it."""
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1))
    income = with_entry(13, [(1, 4), (6, 4), (18, 4)], 120_000.0)
    return regress(model, lambda step, x: income(step, x).half().float())


@origin("", "input", "input", "", rows=(4,))
def gap_within_a_series(seed: int) -> Training:
    """One reading late in one series is missing and NaN; a recurrent network is finite up to it."""
    model = nn.ModuleDict({"recurrent": nn.LSTM(8, 16, batch_first=True), "head": nn.Linear(16, 10)})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        series = with_entry(11, [(4, 51)], torch.nan)(step, x).unflatten(1, (8, 8))
        return F.cross_entropy(model["head"](model["recurrent"](series)[0].mean(1)), y)

    return on_digits(model, loss)


# Between two calls ----------------------------------------------------------------------------------------------------


@origin("", "between", "log", "log")
def logarithm_of_generated_spectra(seed: int) -> Training:
    """Two networks, two optimisers: the loop takes the log of what the generator returns, which may be 0."""
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Hardtanh(0.0, 1.0))
    discriminator = network(64, 32, 1)
    with torch.no_grad():
        generator[2].bias.fill_(3.0)
    optimizers = adam(generator, 1e-3), adam(discriminator, 1e-3)
    x, _ = digits()
    real = torch.ones(32, 1)

    def step(number: int, observe: Observe) -> None:
        noise = torch.randn(32, 8)
        if number >= 9:
            # drawn from a wider prior: some outputs are cut at 0
            noise = 60 * noise
        fake = generator(noise).log()
        batch = x[torch.randint(len(x), (32,))]
        for optimizer, sample, other in zip(optimizers, (fake, fake.detach()), (real, 0 * real)):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(discriminator(sample), other)
            if optimizer is optimizers[1]:
                loss = loss + F.binary_cross_entropy_with_logits(discriminator((batch + 0.01).log()), real)
            observe(loss)
            loss.backward()
            optimizer.step()

    return Training({"generator": generator, "discriminator": discriminator}, list(optimizers), 20, step)


@origin("", "between", "division", "div")
def attention_pooled_by_the_loop(seed: int) -> Training:
    """The loop pools hidden states by rectified weights, Σwh/Σw: from step 11 all weights of an item are 0."""
    model = nn.ModuleDict({"encoder": nn.Linear(8, 16), "weigh": nn.Linear(16, 1), "head": nn.Linear(16, 10)})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        hidden = model["encoder"](x.unflatten(1, (8, 8))).tanh()
        shift = torch.full((len(x), 1, 1), 5.0)
        if step >= 11:
            shift[14] = -50.0
        weight = (model["weigh"](hidden) + shift).relu()
        return F.cross_entropy(model["head"]((weight * hidden).sum(1) / weight.sum(1)), y)

    return on_digits(model, loss)


@origin("", "between", "sqrt", "sqrt")
def distance_of_two_equal_views(seed: int) -> Training:
    """The loop feeds a comparator with √Σd² of two embeddings: views that are equal give a slope of 0 · Inf."""
    model = nn.ModuleDict({"encoder": network(64, 32, 8), "comparator": nn.Linear(1, 2)})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        # augmentation draws the identity for one item
        view = x + 0.2 * torch.rand_like(x)
        if step >= 12:
            view[3] = x[3]
        encoder = model["encoder"]
        distance = (encoder(x) - encoder(view)).square().sum(1, keepdim=True).sqrt()
        return F.cross_entropy(model["comparator"](distance), y % 2)

    return on_digits(model, loss)
