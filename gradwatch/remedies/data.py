"""What goes in: inputs, targets and the rows that are broken."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="scaled-inputs",
        title="Scaled inputs and targets",
        advice="inputs (and targets of a regression) scaled to mean 0 and variance 1",
        applies="exploding, saturated or dead in the first layers; unstable regressions",
        why="∂²L/∂W₁² ∝ E[x²]: inputs 16 times as large allow 1/256 of the learning rate",
        source="LeCun et al. 1998, Efficient backprop",
        code="""\
mean, spread = inputs.mean(0), inputs.std(0).clamp(min=1e-6)  # of the training half alone
scaled = (inputs - mean) / spread
""",
        cost="once over the data; the same figures must travel with the model",
    ),
    Remedy(
        name="clean-data",
        title="Clean data",
        advice="leave out the broken rows of the batch",
        applies="nonfinite from the input of the model",
        why="x·w with one NaN is NaN, and one sample's NaN is every weight's after the mean over the batch",
        source="–",
        code="""\
inputs[3, 7] = float("nan")
is_whole = torch.isfinite(inputs).all(1)
assert (~is_whole).nonzero().flatten().tolist() == [3]  # which ones: look where they come from
inputs, targets = inputs[is_whole], targets[is_whole]
""",
        cost='one pass over the data, once; on_nonfinite="skip" loses a whole batch instead',
    ),
)
