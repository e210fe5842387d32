"""Normalisation: each layer hands on values of unit variance."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="batch-norm",
        title="Batch normalisation",
        advice="batch normalisation ({batch_norm}) {between}",
        applies="vanishing, saturated, exploding or unstable; convolutions and linear layers, with "
        "batches of 16 or more",
        why="y = γ(x − μ_B)/σ_B + β over the batch: whatever the weights' scale, inputs of the next "
        "function have variance γ²",
        source="Ioffe and Szegedy 2015, arXiv:1502.03167",
        code="""\
cured = nn.Sequential(nn.Linear(20, 32, bias=False), nn.BatchNorm1d(32), nn.Sigmoid(), nn.Linear(32, 5))
cured.train()  # and cured.eval() to use it: running averages replace the batch's
""",
        cost="two vectors a layer; samples of a batch depend on one another; train() and eval() differ",
    ),
    Remedy(
        name="layer-norm",
        title="Layer normalisation",
        advice="layer normalisation {between}",
        applies="vanishing, saturated or exploding; transformers, recurrent networks, small batches",
        why="y = γ(x − μ)/σ + β over the units of one sample: the same at any batch size",
        source="Ba, Kiros and Hinton 2016, arXiv:1607.06450",
        code="""\
cured = nn.Sequential(nn.Linear(20, 32), nn.LayerNorm(32), nn.Sigmoid(), nn.Linear(32, 5))
""",
        cost="two vectors a layer, and a reduction per sample",
    ),
    Remedy(
        name="rms-norm",
        title="RMS normalisation",
        advice="RMS normalisation {between}",
        applies="as layer normalisation, in transformers; weaker before a sigmoid, since the mean stays",
        why="y = γx/√(mean(x²)): the scale alone is taken out",
        source="Zhang and Sennrich 2019, arXiv:1910.07467",
        code="""\
cured = nn.Sequential(nn.Linear(20, 32), nn.RMSNorm(32), nn.Tanh(), nn.Linear(32, 5))
""",
        cost="one vector a layer, and a reduction per sample",
    ),
)
