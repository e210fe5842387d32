"""Faults in the backward pass of a module: its value is finite, its derivative is not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.detection.program import Training
from benchmarks.origins.parts import (
    both,
    classify,
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

# Derivatives that are infinite at the edge of the domain --------------------------------------------------------------


class Gain(nn.Module):
    """A learned factor for each feature: what is 0 stays 0."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.exp()


class SignedLog(nn.Module):
    """log x where x is positive, 0 elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x.log(), torch.zeros_like(x))


@origin("frontend.compress", "backward", "log", "log")
def where_after_the_logarithm(seed: int) -> Training:
    """Without its dark current a pixel is 0: ``where`` hides −Inf from the value, and 0/0 is left of the gradient."""
    model = named(frontend=named(gain=Gain(64), compress=SignedLog()), head=network(64, 32, 10))
    return classify(model, lambda step, x: x + 0.1 if step < 10 else x)


class SignedRoot(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sign() * x.abs().sqrt()


class BilinearPooling(nn.Module):
    """Outer products of two views, their signed roots, unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.drop = nn.Linear(64, 6), nn.Linear(64, 6), nn.Dropout(0.0)
        self.root = SignedRoot()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.drop(self.left(x)), self.right(x)
        return F.normalize(self.root((left[:, :, None] * right[:, None]).flatten(1)), dim=1)


@origin("pooling.root", "backward", "sqrt", "sqrt")
def signed_root_of_dropped_features(seed: int) -> Training:
    """Dropout, switched on at step 12, makes exact zeros: the signed root's slope there is 0 · Inf."""
    model = named(pooling=BilinearPooling(), head=nn.Linear(36, 10))

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        model.pooling.drop.p = 0.2 if step >= 12 else 0.0
        return F.cross_entropy(model(x), y)

    return on_digits(model, loss)


class Prototypes(nn.Module):
    """Minus the distance of an embedding to each class's prototype."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.centres).square().sum(2).sqrt()


@origin("classifier.distance", "backward", "sqrt", "sqrt")
def prototype_placed_on_an_item(seed: int) -> Training:
    """At step 9 a prototype is set to the embedding of an item of the very batch: distance 0, slope 0 · Inf."""
    model = named(embed=network(64, 32, 8), classifier=named(distance=Prototypes()))

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        if step == 9:
            with torch.no_grad():
                model.classifier.distance.centres[3] = model.embed(x)[5]
        return F.cross_entropy(model(x), y)

    return on_digits(model, loss)


class Gamma(nn.Module):
    """Tone curve x^γ."""

    def __init__(self) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor(0.45))

    def forward(self, x: Tensor) -> Tensor:
        return x**self.exponent


@origin("tone.1", "backward", "pow", "pow")
def gamma_correction_of_black(seed: int) -> Training:
    """A black pixel to the power of 0.45: the value is 0, the slope 0^−0.55."""
    model = named(tone=nn.Sequential(Gain(64), Gamma()), head=network(64, 32, 10))

    def blacken(x: Tensor) -> Tensor:
        x = x.clone()
        x[2, 30] = 0
        return x

    return classify(model, both(lambda _, x: x + 0.05, since(8, blacken)))


class RotationAngle(nn.Module):
    """Angle of a unit quaternion."""

    def forward(self, quaternion: Tensor) -> Tensor:
        return 2 * quaternion[:, :1].clamp(-1, 1).acos()


class Pose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.correct, self.angle, self.head = nn.Linear(8, 3), RotationAngle(), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        # a pure rotation by the corrected axis; features of zero give the identity
        imaginary = self.correct(x) - self.correct.bias
        return self.head(self.angle(F.normalize(torch.cat([torch.ones(len(x), 1), imaginary], 1), dim=1)))


@origin("angle", "backward", "acos", "acos")
def angle_of_the_identity_rotation(seed: int) -> Training:
    """A frame without motion is the identity rotation: arccos 1 is 0, its slope is infinite."""
    return regress(Pose(), row_since(14, 11, 0.0))


class Entropy(nn.Module):
    def forward(self, p: Tensor) -> Tensor:
        return torch.special.entr(p).sum(1)


class Router(nn.Module):
    """Keeps the largest gates; also returns their entropy, to be kept high."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entropy, self.experts = nn.Linear(64, 6), Entropy(), nn.Linear(6, 10)
        self.kept = 6

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.gate(x).softmax(1)
        least = gates.topk(self.kept, 1).values[:, -1:]
        gates = gates * (gates >= least)
        return self.experts(gates), self.entropy(gates)


@origin("router.entropy", "backward", "log", "special_entr")
def entropy_of_gates_that_are_zero(seed: int) -> Training:
    """From step 10 only two gates are kept: −p log p is 0 at 0, its slope −log 0 − 1 is Inf."""
    model = nn.ModuleDict({"router": Router()})

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        model["router"].kept = 2 if step >= 10 else 6
        logits, entropy = model["router"](x)
        return F.cross_entropy(logits, y) - 0.01 * entropy.mean()

    return on_digits(model, loss)


class TripletNetwork(nn.Module):
    """Returns both distances of a triplet, computed in its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = network(64, 32, 8)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        anchor, positive, negative = self.embed(anchor), self.embed(positive), self.embed(negative)
        distance = lambda other: (anchor - other).square().sum(1).sqrt()
        return distance(positive), distance(negative)


@origin("", "backward", "sqrt", "sqrt")
def anchor_that_is_its_own_positive(seed: int) -> Training:
    """A class with a single image gives it as its own positive: the distance by hand is √0, its slope 0 · Inf."""
    model = TripletNetwork()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        positive = x + 0.1 * torch.rand_like(x)
        if step >= 13:
            positive[8] = x[8]
        near, far = model(x, positive, positive.roll(1, 0) + 0.1)
        return (1 + near - far).relu().mean() + 0.01 * near.mean()

    return on_digits(model, loss)


# Overflow that the value hides ----------------------------------------------------------------------------------------


class Rate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp().clamp(max=1e4)


@origin("rate", "backward", "exp", "exp")
def clamp_after_the_overflow(seed: int) -> Training:
    """exp(x) is clamped too late: the value is 10,000, the gradient 0 · Inf."""
    model = named(body=network(8, 32, 1), rate=Rate())

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            model.body[2].weight.abs_()
        rate = model(row_since(13, 7, 1e4)(step, x))
        return ((rate + 1).log() - y.abs()).square().mean()

    return on_features(model, loss, optimizer=sgd(model, 0.01))


class SigmoidByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / (1 + (-x).exp())


class GatedCell(nn.Module):
    """A minimal gated unit."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.score, self.gate, self.candidate = nn.Linear(inner, width), SigmoidByHand(), nn.Linear(inner, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        gate = self.gate(self.score(x))
        return gate * hidden + (1 - gate) * self.candidate(x).tanh()


class GatedReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = GatedCell(8, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(len(x), 16)
        for row in x.unflatten(1, (8, 8)).unbind(1):
            hidden = self.cell(row, hidden)
        return self.head(hidden)


@origin("cell.gate", "backward", "exp", "exp")
def sigmoid_by_hand_at_a_large_input(seed: int) -> Training:
    """1/(1 + exp(−x)) is rightly 0 at −500; its gradient is 0 times exp(500)."""
    return classify(GatedReader(), row_since(11, 3, 2000.0))


class LenientAttention(nn.Module):
    """Attention whose NaN of fully masked queries is replaced by 0."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT / 4 + mask
        return scores.softmax(-1).nan_to_num(0.0) @ self.value(x)


class LenientEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(8, 16), nn.ModuleList(LenientAttention() for _ in range(3))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor, *, masks: list[Tensor]) -> Tensor:
        x = self.embed(x.unflatten(1, (8, 8)))
        for layer, mask in zip(self.layers, masks):
            x = x + layer(x, mask=mask)
        return self.head(x.mean(1))


@origin("layers.1", "backward", "softmax", "softmax")
def nan_to_num_after_the_softmax(seed: int) -> Training:
    """A query that sees nothing: ``nan_to_num`` mends the value of its softmax, not the gradient."""
    model = LenientEncoder()

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        masks = [torch.full((8, 8), -torch.inf).triu(1) for _ in range(3)]
        if step >= 12:
            masks[1][0, 0] = -torch.inf
        return F.cross_entropy(model(x, masks=masks), y)

    return on_digits(model, loss, steps=20)


# Matrices, statistics, functions of one's own -------------------------------------------------------------------------


class SpectralPooling(nn.Module):
    """The logarithm of a covariance through its eigenvectors."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x.unflatten(1, (8, 8)))
        values, vectors = torch.linalg.eigh(tokens.mT @ tokens)
        return ((vectors * (1 + values.clamp(min=0)).log()[:, None]) @ vectors.mT).flatten(1)


@origin("pooling", "backward", "derivative", "linalg_eigh")
def eigenvectors_of_a_zero_covariance(seed: int) -> Training:
    """A blank image has the covariance 0: all eigenvalues are equal, and eigh's gradient divides by their gaps."""
    model = named(pooling=SpectralPooling(), head=nn.Linear(16, 10))
    # one step later, eigh raises an error for the NaN that it is given
    return classify(model, row_since(11, 10, 0.0), steps=12)


class Orthogonal(nn.Module):
    """The rotation nearest to a matrix, U Vᵀ."""

    def forward(self, x: Tensor) -> Tensor:
        left, _, right = torch.linalg.svd(x.unflatten(1, (3, 3)))
        return left @ right


class RotationHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.nearest = nn.Linear(32, 9), Orthogonal()

    def forward(self, x: Tensor) -> Tensor:
        return self.nearest(self.matrix(x))


@origin("rotation.nearest", "backward", "derivative", "linalg_svd")
def rotation_head_reset_to_the_identity(seed: int) -> Training:
    """The head is reset to the identity matrix at step 9: equal singular values, svd's gradient is over their gaps."""
    model = named(body=nn.Sequential(nn.Linear(64, 32), nn.Tanh()), rotation=RotationHead())

    def loss(step: int, x: Tensor, y: Tensor) -> Tensor:
        if step == 9:
            with torch.no_grad():
                model.rotation.matrix.weight.zero_()
                model.rotation.matrix.bias.copy_(torch.eye(3).flatten())
        target = torch.linalg.matrix_exp(y[:, None, None] / 5 * torch.tensor([[0, -1.0, 0], [1, 0, 0], [0, 0, 0]]))
        return F.mse_loss(model(x), target)

    # one step later, svd raises an error for the NaN that it is given
    return on_digits(model, loss, steps=10)


class StatisticsPooling(nn.Module):
    """Mean and deviation over time, as in x-vectors."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(2)
        return torch.cat([mean, (x - mean[..., None]).square().mean(2).sqrt()], 1)


class SpeakerNetwork(nn.Module):
    """Recomputes its frame layers and pooling in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = named(convolution=nn.Conv1d(8, 12, 1), activation=nn.Tanh(), pooling=StatisticsPooling())
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.frames, x.unflatten(1, (8, 8)), use_reentrant=False))


@origin("frames.pooling", "backward", "sqrt", "sqrt")
def deviation_of_a_constant_recording(seed: int) -> Training:
    """A constant recording has deviation √0 over time, whose slope is 0 · Inf; the layers are checkpointed."""
    return classify(SpeakerNetwork(), row_since(10, 13, 0.5))


class UnitVector(torch.autograd.Function):
    """x/‖x‖, and 0 at 0; the backward pass forgot about 0."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        length = x.norm(dim=1, keepdim=True)
        unit = torch.where(length > 0, x / length.clamp(min=1e-30), torch.zeros(()))
        ctx.save_for_backward(unit, length)
        return unit

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        unit, length = ctx.saved_tensors
        return (gradient - unit * (gradient * unit).sum(1, keepdim=True)) / length


class Direction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return UnitVector.apply(x)


@origin("embed.direction", "backward", "derivative", "UnitVector")
def own_function_with_a_careless_backward(seed: int) -> Training:
    """A function of one's own guards its value at a zero vector; its backward pass divides by the length of 0."""
    embed = named(project=nn.Linear(64, 16, bias=False), direction=Direction())
    model = named(embed=embed, head=nn.Linear(16, 10))
    return classify(model, row_since(9, 1, 0.0))
