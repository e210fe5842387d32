"""What a rank sends depends on the number of layers, and not on the number of ranks."""

import json
import sys
from pathlib import Path

import pytest

from tests.forked_python import run

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, logging
from benchmarks import scale

logging.getLogger("gradwatch").setLevel("ERROR")
costs = {}
for name, make in {"FSDP2": scale.fsdp2, "DDP": scale.ddp}.items():
    for ranks, count in [(2, 20), (1024, 20), (1024, 40)]:
        with scale.pretended(ranks):
            cost = scale.cost_of(make, count, "gradwatch")
        costs[f"{name} {ranks} {count}"] = cost.collectives, cost.bytes
print(json.dumps(costs))
"""


def test_what_a_rank_sends_does_not_grow_with_the_number_of_ranks():
    done = run([sys.executable, "-c", PROGRAM], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout.splitlines()[-1])
    collectives, sent = costs["FSDP2 2 20"]
    assert collectives == 1
    assert costs["FSDP2 1024 20"] == [collectives, sent]
    assert costs["FSDP2 1024 40"][0] == collectives
    assert sent < costs["FSDP2 1024 40"][1] < 2 * sent
    assert [costs[name] for name in costs if name.startswith("DDP")] == 3 * [[0, 0]]
