"""The demonstration and the examples run as a user runs them, and show what they promise."""

import dataclasses
import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradwatch.cli import demonstration
from tests.distributed.conftest import RUNS_FSDP2
from tests.forked_python import FRAMEWORKS, TORCH, run

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
ARGUMENTS = {name: ["5"] for name in ("prescribe", "prescribe_lightning", "prescribe_huggingface")}
"""Seconds, of 15: the budget is used up whatever is found."""
ON_RANKS = {"ddp_one_bad_rank", "fsdp2"}  # under torchrun, as they say
ALONE = {"lightning_digits", "huggingface", "rewind"}  # a real Python for each of what the others find loaded
EXAMPLES_THAT_RUN = [path for path in sorted(EXAMPLES.glob("*.py")) if RUNS_FSDP2 or path.stem != "fsdp2"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def by_hand(learning_rate, seed):
    """The findings of the two-layer network; several tests ask for the same ones."""
    program = load("two_layer_net")
    if learning_rate > 1e-6 and seed != 1:
        program.STEPS = 100  # all is over within ten; one seed goes on to the end
    return program.train_by_hand(learning_rate, seed)[1]


@functools.cache
def demonstrated(network):
    """(findings, losses) of a network of the demonstration."""
    losses = []

    def loss(outputs, classes):
        losses.append(network.loss(outputs, classes))
        return losses[-1]

    return demonstration.train(dataclasses.replace(network, loss=loss), 300, None), losses


def first_nonfinite(learning_rate, seed):
    """Steps of the first loss and of the first gradient entry that is not finite, without gradwatch."""
    program = load("two_layer_net")
    x, y, w1, w2 = program.problem(seed)
    loss_step = gradient_step = None
    for step in range(10):
        hidden = x @ w1
        error = hidden.clamp(min=0) @ w2 - y
        grad_w2 = hidden.clamp(min=0).T @ (2 * error)
        grad_w1 = x.T @ ((2 * error) @ w2.T).masked_fill(hidden < 0, 0)
        if loss_step is None and not error.square().sum().isfinite():
            loss_step = step
        if gradient_step is None and not (grad_w1.isfinite().all() and grad_w2.isfinite().all()):
            gradient_step = step
        w1 -= learning_rate * grad_w1
        w2 -= learning_rate * grad_w2
    return loss_step, gradient_step


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("learning_rate", [1e-6, 1e-5, 1e-4, 1e-3])
def test_two_layer_net_is_judged_as_it_is(learning_rate, seed):
    findings = by_hand(learning_rate, seed)
    if learning_rate == 1e-6:
        assert findings == []
        return
    loss_step, gradient_step = first_nonfinite(learning_rate, seed)
    exploding, *nonfinite = findings
    assert exploding.kind == "exploding"
    assert exploding.raised_step < gradient_step
    assert nonfinite[-1].step == gradient_step
    assert nonfinite[-1].layers == ("w1", "w2")
    first = [("", loss_step)] if loss_step < gradient_step else []
    assert [(finding.layer, finding.step) for finding in nonfinite] == [*first, ("w2", gradient_step)]
    assert bool(first) == (learning_rate == 1e-3)


@pytest.mark.parametrize("learning_rate", load("two_layer_net").LEARNING_RATES)
def test_autograd_reports_what_the_hand_written_gradients_do(learning_rate):
    """A loop by hand shows each update one step later, and so an explosion at birth."""
    program = load("two_layer_net")
    _, by_autograd = program.train_by_autograd(learning_rate, 1)
    mine, theirs = program.summary(by_hand(learning_rate, 1)), program.summary(by_autograd)
    assert [(kind, layers) for kind, _, layers, _ in mine] == [(kind, layers) for kind, _, layers, _ in theirs]
    for (kind, _, _, step), (_, _, _, known) in zip(mine, theirs, strict=True):
        assert known <= step <= known + (kind == "exploding")


@pytest.mark.parametrize("network", demonstration.NETWORKS, ids=lambda network: network.name)
def test_each_network_of_the_demonstration_has_its_sickness(network):
    findings, _ = demonstrated(network)
    kinds = [finding.kind for finding in findings]
    expected = {"healthy": [], "exploding": ["exploding", "nonfinite"]}.get(network.name, [network.name])
    assert kinds == expected


def test_the_healthy_network_of_the_demonstration_learns():
    _, losses = demonstrated(demonstration.NETWORKS[0])
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.process
def test_the_demonstration_ends_with_the_two_commands_to_type(tmp_path):
    own = "ignore:Implicitly cleaning up:ResourceWarning"  # of torch 2.6, which makes a folder when it is imported
    command = [sys.executable, "-W", "error", "-W", own, "-m", "gradwatch", "demo", "--steps", "20"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    report, tensorboard = (shlex.split(line) for line in run.stdout.splitlines()[-2:])
    assert (report[1:], tensorboard[1:]) == (["report", "runs"], ["--logdir", "runs"])
    assert [Path(shutil.which(typed[0])).stem for typed in (report, tensorboard)] == ["gradwatch", "tensorboard"]
    assert run.stderr == ""
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(n.name for n in demonstration.NETWORKS)


@pytest.mark.process
@pytest.mark.parametrize("example", EXAMPLES_THAT_RUN, ids=lambda path: path.stem)
def test_every_example_runs(example, tmp_path):
    if example.stem in ON_RANKS | ALONE:
        command = [sys.executable, *(TORCHRUN if example.stem in ON_RANKS else ()), example]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    else:
        text = example.read_text(encoding="utf-8")
        loaded = FRAMEWORKS if re.search("import (lightning|transformers)|from transformers", text) else TORCH
        done = run([sys.executable, example, *ARGUMENTS.get(example.stem, [])], loaded=loaded, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
