"""Residual connections: the gradient has a way around each layer."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="residual",
        title="Residual connections",
        advice="residual connections around {where}",
        applies="vanishing in deep stacks of layers of one width",
        why="y = x + f(x), ∂y/∂x = 1 + f′(x): a product over L layers contains a path of factor 1, "
        "however small each f′ is",
        source="He et al. 2015, arXiv:1512.03385; in this order: He et al. 2016, arXiv:1603.05027",
        code="""\
class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


blocks = (Residual(nn.Sequential(nn.Linear(32, 32), nn.Sigmoid())) for _ in range(8))
cured = nn.Sequential(nn.Linear(20, 32), *blocks, nn.Linear(32, 5))
""",
        cost="one addition a block; the widths must agree; activations grow with depth unless branches are scaled",
    ),
)
