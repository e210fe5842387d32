"""Redesign: a smaller task for the gradient."""

from gradwatch.remedies.pasted import BLOCKS, KINDS
from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="fewer-layers",
        title="Fewer layers",
        advice="fewer layers",
        applies="vanishing or exploding along depth, where the task does not need the depth",
        kinds=("vanishing", "exploding", "dead", "saturated"),
        why="‖∂L/∂x₀‖ ≤ Πₗ‖Jₗ‖·‖∂L/∂x_L‖: with L halved, a factor qᴸ becomes its square root",
        source="Bengio, Simard and Frasconi 1994, Learning long-term dependencies with gradient descent is difficult",
        code=KINDS
        + BLOCKS
        + """\
same = [block for block in blocks if len(set(block[0][block[1]].weight.shape[:2])) == 1]  # as wide as what it is given
for stack, start, end in same[1::2]:
    for place in range(start, end + 1):
        stack[place] = nn.Identity()
""",
        cost="less to compute, and less that it can express",
    ),
    Remedy(
        name="smaller-batches",
        title="Smaller batches",
        advice="smaller batches (where the loss is a sum over them)",
        applies="exploding or unstable, if the loss is summed over the batch; hardly any help where it is averaged",
        kinds=("exploding", "nonfinite", "unstable"),
        why="∇Σᵢ lᵢ = B·mean(∇l): a sum makes the step B times as long; of a mean only the noise changes, by 1/√B",
        source="Goyal et al. 2017 (the rate goes with the batch), arXiv:1706.02677",
        code="""\
from torch.utils._pytree import tree_leaves, tree_map  # for tuples and mappings of tensors


def parts(batch):  # four; or DataLoader(…, batch_size=… // 4)
    length = len(tree_leaves(batch)[0])
    size = -(-length // 4)
    return [tree_map(lambda tensor: tensor[start : start + size], batch) for start in range(0, length, size)]


batches = [part for batch in batches for part in parts(batch)]
""",
        cost="more steps an epoch, less of the machine used, noisier gradients",
    ),
    Remedy(
        name="weight-regularisation",
        title="Weight regularisation",
        advice="weight regularisation: loss + α‖W‖² (optimizer's weight_decay)",
        applies="exploding where weights grow slowly over the run; no help within the few steps of a divergence",
        kinds=("exploding", "dead", "saturated", "unstable"),
        why="loss + α‖W‖²: each update shrinks W by 2·lr·α, and with it the factor ‖W‖ that every layer adds",
        source="Krogh and Hertz 1991; for RNNs Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063",
        code="""\
weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
loss = loss + 1e-3 * sum(weight.square().sum() for weight in weights)  # before loss.backward()
""",
        cost="one pass over the weights; another α to choose",
    ),
)
