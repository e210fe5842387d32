"""Every policy clips alike on the CPU and on another device, without a wait: on the device that counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.counted_device import on_the_counted_device

pytestmark = on_the_counted_device

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, math
import torch
from benchmarks.counted_device import DEVICE, Counted
from gradwatch import clip
from gradwatch.measure import statistics

POLICIES = {
    "by_norm": lambda: clip.by_norm(1.0),
    "by_value": lambda: clip.by_value(0.1),
    "by_layer_norm": lambda: clip.by_layer_norm(0.5),
    "auto": lambda: clip.auto(),
    "percentile": lambda: clip.percentile(),
}
torch.manual_seed(0)
SHAPES = (4, 3), (3,), (2, 2)


def course(sick):
    for step in range(40):
        gradients = [torch.randn(shape) * (100.0 if step == 30 else 1.0) for shape in SHAPES]
        if step == 35:
            gradients[1][0] = sick
        yield gradients


def clipped(make, gradients_of, to, count):
    policy, weights = make(), [to(torch.ones(shape)) for shape in SHAPES]
    results, waits = [], 0
    for gradients in gradients_of:
        here = [to(gradient.clone()) for gradient in gradients]
        with count() as counted:
            total = policy.clip_(here, statistics.measure(here), weights, None)
        waits += 0 if counted is None else sum(counted.waits.values())
        results.append([getattr(each, "host", each).tolist() for each in (*here, total)])
    return results, waits


import contextlib


def there(tensor):
    with Counted():
        return tensor.to(DEVICE)


found = {}
for name, make in POLICIES.items():
    for case, sick in {"finite": 1.0, "nan": math.nan, "inf": math.inf, "overflowing": 3e38}.items():
        batches = list(course(sick))
        expected, _ = clipped(make, batches, lambda tensor: tensor, contextlib.nullcontext)
        on_device, waits = clipped(make, batches, there, Counted)
        found[f"{name} {case}"] = {"expected": expected, "found": on_device, "waits": waits}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def courses():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def flat(steps):
    numbers = []
    for part in steps:
        numbers += flat(part) if isinstance(part, list) else [part]
    return numbers


@pytest.mark.parametrize("case", ["finite", "nan", "inf"])
@pytest.mark.parametrize("policy", ["by_norm", "by_value", "by_layer_norm", "auto", "percentile"])
def test_gradients_are_clipped_as_on_the_cpu(courses, policy, case):
    course = courses[f"{policy} {case}"]
    assert flat(course["found"]) == pytest.approx(flat(course["expected"]), rel=1e-5, abs=1e-7, nan_ok=True)
    assert course["waits"] == 0


@pytest.mark.parametrize("policy", ["by_norm", "auto", "percentile"])
def test_finite_gradients_whose_squares_overflow_become_zeros_and_never_nan(courses, policy):
    """On the CPU, where a look costs nothing, they are scaled; off it that would take a wait."""
    course = courses[f"{policy} overflowing"]["found"]
    assert not any(number != number for number in flat(course[35][:-1]))
    assert flat(course[36:]) == pytest.approx(flat(courses[f"{policy} overflowing"]["expected"][36:]), rel=1e-4)
