"""Activation functions that let the gradient through."""

from gradwatch.remedies.pasted import BEFORE, BLOCKS, KINDS, activation, drawn
from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="relu",
        title="ReLU",
        advice="ReLU in place of {functions}, with He initialisation",
        applies="vanishing or saturated, behind a sigmoid or tanh in a stack of several layers",
        kinds=("vanishing", "saturated", "stalled"),
        why="f(x) = max(0, x), f′(x) = 1 for x > 0: L layers multiply the gradient by 1 where they are "
        "active; L sigmoids "
        "by 0.25ᴸ at most",
        source="Glorot, Bordes and Bengio 2011, Deep sparse rectifier neural networks",
        code=activation("nn.ReLU()", "F.relu"),
        cost="none; units may die, and a deep stack still fades unless its weights are He's (`he`)",
    ),
    Remedy(
        name="leaky-relu",
        title="Leaky ReLU",
        advice="leaky ReLU in place of {functions}: its slope is never 0",
        applies="dead, behind a ReLU; vanishing, behind a sigmoid or tanh",
        kinds=("vanishing", "nonfinite", "dead", "saturated", "stalled"),
        why="f(x) = max(αx, x), f′(x) ≥ α > 0: a unit far below zero still passes on α times its gradient",
        source="Maas, Hannun and Ng 2013, Rectifier nonlinearities improve neural network acoustic models",
        code=activation("nn.LeakyReLU(0.1)", "F.leaky_relu(x, 0.1)"),
        cost="none",
    ),
    Remedy(
        name="prelu",
        title="PReLU",
        advice="PReLU in place of {functions}: it learns the slope below zero",
        applies="dead, behind a ReLU, where a slope of 0.1 is too little; convolutional networks",
        kinds=("vanishing", "dead"),
        why="f(x) = max(0, x) + a·min(0, x) with a learnt, 0.25 at first; ∂f/∂a = min(0, x)",
        source="He et al. 2015, Delving deep into rectifiers, arXiv:1502.01852",
        code=BEFORE + activation("nn.PReLU().to(next(model.parameters()))", "an nn.PReLU"),
        cost="a parameter per function or per unit; leave it out of weight decay",
    ),
    Remedy(
        name="elu",
        title="ELU",
        advice="ELU in place of {functions}: smooth, with a mean near zero",
        applies="dead, behind a ReLU; vanishing in a stack of ReLUs",
        kinds=("vanishing", "dead", "saturated"),
        why="f(x) = x for x > 0, α(eˣ − 1) below; f′ = f + α there: activations average near 0, so that "
        "the next layer sees "
        "no bias shift",
        source="Clevert, Unterthiner and Hochreiter 2015, arXiv:1511.07289",
        code=activation("nn.ELU()", "F.elu"),
        cost="an exponential an entry",
    ),
    Remedy(
        name="selu",
        title="SELU, with its initialisation",
        advice="SELU in place of {functions}, weights of variance 1/fan_in, no normalisation",
        applies="vanishing in a plain stack of linear layers that cannot have normalisation",
        kinds=("vanishing", "dead", "saturated", "stalled"),
        why="f(x) = λ·ELU(x) with λ = 1.0507, α = 1.6733: mean 0 and variance 1 are a fixed point of the layer if "
        "Var(w) = 1/fan_in",
        source="Klambauer et al. 2017, Self-normalizing neural networks, arXiv:1706.02515",
        code=activation("nn.SELU()", "F.selu")
        + drawn('nn.init.kaiming_normal_(weight, nonlinearity="linear")  # variance 1/fan_in'),
        cost="an exponential an entry; inputs must be standardised, dropout must be AlphaDropout",
    ),
    Remedy(
        name="gelu",
        title="GELU (or SiLU)",
        advice="GELU or SiLU in place of {functions}",
        applies="vanishing or dead; the usual choice in transformers",
        kinds=("vanishing", "dead", "saturated"),
        why="f(x) = x·Φ(x): steep for x > 0 like ReLU, and f′(x) is 0 nowhere but at one point, so that few units die",
        source="Hendrycks and Gimpel 2016, arXiv:1606.08415",
        code=activation("nn.GELU()", "F.gelu"),
        cost="an error function an entry",
    ),
    Remedy(
        name="maxout",
        title="Maxout",
        advice="maxout in place of {functions}: the largest of k linear functions never saturates",
        applies="vanishing or dead, in linear layers that may grow k times",
        kinds=("vanishing", "dead", "saturated"),
        why="f(x) = maxⱼ(wⱼ·x + bⱼ): f′ is one of the wⱼ, so that some piece always passes the gradient",
        source="Goodfellow et al. 2013, Maxout networks, arXiv:1302.4389",
        code=BEFORE
        + """\
import copy


class Maxout(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.one, self.other = layer, copy.deepcopy(layer)
        self.other.reset_parameters()

    def forward(self, x):
        return torch.maximum(self.one(x), self.other(x))


"""
        + KINDS
        + BLOCKS
        + """\
for stack, start, end in blocks:
    stack[start], stack[end] = Maxout(stack[start]), nn.Identity()
""",
        cost="k times the weights and the multiplications",
    ),
)
