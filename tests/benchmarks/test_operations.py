"""What watching costs a GPU, in counts, which are exact: ``benchmarks/operations.py`` on a device that counts."""

import json
import sys
from pathlib import Path

import pytest

from tests.counted_device import on_the_counted_device
from tests.forked_python import FRAMEWORKS, run
from tests.once import made_once

pytestmark = on_the_counted_device

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """{model: {kind of step: {"launches", "copies", "waits"}}}, of watching and clipping beyond clipping alone."""
    return made_once(tmp_path_factory, "operations", counted_operations)


def counted_operations(_):
    done = run([sys.executable, "-m", "benchmarks.operations", "--json"], loaded=FRAMEWORKS, cwd=ROOT)
    assert done.returncode == 0, done.stderr  # the figures are those of the same training on the CPU, too
    return json.loads(done.stdout.splitlines()[-1])


def test_no_step_waits_for_the_device(costs):
    assert {cost["waits"] for kinds in costs.values() for cost in kinds.values()} == {0}


def test_one_copy_brings_a_step_to_the_host(costs):
    known = [kinds[kind]["copies"] for kinds in costs.values() for kind in ("plain", "sampled")]
    assert set(known) == {1}  # also where layers are of two types


def test_launches_do_not_grow_with_the_layers(costs):
    for kinds in costs.values():
        assert kinds["plain"]["launches"] <= 20
        assert kinds["first"]["launches"] <= 50
    sampled = {name.split(",")[0]: kinds["sampled"]["launches"] for name, kinds in costs.items()}
    assert sampled["100 layers of 64 units"] <= 50
    assert sampled["GPT-2 of 6 layers"] <= 58  # outputs of 16 MB at most are held for their norms
    assert max(sampled.values()) <= 80  # one more for each output that the model changes in place
