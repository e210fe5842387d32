"""What watching costs, beside clipping alone and beside other tools: ``python -m benchmarks.overhead [--write]``.

Every way of looking trains its own copy of the same model; their steps are interleaved, so that a slow moment of the
machine meets all alike. A figure is the median over rounds of step ÷ the baseline's step of the same round, with its
95 % interval (order statistics), and beside it the ratio of the means, logged and sampled steps included. The baseline
is torch at its fastest: a fused optimizer, and ``clip_grad_norm_`` where it says so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import gradwatch
from benchmarks.growth import by_cadence, by_steps, by_tensors
from benchmarks.pages import write_between

PAGE = Path("docs/performance.md")
MARKERS = "<!-- bench-overhead: begin -->", "<!-- bench-overhead: end -->"
WARM_UP = 12

Loss = Callable[[], Tensor]

ALWAYS_SICK = gradwatch.Thresholds(vanishing_norm=1e9)
"""Every layer counts as vanishing from the first step on, so that a finding is open all the time."""


def mlp(layers: int, width: int) -> tuple[nn.Module, Loss]:
    """Plain layers, orthogonal, so that gradients of all of them are of one size."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width), nn.LeakyReLU(0.7)]
        nn.init.orthogonal_(parts[-2].weight, 1.15)
    model = nn.Sequential(*parts, nn.Linear(width, 10))
    x, y = torch.randn(64, width), torch.randint(10, (64,))
    return model, lambda: nn.functional.cross_entropy(model(x), y)


def gpt(layers: int, width: int, batch: int, length: int) -> tuple[nn.Module, Loss]:
    """Hugging Face's GPT-2, from a configuration."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "vocab_size": 512, "n_positions": 128}
    model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    x = torch.randint(512, (batch, length))
    return model, lambda: model(input_ids=x, labels=x).loss


def resnet() -> tuple[nn.Module, Loss]:
    """ResNet-18 on images of 64 × 64."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=10))
    x, y = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
    return model, lambda: nn.functional.cross_entropy(model(pixel_values=x).logits, y)


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Loss]], int]] = {
    "GPT-2-like, 5M": (lambda: gpt(6, 256, 8, 64), 220),
    "MLP of 100 layers": (lambda: mlp(100, 64), 220),
    "ResNet-18, 11M": (resnet, 220),
    "300 layers of 16 units": (lambda: mlp(300, 16), 220),
    "1,000 layers of 8 units": (lambda: mlp(1000, 8), 120),
    "GPT-2, 85M": (lambda: gpt(12, 768, 1, 64), 60),
}
"""Name → (how it is made, rounds)."""


@dataclass
class Way:
    """One way of looking at a model: what surrounds its steps.

    Attributes:
        before_backward, before_update, after_update: called with the loss, or nothing, and the number of the step.
        around: a context for each step.
        close: called at the end.
    """

    before_backward: Callable[[Tensor], None] = lambda loss: None
    before_update: Callable[[int], None] = lambda step: None
    after_update: Callable[[int], None] = lambda step: None
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    close: Callable[[], None] = lambda: None
    times: list[float] = field(default_factory=list)


def bare(model, optimizer, directory) -> Way:
    """Nothing."""
    return Way()


def clips(model, optimizer, directory) -> Way:
    """``clip_grad_norm_`` alone."""
    parameters = list(model.parameters())
    return Way(before_update=lambda step: torch.nn.utils.clip_grad_norm_(parameters, 1.0))


def watches(model, optimizer, directory, **options) -> Way:
    """As people use gradwatch: detectors on, TensorBoard at the default cadence."""
    watcher = gradwatch.watch(model, optimizer, log_dir=directory, **options)
    return Way(before_backward=watcher.observe_loss, close=watcher.close)


def scalars_by_hand(model, optimizer, directory) -> Way:
    """``add_scalar(grad.norm().item())`` of every gradient."""
    writer = SummaryWriter(directory)

    def write(step: int) -> None:
        for name, parameter in model.named_parameters():
            writer.add_scalar(f"grad_norm/{name}", parameter.grad.norm().item(), step)

    return Way(before_update=write, close=writer.close)


def lightning_grad_norm(model, optimizer, directory) -> Way:
    """Lightning's ``grad_norm`` and a scalar each."""
    from lightning.pytorch.utilities import grad_norm

    writer = SummaryWriter(directory)

    def write(step: int) -> None:
        for name, norm in grad_norm(model, 2).items():
            writer.add_scalar(name, norm, step)

    return Way(before_update=write, close=writer.close)


def ignite(model, optimizer, directory) -> Way:
    """Ignite's ``GradsScalarHandler``."""
    from ignite.engine import Engine, Events
    from ignite.handlers.tensorboard_logger import GradsScalarHandler, TensorboardLogger

    logger = TensorboardLogger(log_dir=directory)
    engine = Engine(lambda engine, batch: None)
    handler = GradsScalarHandler(model)

    def write(step: int) -> None:
        engine.state.iteration = step
        handler(engine, logger, Events.ITERATION_COMPLETED)

    return Way(before_update=write, close=logger.close)


def histograms_by_hand(model, optimizer, directory) -> Way:
    """``add_histogram`` of every gradient."""
    writer = SummaryWriter(directory)

    def write(step: int) -> None:
        for name, parameter in model.named_parameters():
            writer.add_histogram(f"grad/{name}", parameter.grad, step)

    return Way(before_update=write, close=writer.close)


def wandb_watch(model, optimizer, directory) -> Way:
    """``wandb.watch(log="all", log_freq=1)``, offline."""
    import wandb

    run = wandb.init(mode="offline", dir=directory, settings=wandb.Settings(silent=True, console="off"))
    run.watch(model, log="all", log_freq=1)
    return Way(after_update=lambda step: run.log({"step": step}), close=run.finish)


def anomaly_mode(model, optimizer, directory) -> Way:
    """``autograd.detect_anomaly``."""
    return Way(around=lambda: torch.autograd.set_detect_anomaly(True))


def debug_underflow_overflow(model, optimizer, directory) -> Way:
    """Hugging Face's ``DebugUnderflowOverflow``."""
    from transformers.debug_utils import DebugUnderflowOverflow

    tool = DebugUnderflowOverflow(model)
    return Way(around=lambda: contextlib.redirect_stdout(io.StringIO()), close=lambda: tool.model.zero_grad())


Make = Callable[[nn.Module, torch.optim.Optimizer, str], Way]
OURS: dict[str, tuple[Make, str]] = {
    "bare": (bare, ""),
    "clip_grad_norm_": (clips, "bare"),
    "gradwatch, clipping": (lambda *a: watches(*a, clip=1.0), "clip_grad_norm_"),
    "clipping, a finding open": (lambda *a: watches(*a, clip=1.0, thresholds=ALWAYS_SICK), "clip_grad_norm_"),
    "gradwatch": (watches, "bare"),
}
PEERS: dict[str, tuple[Make, str]] = {
    "`add_scalar(norm.item())` by hand": (scalars_by_hand, "bare"),
    "Lightning's `grad_norm`, scalars": (lightning_grad_norm, "bare"),
    "Ignite's `GradsScalarHandler`": (ignite, "bare"),
    "`add_histogram` by hand": (histograms_by_hand, "bare"),
    '`wandb.watch(log="all", log_freq=1)`': (wandb_watch, "bare"),
    "`autograd.detect_anomaly`": (anomaly_mode, "bare"),
    "`DebugUnderflowOverflow`": (debug_underflow_overflow, "bare"),
}
"""Name → (how to look, against which other way it is measured)."""


def steps_of(make_model: Callable[[], tuple[nn.Module, Loss]], make: Make, directory: str) -> tuple[Way, Callable]:
    """(way, number → one step under it), of a model of its own."""
    torch.manual_seed(0)
    model, loss_of = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    way = make(model, optimizer, directory)

    def step(number: int) -> None:
        with way.around():
            optimizer.zero_grad()
            loss = loss_of()
            way.before_backward(loss)
            loss.backward()
            way.before_update(number)
            optimizer.step()
            way.after_update(number)

    return way, step


def measure(make_model, ways: dict[str, tuple[Make, str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step after the warm-up, by way; steps of one round stand at the same place."""
    with tempfile.TemporaryDirectory() as directory:
        made = {
            name: steps_of(make_model, make, f"{directory}/{i}") for i, (name, (make, _)) in enumerate(ways.items())
        }
        names = list(made)
        for number in range(WARM_UP + rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                way, step = made[name]
                begin = time.perf_counter()
                step(number)
                way.times.append(time.perf_counter() - begin)
        for way, _ in made.values():
            way.close()
    return {name: way.times[WARM_UP:] for name, (way, _) in made.items()}


def ratio(times: Sequence[float], base: Sequence[float]) -> str:
    """Median of paired ratios, its 95 % interval, and the ratio of the means."""
    ratios = np.sort(np.array(times) / np.array(base))
    half = 0.98 * math.sqrt(len(ratios))  # ranks around the middle, by the binomial's normal approximation
    low, high = ratios[max(0, int(len(ratios) / 2 - half))], ratios[min(len(ratios) - 1, int(len(ratios) / 2 + half))]
    return f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}]; {sum(times) / sum(base):.3f}"


def files() -> str:
    """Bytes of event files: 1,000 rows of 300 layers with names of 20 characters."""
    from gradwatch.sinks import RowBuilder
    from gradwatch.sinks.tensorboard import TensorBoard

    sizes = {}
    for title, scalars in (
        ("with the three scalars a layer", ("grad_norm", "weight_norm", "update_ratio")),
        ("packed alone", False),
    ):
        with tempfile.TemporaryDirectory() as directory:
            sink, builder = TensorBoard(directory, scalars), RowBuilder()
            begin = time.perf_counter()
            for step in range(1000):
                report = _report(step)
                builder.add(report)
                sink.write_row(builder.build(report, 0, np.ones((2, 300))))
            seconds = time.perf_counter() - begin
            sink.close()
            sizes[title] = sum(p.stat().st_size for p in Path(directory).rglob("*")) / 1e6, seconds
    return "; ".join(f"{title} {size:.1f} MB in {seconds:.1f} s" for title, (size, seconds) in sizes.items())


def _report(step: int):
    from gradwatch.measure.report import ACTIVATION_FIGURES, StepReport

    layers = tuple(f"blocks.{i:03d}.linear.w" for i in range(300))
    some = lambda: np.random.rand(300)
    names = ("weight_norm", "update_ratio", *ACTIVATION_FIGURES)
    return StepReport(
        step=step, optimizer=0, update=step, layers=layers, depth=np.arange(300), size=np.full(300, 256),
        measured=np.ones(300, dtype=bool), grad_norm=some(), nonfinite=np.zeros(300, dtype=np.int64),
        grad_norm_total=1.0, grad_norm_clipped_total=1.0, loss=1.0, figures={name: some() for name in names},
    )  # fmt: skip


def main() -> None:
    """Prints the tables; ``--write`` puts them into docs/performance.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peer-rounds", type=int, default=40)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("gradwatch").setLevel(logging.CRITICAL)
    os.environ["WANDB_MODE"] = "offline"
    lines = [
        f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, {time.strftime('%Y-%m-%d')}.",
        "",
    ]
    lines += ["| model | bare | " + " | ".join(list(OURS)[1:]) + " |", "|---" * (len(OURS) + 1) + "|"]
    for name in arguments.only:
        make, rounds = MODELS[name]
        times = measure(make, OURS, arguments.rounds or rounds)
        cells = [ratio(times[way], times[base]) for way, (_, base) in list(OURS.items())[1:]]
        lines.append(
            f"| {name}, {len(times['bare'])} rounds | {np.median(times['bare']) * 1e3:.1f} ms | {' | '.join(cells)} |"
        )
        print(lines[-1], flush=True)
    if arguments.peer_rounds:
        peers = {"bare": OURS["bare"], "gradwatch": OURS["gradwatch"], **PEERS}
        chosen = [name for name in list(MODELS)[:3] if name in arguments.only]
        columns = []
        for name in chosen:
            times = measure(MODELS[name][0], peers, arguments.peer_rounds)
            columns.append({way: ratio(times[way], times["bare"]) for way in list(peers)[1:]})
            print(name, columns[-1], flush=True)
        lines += [
            "",
            f"| every step, every layer, {arguments.peer_rounds} rounds; ÷ bare | {' | '.join(chosen)} |",
            "|---|" + "---|" * len(chosen),
        ]
        lines += [f"| {way} | {' | '.join(column[way] for column in columns)} |" for way in list(peers)[1:]]
    lines += ["", *by_tensors(), "", "![Cost a tensor by the number of tensors](images/growth.png)", "", by_steps()]
    lines += ["", *by_cadence(), "", f"Event files of 1,000 rows of 300 layers: {files()}."]
    page = "\n".join(lines)
    print(page)
    if arguments.write:
        write_between(PAGE, MARKERS, page)


if __name__ == "__main__":
    main()
