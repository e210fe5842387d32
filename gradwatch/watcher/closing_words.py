"""Say, once a run is over, what its loop should have handed over, and what was not measured."""

from __future__ import annotations

from gradwatch.event_files.run import Coverage

__all__ = ["misplaced_clipping", "missing", "unjudged", "unmeasured"]

MISPLACED = 20  # updates in a row: no accident


def missing(steps: int, *, saw_loss: bool, has_noted_faults: bool) -> str | None:
    """Return a line on what the loop did not show; None where it has shown everything.

    Args:
        steps: how many there were.
        saw_loss: whether any of them had a loss.
        has_noted_faults: whether there were faults of ours, because of which something may be missing.
    """
    if has_noted_faults:
        return None if steps else "no step was counted, because of the fault in gradwatch itself logged above."
    if not steps:
        return (
            "no step was seen. Was the optimizer given to watch() the one that steps, and does it hold the parameters "
            "of this model, not those of a copy? A loop without a torch.optim optimizer calls watcher.step() before "
            "each update, with grads={name: gradient} if they come from torch.autograd.grad or torch.func."
        )
    if not saw_loss:
        return "no loss was seen, so the rules that need one did not run. Call watcher.observe_loss(loss) in the loop."
    return None


def unmeasured(coverage: Coverage) -> str | None:
    """Return a line on the steps that were not measured; None where all were."""
    if not coverage.unmeasured:
        return None
    what, whom = f"{coverage.unmeasured} of {coverage.steps} steps were not", "them"
    if not coverage.measured:
        what, whom = f"none of the {coverage.steps} steps was", "this run"
    return f"{what} measured, so nothing is known of {whom}: no findings there does not mean that all is well."


def unjudged(coverage: Coverage) -> str | None:
    """Return a line on the rules that failed; None where none did."""
    if not coverage.unjudged:
        return None
    words = coverage.unjudged_in_words()
    return f"{words}, because of the fault in gradwatch itself logged above: it may be there all the same."


def misplaced_clipping(updates: int, *, is_late: bool) -> str | None:
    """Return a line on clipping that has no effect because of its place in the loop; None where there is none.

    Args:
        updates: in a row, at the end of the run, that were clipped at the wrong time only.
        is_late: it came after ``step()``; otherwise before ``backward()``.
    """
    if updates < MISPLACED:
        return None
    where = "after step()" if is_late else "before backward()"
    return (
        f"clip_grad_norm_ was called {where} for the last {updates:,} updates, where it has no effect: their gradients "
        "were not clipped. Call it between backward() and step()."
    )
