"""Once a run is watched, gradwatch loads no module, of its own or of others.

A module that is being loaded is locked. A child that another thread forks meanwhile inherits the lock, and waits for
ever as soon as it comes by the same import, which it does where it trains on.
"""

import json
import subprocess
import sys

PROGRAM = """
import json, sys, torch
from torch import nn
import gradwatch

def made():
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)]
    model = nn.Sequential(*layers)
    return model, torch.optim.Adam(model.parameters(), 0.01)

def train(model, optimizer, steps):
    for step in range(steps):
        x = torch.randn(16, 8) * (1e30 if step == 60 else 1.0)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean() * (torch.nan if step in (70, 71) else 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

train(*made(), 3)  # torch itself loads some modules at a first step

def note(event, arguments):
    if event == "import" and arguments[0] not in sys.modules:
        loaded.append([arguments[0], *stack(sys._getframe(1))])

def stack(frame):
    while frame is not None:
        if "gradwatch/" in frame.f_code.co_filename.replace(chr(92), "/"):
            yield f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back

model, optimizer = made()
watcher = gradwatch.watch(
    model, optimizer, clip="auto", log_dir="runs", layer_scalars=True, histograms=True, log_every_n_steps=5,
    recover=gradwatch.Rewind(every=10, path="snapshots"), black_box="failed.pt",
    sinks=[gradwatch.JsonLines("run.jsonl"), gradwatch.Csv("run.csv"), gradwatch.Memory()],
)
loaded = []
sys.addaudithook(note)
train(model, optimizer, 130)
found = watcher.findings
_ = watcher.history, watcher.state_dict(), repr(watcher)
watcher.flush()
watcher.close()
print(json.dumps({"loaded": [each for each in loaded if len(each) > 1], "found": len(found)}))
"""


def test_a_watched_run_loads_no_module(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["found"], "no finding was explained: nothing was shown"
    assert told["loaded"] == []
