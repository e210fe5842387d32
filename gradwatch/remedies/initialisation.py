"""Initialisation: neither signal nor gradient changes its size from layer to layer."""

from gradwatch.findings import KINDS
from gradwatch.remedies.pasted import drawn
from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="xavier",
        title="Xavier initialisation",
        advice="Xavier initialisation of {where}, biases 0",
        applies="vanishing, saturated or exploding from the start, behind tanh, softsign or nothing; no "
        "help to deep sigmoids",
        kinds=KINDS,
        why="Var(w) = 2/(fan_in + fan_out): between what keeps the signal and what keeps the gradient, where f′(0) = 1",
        source="Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks",
        code=drawn("nn.init.xavier_uniform_(weight)"),
        cost="none",
    ),
    Remedy(
        name="he",
        title="He initialisation",
        advice="He initialisation of {where}, biases 0",
        applies="vanishing or exploding from the start in deep stacks of ReLUs; dead from the start",
        kinds=KINDS,
        why="Var(w) = 2/fan_in: a ReLU halves the mean square, and 2 makes up for it. PyTorch's own "
        "nn.Linear has 1/(3·fan_in), "
        "so that each ReLU layer hands on a sixth of the mean square",
        source="He et al. 2015, arXiv:1502.01852",
        code=drawn('nn.init.kaiming_normal_(weight, nonlinearity="relu")', "nn.init.xavier_normal_(weight)"),
        cost="none",
    ),
    Remedy(
        name="orthogonal",
        title="Orthogonal initialisation",
        advice="orthogonal initialisation of {where}",
        applies="vanishing along time (recurrent weights) or depth (tanh, linear); no help where updates are too large",
        kinds=("vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled"),
        why="WᵀW = I: ‖Wᵀg‖ = ‖g‖ for every g, so that T steps keep the norm where λᵀ would take or blow it up",
        source="Saxe, McClelland and Ganguli 2013, arXiv:1312.6120",
        code="""\
rectifies = any(isinstance(part, (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU)) for part in model.modules())
gain = 2**0.5 if rectifies else 1.0
"""
        + drawn("nn.init.orthogonal_(weight, gain)", "nn.init.orthogonal_(weight)"),
        cost="a QR decomposition per weight, once",
    ),
    Remedy(
        name="depth-scaled",
        title="Initialisation scaled by depth",
        advice="the last weight of each residual branch divided by √(2·number of blocks), or begun at 0",
        applies="exploding or unstable in residual networks and transformers without normalisation on the main path",
        kinds=("vanishing", "exploding", "nonfinite", "stalled"),
        why="Var(x_L) = Var(x₀)·(1 + s²)ᴸ: s = 1/√L keeps it below e, s = 1 makes it 2ᴸ",
        source="Radford et al. 2019 (GPT-2); Zhang, Dauphin and Ma 2019, Fixup, arXiv:1901.09321",
        code=drawn("nn.init.xavier_uniform_(weight)")
        + """\
same = [part for part in model.modules() if type(part) in kinds and part.weight.shape[0] == part.weight.shape[1]]
for part in same:  # or, where a residual branch has several, its last alone
    part.weight.data /= len(same) ** 0.5
""",
        cost="none",
    ),
)
