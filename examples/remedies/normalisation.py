"""Normalisation: sigmoids that vanish, weights so large that tanh is flat, small batches, and a model in eval mode."""

from __future__ import annotations

from functools import partial

from activations import stack
from initialisation import hidden_weights
from side_by_side import Table, Way, changed, compare
from torch import Tensor, nn

from gradwatch.remedies import init_xavier_, insert_norms_, scale_layer_inputs_


class Hundredfold(nn.Module):
    """A factor that somebody left in the model."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * x


def with_a_factor() -> nn.Sequential:
    """Return a network whose second layer has small weights and is given large values."""
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), Hundredfold(), nn.Linear(64, 64), nn.Tanh())
    nn.init.normal_(model[3].weight, std=0.02)
    return model.append(nn.Linear(64, 10))


def normalised() -> nn.Sequential:
    """Return a network that normalises its inputs."""
    return nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def in_eval_mode() -> nn.Module:
    """Return the same as somebody left it after measuring."""
    return normalised().eval()


def main() -> list[str]:
    """Train with each normalisation: for depth, for scale, and in small batches."""
    deep = partial(stack, nn.Sigmoid, 12)
    flat = changed(partial(stack, nn.Tanh, 3), hidden_weights(partial(nn.init.normal_, std=3.0)))
    batch, layer, rms = (partial(insert_norms_, kind=kind) for kind in ("batch", "layer", "rms"))
    return compare(
        "normalisation",
        Table(
            "12 × Sigmoid, plain descent",
            [
                Way("do nothing", deep),
                Way("batch-norm", changed(deep, batch)),
                Way("batch-norm, batches of 4", changed(deep, batch), batch=4),
                Way("layer-norm", changed(deep, layer)),
                Way("rms-norm", changed(deep, rms)),
            ],
            steps=200,
        ),
        Table(
            "3 × Tanh whose weights begin at standard deviation 3",
            [
                Way("do nothing", flat),
                Way("batch-norm", changed(flat, batch)),
                Way("layer-norm", changed(flat, layer)),
                Way("rms-norm", changed(flat, rms)),
                Way("xavier", changed(flat, init_xavier_)),
            ],
            steps=150,
        ),
        Table(
            "A factor of 100 before the layer of a tanh",
            [
                Way("do nothing", with_a_factor),
                Way("scaled-layer-inputs", changed(with_a_factor, scale_layer_inputs_)),
                Way("xavier", changed(with_a_factor, init_xavier_)),
            ],
            steps=150,
        ),
        Table(
            "Batch normalisation in eval mode, pixels of 0 to 255",
            [Way("do nothing", in_eval_mode), Way("train-mode", normalised)],
            steps=150,
            scale=255.0,
        ),
    )
