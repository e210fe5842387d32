"""Residual connections: the gradient has a way around each layer."""

from gradwatch.remedies.pasted import BLOCKS, LAYERS
from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="residual",
        title="Residual connections",
        advice="residual connections around {where}",
        applies="vanishing in deep stacks of layers of one width",
        kinds=("vanishing", "dead", "saturated", "stalled"),
        why="y = x + f(x), ∂y/∂x = 1 + f′(x): a product over L layers contains a path of factor 1, "
        "however small each f′ is",
        source="He et al. 2015, arXiv:1512.03385; in this order: He et al. 2016, arXiv:1603.05027",
        code="""\
class Residual(nn.Sequential):
    def forward(self, x):
        made = super().forward(x)
        return x + made if made.shape == x.shape else made


"""
        + LAYERS
        + BLOCKS
        + """\
begun = [stack[start] for stack, start, _ in blocks]
for name in layers[:-1]:
    if model.get_submodule(name) not in begun:
        model.set_submodule(name, Residual(model.get_submodule(name)))
for stack, start, end in blocks:
    stack[start] = Residual(*stack[start : end + 1])
    for place in range(start + 1, end + 1):
        stack[place] = nn.Identity()
""",
        cost="one addition a block; the widths must agree; activations grow with depth unless branches are scaled",
    ),
)
