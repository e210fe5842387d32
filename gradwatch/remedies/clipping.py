"""Clipping: an update is never larger than allowed."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="clip-norm",
        title="Clip gradients by norm",
        advice="clip gradients by norm: clip=1.0",
        applies="exploding or unstable; recurrent networks above all; no help against NaN made by one "
        "operation, or vanishing",
        kinds=("vanishing", "exploding", "nonfinite", "dead", "saturated", "unstable"),
        why="g ← g · min(1, c/‖g‖): the direction stays, and no update of plain descent is longer than lr · c",
        source="Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063",
        code="""\
watcher = gradwatch.watch(model, optimizer, clip=1.0)

# or without gradwatch, between loss.backward() and optimizer.step():
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
""",
        cost="one pass over the gradients, which watching makes anyway; a threshold to choose",
    ),
    Remedy(
        name="clip-value",
        title="Clip gradients by value",
        advice="clip each gradient entry: clip=gradwatch.clip.by_value(0.1)",
        applies="exploding where a few entries are huge (rare embedding rows, outliers)",
        kinds=("exploding", "nonfinite", "unstable"),
        why="gᵢ ← max(−c, min(c, gᵢ)): each entry for itself, so that the direction changes",
        source="Mikolov 2012, Statistical language models based on neural networks",
        code="""\
watcher = gradwatch.watch(model, optimizer, clip=gradwatch.clip.by_value(0.1))
""",
        cost="one more pass over the gradients; the direction is no longer that of descent",
    ),
    Remedy(
        name="clip-adaptive",
        title="Adaptive clipping",
        advice='clip spikes against the run\'s own history: clip="auto"',
        applies="exploding by rare spikes, or where nobody knows a threshold; the first step is never clipped",
        kinds=("exploding", "nonfinite", "unstable"),
        why="a norm with z = (‖g‖ − μ)/σ > 2.5 is brought down to μ + σ · 2.5²/z, with running μ and σ",
        source="Kumar et al. 2025, ZClip, arXiv:2504.02507; by unit: Brock et al. 2021, arXiv:2102.06171",
        code="""\
watcher = gradwatch.watch(model, optimizer, clip="auto")
""",
        cost="as by norm; no threshold",
    ),
)
