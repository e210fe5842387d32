"""Half precision: small gradients that float16 cannot hold."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="loss-scaling",
        title="Loss scaling",
        advice="loss scaling (torch.amp.GradScaler), or bfloat16, which needs none",
        applies="vanishing, stalled or nonfinite under float16; no help where the forward pass itself overflows",
        kinds=("vanishing", "nonfinite", "stalled"),
        why="∇(S·l) = S·∇l: what lay below float16's smallest 6·10⁻⁸ is lifted above it, and divided by S in float32",
        source="Micikevicius et al. 2017, Mixed precision training, arXiv:1710.03740",
        code="""\
model.float()  # half precision for what is computed, not for the weights
scaler = torch.amp.GradScaler("cpu")  # on a GPU "cuda", here and below
watcher = gradwatch.watch(model, optimizer, scaler=scaler)
with torch.autocast("cpu", dtype=torch.float16):
    loss = loss_fn(model(x), y)
scaler.scale(loss).backward()
scaler.step(optimizer)
scaler.update()
""",
        cost="one multiplication; a step skipped whenever the scale was too high",
    ),
)
