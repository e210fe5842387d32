"""A two-layer network with gradients derived by hand: without autograd and without an optimizer.

    y_pred = max(x·w1, 0)·w2        loss = Σ (y_pred − y)²

Trained at five learning rates: one that learns, one that kills most units, and three that diverge. The same network
follows with autograd and ``nn.Module``, and both must report the same.
"""

import logging

import torch
from torch import Tensor, nn

import gradwatch
from gradwatch import Finding

SAMPLES, INPUTS, HIDDEN, OUTPUTS = 64, 1000, 100, 10
STEPS = 500
LEARNING_RATES = (1e-6, 3e-6, 1e-5, 1e-4, 1e-3)


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (64, 1000) inputs, (64, 10) targets and the two weights, everything standard normal."""
    torch.manual_seed(seed)
    x, y = torch.randn(SAMPLES, INPUTS), torch.randn(SAMPLES, OUTPUTS)
    return x, y, torch.randn(INPUTS, HIDDEN), torch.randn(HIDDEN, OUTPUTS)


def train_by_hand(learning_rate: float, seed: int = 0) -> tuple[float, list[Finding]]:
    """Descend along gradients that are written out below; return the last loss and the findings."""
    x, y, w1, w2 = problem(seed)
    with gradwatch.watch_tensors({"w1": w1, "w2": w2}) as watcher:
        for _ in range(STEPS):
            hidden = x @ w1
            active = hidden.clamp(min=0)
            error = active @ w2 - y
            loss = error.square().sum()

            grad_output = 2 * error  # dloss/dy_pred
            grad_w2 = active.T @ grad_output
            grad_hidden = (grad_output @ w2.T).masked_fill(hidden < 0, 0)  # where the clamp is active
            grad_w1 = x.T @ grad_hidden

            watcher.step(grads={"w1": grad_w1, "w2": grad_w2}, loss=loss)
            w1 -= learning_rate * grad_w1
            w2 -= learning_rate * grad_w2
    return loss.item(), watcher.findings


class TwoLayerNet(nn.Module):
    """The same network as a module, with weights ``w1`` and ``w2``."""

    def __init__(self, w1: Tensor, w2: Tensor) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(w1), nn.Parameter(w2)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w1).clamp(min=0) @ self.w2


def train_by_autograd(learning_rate: float, seed: int = 0) -> tuple[float, list[Finding]]:
    """Train the same network with ``nn.Module`` and ``torch.optim.SGD``; return the same."""
    x, y, w1, w2 = problem(seed)
    model = TwoLayerNet(w1, w2)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(STEPS):
            loss = (model(x) - y).square().sum()
            watcher.observe_loss(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item(), watcher.findings


def summary(findings: list[Finding]) -> list[tuple[str, str, tuple[str, ...], int]]:
    """Return kind, layer, layers and first step of each finding.

    Both ways agree, but for an update that moves a weight too far: a loop by hand shows it one step later.
    """
    return [(finding.kind, finding.layer, finding.layers, finding.step) for finding in findings]


def main() -> None:
    logging.getLogger("gradwatch").addHandler(logging.NullHandler())  # printed below instead
    for learning_rate in LEARNING_RATES:
        loss, by_hand = train_by_hand(learning_rate)
        _, by_autograd = train_by_autograd(learning_rate)
        print(f"\nlearning rate {learning_rate:g}: loss {loss:.4g} after {STEPS} steps")
        for finding in by_hand:
            print(f"  {finding.kind} since step {finding.step}, raised at {finding.raised_step}: {finding.message}")
        if not by_hand:
            print("  no finding")
        if summary(by_hand) != summary(by_autograd):
            raise SystemExit(f"autograd reports otherwise: {summary(by_autograd)}")
    print("\nBy hand and with autograd: the same kinds, layers and onsets at every learning rate.")


if __name__ == "__main__":
    main()
