"""Normalisation: each layer hands on values of unit variance."""

from gradwatch.findings import KINDS
from gradwatch.remedies.pasted import normalised
from gradwatch.remedies.remedy import Remedy

_BATCH_NORM = """\
class OfRows(nn.BatchNorm1d):
    def forward(self, x):  # what is (N, time, features) stays as it is: layer normalisation is for that
        return super().forward(x) if x.ndim == 2 else x


def batch_norm(layer):
    if isinstance(layer, nn.Linear):
        return OfRows(layer.out_features)
    return getattr(nn, f"BatchNorm{layer.weight.ndim - 2}d")(layer.out_channels)


"""

REMEDIES = (
    Remedy(
        name="batch-norm",
        title="Batch normalisation",
        advice="batch normalisation ({batch_norm}) {between}",
        applies="vanishing, saturated, exploding or unstable; convolutions and linear layers, with "
        "batches of 16 or more; behind linear layers of (N, time, features) layer normalisation",
        kinds=KINDS,
        why="y = γ(x − μ_B)/σ_B + β over the batch: whatever the weights' scale, inputs of the next "
        "function have variance γ²",
        source="Ioffe and Szegedy 2015, arXiv:1502.03167",
        code=normalised("batch_norm(layer)", before=_BATCH_NORM),
        cost="two vectors a layer; samples of a batch depend on one another; train() and eval() differ",
    ),
    Remedy(
        name="layer-norm",
        title="Layer normalisation",
        advice="layer normalisation {between}",
        applies="vanishing, saturated or exploding; transformers, recurrent networks, small batches",
        kinds=KINDS,
        why="y = γ(x − μ)/σ + β over the units of one sample: the same at any batch size",
        source="Ba, Kiros and Hinton 2016, arXiv:1607.06450",
        code=normalised(
            "nn.LayerNorm(layer.out_features) if isinstance(layer, nn.Linear) else nn.GroupNorm(1, layer.out_channels)"
        ),
        cost="two vectors a layer, and a reduction per sample",
    ),
    Remedy(
        name="rms-norm",
        title="RMS normalisation",
        advice="RMS normalisation {between}",
        applies="as layer normalisation, in transformers; weaker before a sigmoid, since the mean stays",
        kinds=KINDS,
        why="y = γx/√(mean(x²)): the scale alone is taken out",
        source="Zhang and Sennrich 2019, arXiv:1910.07467",
        code=normalised("nn.RMSNorm(layer.out_features)", "nn.Linear"),
        cost="one vector a layer, and a reduction per sample",
    ),
)
