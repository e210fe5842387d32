"""Train four networks on real data, one healthy and three sick, for ``gradwatch demo``.

The networks learn scikit-learn's handwritten digits: 1,797 images of 8 × 8, which come with the package. Each network
gets a table of findings and a TensorBoard file.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import gradwatch
from gradwatch.findings import Finding

__all__ = ["NETWORKS", "NOT_INSTALLED", "Network", "main", "train"]

BATCH = 64
NOT_INSTALLED = "The demonstration trains on scikit-learn's digits. Run: pip install 'gradwatch[demo]'"


@dataclass(frozen=True)
class Network:
    """One network of the demonstration.

    Attributes:
        name: the name of its run.
        what: a description of a few words.
        model: a function that makes the model.
        optimizer: a function that makes the optimizer from the model's parameters.
        loss: a function of outputs and classes that returns the loss.
    """

    name: str
    what: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterator[nn.Parameter]], Optimizer]
    loss: Callable[[Tensor, Tensor], Tensor]


def _stack(depth: int, activation: Callable[[], nn.Module], width: int = 64) -> nn.Sequential:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def _squared_error(outputs: Tensor, classes: Tensor) -> Tensor:
    return (outputs - F.one_hot(classes, 10)).square().sum(1).mean()


def _unguarded_cross_entropy(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return −Σ y·log p, written out as beginners do: 0·log 0 is NaN once a probability underflows."""
    probabilities = outputs.softmax(1)
    return -(F.one_hot(classes, 10) * probabilities.log()).sum(1).mean()


NETWORKS = (
    Network(
        "healthy",
        "2 × ReLU, Adam",
        lambda: _stack(2, nn.ReLU),
        lambda parameters: torch.optim.Adam(parameters, 1e-3),
        F.cross_entropy,
    ),
    Network(
        "vanishing",
        "10 × sigmoid, SGD: each passes on a quarter of the gradient at most",
        lambda: _stack(10, nn.Sigmoid),
        lambda parameters: torch.optim.SGD(parameters, 0.1),
        F.cross_entropy,
    ),
    Network(
        "exploding",
        "2 × ReLU, squared error, SGD at a learning rate of 0.03 where 0.02 learns",
        lambda: _stack(2, nn.ReLU),
        lambda parameters: torch.optim.SGD(parameters, 0.03),
        _squared_error,
    ),
    Network(
        "nonfinite",
        "2 × ReLU, Adam, cross-entropy with an unguarded log",
        lambda: _stack(2, nn.ReLU),
        lambda parameters: torch.optim.Adam(parameters, 3e-2),
        _unguarded_cross_entropy,
    ),
)


def digits() -> tuple[Tensor, Tensor]:
    """Return (1797, 64) float32 pixels from 0 to 16, not scaled, and (1797,) int64 classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)


def train(
    network: Network, steps: int, log_dir: Path | None, each_step: Callable[[], object] = lambda: None
) -> list[Finding]:
    """Train ``network`` for ``steps`` steps from seed 0 and return its findings."""
    torch.manual_seed(0)
    pixels, classes = digits()
    model = network.model()
    optimizer = network.optimizer(model.parameters())
    with gradwatch.watch(model, optimizer, log_dir=log_dir, log_every_n_steps=1, histograms=True) as watcher:
        for _ in range(steps):
            batch = torch.randint(len(pixels), (BATCH,))
            loss = network.loss(model(pixels[batch]), classes[batch])
            watcher.observe_loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            each_step()
    return watcher.findings


def table_of(network: Network, findings: list[Finding]) -> Table:
    """Return a table of the findings of one run, or of one line that says that there are none."""
    table = Table(title=f"{network.name}: {network.what}", title_justify="left", show_lines=True, expand=True)
    for column, ratio in (("kind", None), ("layer", None), ("step", None), ("measured, and what to try first", 1)):
        table.add_column(column, ratio=ratio, justify="right" if column == "step" else "left")
    for finding in findings:
        words = [finding.measured, *(f"Try: {advice}" for advice in finding.remedies[:1])]
        table.add_row(finding.kind, finding.place, str(finding.step), "\n".join(words))
    if not findings:
        table.add_row("none", "", "", "nothing to report")
    return table


def as_typed(command: str) -> str:
    """Return what to type for ``command`` of this environment: its name, or its path if the name leads elsewhere."""
    name = f"{command}.exe" if os.name == "nt" else command
    installed = Path(sysconfig.get_path("scripts")) / name
    on_path = shutil.which(command)
    if not installed.exists() or (on_path is not None and os.path.realpath(on_path) == os.path.realpath(installed)):
        return command
    here = Path.cwd()
    return shlex.quote(str(installed.relative_to(here) if installed.is_relative_to(here) else installed))


def main(directory: str = "runs", steps: int = 300) -> None:
    """Train the four networks, print their findings, and write TensorBoard files into ``directory``."""
    digits()  # without scikit-learn it fails before anything is shown
    console = Console()
    torch.set_num_threads(1)  # networks this small are slower on several
    logging.getLogger("gradwatch").addHandler(logging.NullHandler())  # the tables say it all
    for network in NETWORKS:
        log_dir = Path(directory) / network.name
        for earlier in log_dir.glob("*tfevents*"):  # the run of the last demonstration; whatever else is there stays
            earlier.unlink()
        columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(network.name, total=steps)
            findings = train(network, steps, log_dir, lambda t=task: progress.advance(t))  # type: ignore[misc]
        console.print(table_of(network, findings))
    where = shlex.quote(directory)
    for line in (
        "Type one of these to see more. The tab of TensorBoard is called GradWatch.",
        f"  {as_typed('gradwatch')} report {where}",
        f"  {as_typed('tensorboard')} --logdir {where}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "runs")
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        sys.exit(NOT_INSTALLED)
