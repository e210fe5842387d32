"""What goes in: inputs, targets and the rows that are broken."""

from gradwatch.findings import KINDS
from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="scaled-inputs",
        title="Scaled inputs and targets",
        advice="inputs (and targets of a regression) scaled to mean 0 and variance 1",
        applies="exploding, saturated or dead in the first layers; unstable regressions",
        kinds=KINDS,
        why="∂²L/∂W₁² ∝ E[x²]: inputs 16 times as large allow 1/256 of the learning rate",
        source="LeCun et al. 1998, Efficient backprop",
        code="""\
def scaled(tensors, least=0.0):
    if not all(torch.is_tensor(tensor) and tensor.is_floating_point() for tensor in tensors):  # classes, token ids
        return tensors
    rows = torch.cat([tensor if tensor.ndim == 2 else tensor.flatten() for tensor in tensors])  # of images one scale
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    largest = deviation.max().clamp(min=1e-12)
    deviation = deviation.where(deviation > 1e-3 * largest, largest)  # of what never changes
    is_small = max(mean.abs().max(), largest) <= least
    return tensors if is_small else [(tensor - mean) / deviation for tensor in tensors]


inputs, targets = zip(*batches)  # to train on; what comes later needs the same figures
batches = list(zip(scaled(inputs), scaled(targets, least=3.0)))  # outputs are then in the unit of the scaled targets
""",
        cost="once over the data; the same figures must travel with the model",
    ),
    Remedy(
        name="clean-data",
        title="Clean data",
        advice="leave out the broken rows of the batch",
        applies="nonfinite from the input of the model, or from a batch of which there is no loss",
        kinds=("exploding", "nonfinite"),
        why="x·w with one NaN is NaN, and one sample's NaN is every weight's after the mean over the batch",
        source="–",
        code="""\
from torch.utils._pytree import tree_leaves, tree_map  # for tuples and mappings of tensors


def largest(batch):  # entry of each row; NaN where it holds one
    real = [tensor[:, None].flatten(1) for tensor in tree_leaves(batch) if tensor.is_floating_point()]
    return torch.cat(real, 1).abs().amax(1).float()


sizes = [largest(batch) for batch in batches]
finite = [rows[rows.isfinite()] for rows in sizes]
usual = torch.stack([rows.max() for rows in finite if len(rows)]).quantile(0.5)  # of the median batch
wild = 100 * usual if usual else torch.inf
sound = [rows.isfinite() & (rows <= wild) for rows in sizes]
batches = [tree_map(lambda tensor: tensor[keep], batch) for batch, keep in zip(batches, sound) if keep.any()]
with torch.no_grad():  # and no batch of which an untrained model has no loss: of labels that are all ignored, say
    model.eval()
    batches = [(x, y) for x, y in batches if loss_fn(model(x), y).isfinite()]
    model.train()
""",
        cost='one pass over the data, once; on_nonfinite="skip" loses a whole batch instead',
    ),
)
