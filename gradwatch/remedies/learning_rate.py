"""The learning rate: how far an update goes."""

from gradwatch.findings import KINDS
from gradwatch.remedies.remedy import Remedy

__all__ = ["REMEDIES", "multiplied"]


def multiplied(factor: float) -> str:
    """The code that multiplies every learning rate by ``factor``."""
    return f"""\
for group in optimizer.param_groups:  # before a scheduler is made, which goes by the rate that it finds
    group["lr"] *= {factor:g}
"""


REMEDIES = (
    Remedy(
        name="lower-learning-rate",
        title="A lower learning rate",
        advice="a lower learning rate{lower}",
        applies="exploding, unstable, dead, or NaN after the loss grew",
        kinds=KINDS,
        why="w ← w − lr·g converges on a curvature λ for lr < 2/λ, and grows by |1 − lr·λ| a step beyond it",
        source="LeCun et al. 1998, Efficient backprop",
        code=multiplied(0.1),
        cost="more steps to the same loss",
    ),
    Remedy(
        name="higher-learning-rate",
        title="A higher learning rate",
        advice="a higher learning rate{higher}; look first whether its schedule begins at 0, whether the "
        "optimizer was given "
        "this model's parameters, and whether the loss depends on the output (no detach, no argmax)",
        applies="stalled; no help against vanishing",
        kinds=("vanishing", "dead", "saturated", "stalled"),
        why="the update |Δw| = lr·|g|: below 2⁻²⁴·|w| it is rounded away in float32, and 2⁻⁹·|w| in bfloat16",
        source="Smith 2015 (to find the range), arXiv:1506.01186",
        code=multiplied(10),
        cost="none; too far is exploding",
    ),
    Remedy(
        name="warm-up",
        title="Learning rate warm-up",
        advice="a learning rate that warms up over the first {warm_up} steps",
        applies="exploding or unstable in the first steps only: Adam, transformers, large batches; no "
        "help where the rate itself "
        "is too high",
        kinds=("exploding", "nonfinite", "dead", "saturated", "unstable"),
        why="lr(t) = lr·min(1, t/T): curvature is highest, and Adam's averages least certain, in the first steps",
        source="Goyal et al. 2017, arXiv:1706.02677; Liu et al. 2019, arXiv:1908.03265",
        code="""\
warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
# and after each optimizer.step(): warm_up.step()
""",
        cost="T slower steps",
    ),
)
