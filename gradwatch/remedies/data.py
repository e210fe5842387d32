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
    if not tensors[0].is_floating_point():  # classes, token ids
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
        applies="nonfinite from the input of the model",
        kinds=("exploding", "nonfinite"),
        why="x·w with one NaN is NaN, and one sample's NaN is every weight's after the mean over the batch",
        source="–",
        code="""\
def largest(batch):
    return torch.stack([tensor.abs().max() for tensor in batch if tensor.is_floating_point()]).max()


sizes = torch.stack([largest(batch) for batch in batches])
usual = sizes[sizes.isfinite()].median()
batches = [batch for batch, size in zip(batches, sizes) if size <= 100 * usual]  # what is NaN is not
""",
        cost='one pass over the data, once; on_nonfinite="skip" loses a whole batch instead',
    ),
)
