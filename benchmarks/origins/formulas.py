"""Faults in the forward pass of a module: a formula at the edge of its domain, normalisation by nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.program import Training
from benchmarks.origins.parts import (
    adam,
    after_update,
    both,
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

# Exponentials, logarithms, powers, angles -----------------------------------------------------------------------------


class SoftplusByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (1 + x.exp()).log()


@origin("activation", "forward", "exp", "exp")
def softplus_by_hand(seed: int) -> Training:
    """Sixteen-bit images come among eight-bit ones, and exp(x) in log(1 + exp x) overflows beyond 88."""
    model = named(stem=nn.Linear(64, 32), activation=SoftplusByHand(), head=nn.Linear(32, 10))
    return classify(model, since(9, lambda x: x * 65535))


class GeluByHand(nn.Module):
    """The approximation by tanh, which is itself written with exponentials."""

    def forward(self, x: Tensor) -> Tensor:
        doubled = (1.595769 * (x + 0.044715 * x**3)).exp()
        return x / 2 * (1 + (doubled - 1) / (doubled + 1))


class Residual(nn.Module):
    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


@origin("blocks.0.branch.1", "forward", "exp", "exp")
def gelu_of_a_massive_activation(seed: int) -> Training:
    """The cube in tanh's argument passes 88 where an activation is about 15: exp overflows, Inf/Inf."""
    blocks = nn.Sequential(*(Residual(nn.Linear(24, 24), GeluByHand(), nn.Linear(24, 24)) for _ in range(3)))
    model = named(stem=nn.Linear(64, 24), blocks=blocks, head=nn.Linear(24, 10))
    return classify(model, row_since(14, 3, 1000.0))


class LogProbabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sharpness = 1.0

    def forward(self, logits: Tensor) -> Tensor:
        return (logits * self.sharpness).softmax(1).log()


@origin("head.1", "forward", "log", "log")
def log_of_a_softmax_that_underflows(seed: int) -> Training:
    """Sharpened by a schedule, a softmax underflows to an exact 0 for an unlikely class, and its log is −Inf."""
    model = named(body=network(64, 32, 32), head=nn.Sequential(nn.Linear(32, 10), LogProbabilities()))

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        model.head[1].sharpness = 1.6**step
        return F.nll_loss(model(x), y)

    return on_digits(model, loss, optimizer=sgd(model, 1e-3), steps=30)


class LogMel(nn.Module):
    """Log energies of learned bands."""

    def __init__(self) -> None:
        super().__init__()
        self.bands = nn.Parameter(torch.rand(64, 24))

    def forward(self, x: Tensor) -> Tensor:
        return (x.square() @ self.bands.abs()).log()


@origin("frontend.logmel", "forward", "log", "log")
def log_energy_of_silence(seed: int) -> Training:
    """A silent recording has energy 0 in every band; it comes in the second micro-batch of step 11."""
    model = named(frontend=named(logmel=LogMel(), scale=nn.LayerNorm(24)), head=network(24, 32, 10))

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        # two micro-batches, accumulated in one backward pass
        halves = zip((x[:16], row_since(11, 4, 0.0)(step, x[16:])), (y[:16], y[16:]))
        return sum(F.cross_entropy(model(part), classes) for part, classes in halves) / 2

    return on_digits(model, loss)


class BoxCox(nn.Module):
    """(x^λ − 1)/λ with a λ for each feature."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.full((features,), 0.4))

    def forward(self, x: Tensor) -> Tensor:
        return (x**self.exponent - 1) / self.exponent


@origin("transform", "forward", "pow", "pow")
def box_cox_of_a_negative_reading(seed: int) -> Training:
    """Prices are positive but for one refund at step 12: a negative number to a power of 0.4."""
    model = named(transform=BoxCox(8), body=network(8, 32, 1))
    return regress(model, both(lambda _, x: x.abs() + 0.1, row_since(12, 6, -3.0)))


class Angle(nn.Module):
    """Angle between two descriptors, and their lengths."""

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        cosine = (F.normalize(left, dim=1) * F.normalize(right, dim=1)).sum(1)
        return cosine.acos(), left.norm(dim=1) - right.norm(dim=1)


class Siamese(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.heads = network(64, 32, 16), nn.ModuleDict({"compare": head})

    def forward(self, left: Tensor, right: Tensor):
        return self.heads["compare"](self.encoder(left), self.encoder(right))


@origin("heads.compare", "forward", "acos", "acos")
def angle_between_an_image_and_itself(seed: int) -> Training:
    """Pairs are duplicates from step 10 on: rounding lifts u·u above 1 in some rows, where arccos is NaN."""
    model = Siamese(Angle())

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        # a little sensor noise until then
        other = x if step >= 10 else x.roll(1, 0) + 0.3 * torch.rand_like(x)
        angle, difference = model(x, other)
        return (angle - 1).square().mean() + difference.square().mean()

    return on_digits(model, loss, batch=64)


class InverseSigmoid(nn.Module):
    """Refines reference points in logit space, as detectors do, without the epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Linear(64, 2)

    def forward(self, features: Tensor, points: Tensor) -> Tensor:
        return self.offset(features) + points.log() - (1 - points).log()


class Detector(nn.Module):
    """Two rounds of refinement; the second starts from the first's points, detached."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.refine = nn.Linear(64, 64), nn.ModuleList(InverseSigmoid() for _ in range(2))

    def forward(self, x: Tensor, points: Tensor) -> dict[str, Tensor]:
        features = self.stem(x).relu()
        first = self.refine[0](features, points)
        # boxes are kept inside the image
        points = (first.detach().sigmoid() * 1.2).clamp(0, 1)
        return {"first": first, "second": self.refine[1](features, points)}


@origin("refine.1", "forward", "log", "log")
def reference_point_on_the_border(seed: int) -> Training:
    """A refined point is clamped to the border, 1, and its inverse sigmoid takes the log of 1 − 1."""
    model = Detector()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        points = torch.full((len(x), 2), 0.3)
        if step >= 13:
            points[5] = 0.995
        found = model(x, points)
        target = torch.full_like(points, 0.3)
        return sum(F.binary_cross_entropy_with_logits(logits, target) for logits in found.values())

    return on_digits(model, loss)


class GumbelQuantiser(nn.Module):
    """Chooses softly among codes; the noise is drawn in bfloat16, whose numbers below 1 round up to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.codes = nn.Linear(16, 8), nn.Linear(8, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        uniform = torch.rand(len(x), 8).bfloat16().float().clamp(min=1e-6)
        noise = -(-uniform.log()).log()
        return self.codes((self.scores(x) + noise).softmax(1))


@origin("quantiser", "forward", "log", "log")
def gumbel_noise_in_bfloat16(seed: int) -> Training:
    """A uniform number rounds to 1 in bfloat16 once in 512 draws, and −log(−log 1) is Inf."""
    model = named(encoder=nn.Linear(64, 16), quantiser=GumbelQuantiser(), decoder=nn.Linear(16, 64))
    loss = lambda _, x, __: F.mse_loss(model(x), x)
    return on_digits(model, loss, steps=200, batch=6, optimizer=adam(model))


class MixtureDensity(nn.Module):
    """Log-likelihood of a mixture of four Gaussians, summed in the linear domain."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters_of = nn.Linear(32, 12)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weight, mean, log_deviation = self.parameters_of(x).chunk(3, 1)
        z = (y - mean) / log_deviation.exp()
        density = weight.softmax(1) * (-z.square() / 2 - log_deviation).exp()
        return density.sum(1).log()


class MixtureNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mixture = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), MixtureDensity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mixture(self.body(x), y)


@origin("mixture", "forward", "log", "log")
def mixture_density_far_from_its_target(seed: int) -> Training:
    """A target of 60 lies so far from every component that all densities underflow: log 0."""
    model = MixtureNetwork()
    return on_features(model, lambda step, x, y: -model(x, row_since(12, 1, 60.0)(step, y)).mean())


class VariationalAutoencoder(nn.Module):
    """Draws in its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 16), nn.Linear(8, 64)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        latent = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return {"rebuilt": self.decoder(latent), "mean": mean, "latent": latent}


@origin("", "forward", "exp", "exp")
def reparametrisation_of_an_outlier(seed: int) -> Training:
    """One image at the wrong exposure has log variances in the hundreds, and the model's own exp overflows."""
    model = VariationalAutoencoder()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        found = model(row_since(10, 2, 3000.0)(step, x))
        return F.mse_loss(found["rebuilt"], x) + 1e-3 * found["mean"].square().mean()

    return on_digits(model, loss)


# Divisions by nothing -------------------------------------------------------------------------------------------------


class RootMeanSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt()


@origin("blocks.0.branch.0", "forward", "division", "div")
def root_mean_square_of_a_blank_page(seed: int) -> Training:
    """A blank page through a stem without a bias is a vector of zeros; its root mean square is 0: 0/0."""
    blocks = nn.Sequential(*(Residual(RootMeanSquare(), nn.Linear(24, 24), nn.SiLU()) for _ in range(3)))
    model = named(stem=nn.Linear(64, 24, bias=False), blocks=blocks, head=nn.Linear(24, 10))
    return classify(model, row_since(11, 0, 0.0))


class LayerNormByHand(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.gain * centred * centred.square().mean(-1, keepdim=True).rsqrt()


class Towers(nn.Module):
    """Two towers of layers kept in dictionaries and lists."""

    def __init__(self) -> None:
        super().__init__()
        tower = lambda: nn.ModuleList([nn.Linear(32, 16, bias=False), LayerNormByHand(16), nn.ReLU()])
        self.towers = nn.ModuleDict({"upper": tower(), "lower": tower()})
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        parts = dict(zip(("upper", "lower"), x.split(32, 1)))
        for name, tower in self.towers.items():
            for layer in tower:
                parts[name] = layer(parts[name])
        return self.head(torch.cat([parts["upper"], parts["lower"]], 1))


@origin("towers.lower.1", "forward", "division", "rsqrt")
def layer_norm_of_a_constant(seed: int) -> Training:
    """The lower half of one image is cut off: a constant vector has variance 0, and rsqrt(0) is Inf."""
    model = Towers()

    def crop(x: Tensor) -> Tensor:
        x = x.clone()
        x[7, 32:] = 0
        return x

    return classify(model, since(8, crop))


class UnitLength(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)


@origin("projector.2", "forward", "division", "div")
def contrastive_head_of_an_erased_view(seed: int) -> Training:
    """Random erasing blots out a whole view; without biases its embedding is 0, and so is its norm."""
    projector = nn.Sequential(nn.ReLU(), nn.Linear(32, 16, bias=False), UnitLength())
    model = named(encoder=nn.Linear(64, 32, bias=False), projector=projector)

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        left, right = model(x), model(row_since(13, 9, 0.0)(step, x + 0.1 * torch.rand_like(x)))
        return F.cross_entropy(left @ right.T / 0.2, torch.arange(len(x)))

    return on_digits(model, loss)


class Standardise(nn.Module):
    """Each series by its own mean and deviation."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)


@origin("standardise", "forward", "division", "std")
def deviation_of_a_single_reading(seed: int) -> Training:
    """A window holds a single reading at step 15: the unbiased deviation divides by n − 1 = 0."""
    pooled = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1))
    model = named(standardise=Standardise(), pooled=pooled, head=nn.Sequential(nn.Flatten(), nn.Linear(8, 10)))
    return classify(model, lambda step, x: x[:, 20:21] if step >= 15 else x[:, : 64 - 2 * step])


class SpatialGate(nn.Module):
    """Scales a saliency map to the range from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.saliency = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        saliency = self.saliency(x)
        low, high = saliency.amin((2, 3), keepdim=True), saliency.amax((2, 3), keepdim=True)
        return x * (saliency - low) / (high - low)


@origin("stages.1.gate", "forward", "division", "div")
def saliency_of_a_flat_image(seed: int) -> Training:
    """A flat image has a flat saliency map: (map − min)/(max − min) is 0/0."""
    stage = lambda inner: named(convolution=nn.Conv2d(inner, 6, 3), relu=nn.ReLU(), gate=SpatialGate())
    stages = nn.Sequential(named(convolution=nn.Conv2d(1, 6, 3), relu=nn.ReLU()), stage(6))
    model = named(stages=stages, head=nn.Sequential(nn.Flatten(), nn.Linear(96, 10)))
    return classify(model, lambda step, x: images(row_since(10, 8, 0.6)(step, x)))


class Recalibrate(nn.Module):
    """Divides each channel by its mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.mean((2, 3), keepdim=True)


@origin("blocks.1.branch.3", "forward", "division", "div")
def channel_dropped_then_divided_by_its_mean(seed: int) -> Training:
    """Channel dropout, switched on at step 9, zeroes whole channels; each is then divided by its mean."""
    drops = [nn.Dropout2d(0.0) for _ in range(2)]
    tails = (nn.Identity(), Recalibrate())
    parts = zip(drops, tails)
    blocks = (Residual(nn.Conv2d(6, 6, 3, padding=1), nn.Softplus(), drop, tail) for drop, tail in parts)
    model = named(
        stem=nn.Conv2d(1, 6, 3, padding=1),
        blocks=nn.Sequential(*blocks),
        head=nn.Sequential(nn.Flatten(), nn.Linear(384, 10)),
    )

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        for drop in drops:
            drop.p = 0.3 if step >= 9 else 0.0
        return F.cross_entropy(model(images(x)), y)

    return on_digits(model, loss, steps=16)


class SpectralLinear(nn.Module):
    """A linear map divided by its largest singular value, found by power iteration."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outer, inner) / inner**0.5)
        self.register_buffer("left", F.normalize(torch.randn(outer), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            right = F.normalize(self.weight.T @ self.left, dim=0)
            self.left.copy_(F.normalize(self.weight @ right, dim=0))
        return x @ (self.weight / (self.left @ self.weight @ right)).T


@origin("critic.2", "forward", "division", "div")
def spectral_norm_of_a_pruned_layer(seed: int) -> Training:
    """Pruning zeroes a layer at step 12; its largest singular value is 0, and 0/0 is its weight."""
    critic = nn.Sequential(SpectralLinear(64, 32), nn.ReLU(), SpectralLinear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    model = named(critic=critic)
    optimizer = sgd(model)
    after_update(optimizer, 11, lambda: critic[2].weight.data.zero_())
    return classify(model, optimizer=optimizer)


class Interpolate(nn.Module):
    """Inverse-distance interpolation of features from known points, as in PointNet++."""

    def forward(self, points: Tensor, known: Tensor, features: Tensor) -> Tensor:
        weight = 1 / torch.cdist(points, known)
        return weight @ features / weight.sum(1, keepdim=True)


class PointNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.upsample, self.head = nn.Linear(3, 16), nn.ModuleList([Interpolate()]), nn.Linear(16, 1)

    def forward(self, points: Tensor, *, known: Tensor) -> Tensor:
        return self.head(self.upsample[0](points, known, self.lift(known).tanh()))


@origin("upsample.0", "forward", "division", "reciprocal")
def inverse_distance_to_the_point_itself(seed: int) -> Training:
    """A query point coincides with a known one at step 10: its weight is 1/0, and Inf/Inf follows."""
    model = PointNetwork()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        known = torch.randn(12, 3)
        points = torch.cat([known[4:5], x[1:]]) if step >= 10 else x
        return F.mse_loss(model(points, known=known), y)

    return on_features(model, loss, features=3)


class ModReLU(nn.Module):
    """z/|z| · relu(|z| + b): changes a complex number's modulus and keeps its phase."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((features,), 0.1))

    def forward(self, z: Tensor) -> Tensor:
        return z / z.abs() * (z.abs() + self.bias).relu()


class SpectralNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(33, 16, bias=False, dtype=torch.complex64)
        self.activation, self.head = ModReLU(16), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.activation(self.mix(torch.fft.rfft(x)))
        return self.head(torch.view_as_real(z).flatten(1))


@origin("activation", "forward", "division", "div")
def phase_of_a_silent_spectrum(seed: int) -> Training:
    """The spectrum of silence is 0 in every bin: modReLU divides z by its modulus to keep the phase."""
    return classify(SpectralNetwork(), row_since(9, 6, 0.0))


class HalfUnit(nn.Module):
    """Divides by the norm plus an epsilon that is 0 in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.norm(dim=-1, keepdim=True) + 1e-8)


@origin("keys.norm", "forward", "division", "div")
def epsilon_that_float16_rounds_to_zero(seed: int) -> Training:
    """An epsilon of 1e-8 is 0 in float16: a zero vector is divided by 0 all the same."""
    model = named(keys=named(project=nn.Linear(64, 16, bias=False), norm=HalfUnit()), head=nn.Linear(16, 10)).half()
    loss = lambda step, x, y: F.cross_entropy(model(row_since(12, 5, 0.0)(step, x).half()).float(), y)
    return on_digits(model, loss)
