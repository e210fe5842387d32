"""Nothing leaves the machine: a watched run opens no socket, and neither does what reads it."""

import sys

import pytest

from tests.forked_python import FRAMEWORKS, run

GUARD = """
import sys

def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":  # TensorBoard names files by it
        print("opened:", event, arguments, flush=True)
        raise PermissionError(event)

sys.addaudithook(refuse)
"""
LOOP = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(12):
    loss = model(torch.ones(2, 4) * (torch.nan if step == 9 else 1.0)).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
WATCHED = """
import gradwatch
sinks = [gradwatch.JsonLines("run.jsonl"), gradwatch.Csv("run.csv"), gradwatch.Memory()]
options = {"log_dir": "runs", "layer_scalars": True, "histograms": True, "black_box": "failed.pt", "sinks": sinks}
watcher = gradwatch.watch(model, optimizer, clip="auto", recover=gradwatch.Rewind(), **options)
"""
LIGHTNING = """
import torch, lightning.pytorch as pl
from gradwatch.lightning import GradWatch

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, x, index):
        return self.layer(x).sum() * (torch.nan if index == 3 else 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

trainer = pl.Trainer(max_epochs=1, logger=False, callbacks=[GradWatch(log_dir="runs")], enable_progress_bar=False)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(16, 4), batch_size=2))
"""
COMMAND = """
import sys
from gradwatch.cli import main
sys.argv = ["gradwatch", *{arguments!r}]
main()
"""
PROGRAMS = {
    "watch": LOOP.replace("for step", f"{WATCHED}for step", 1),
    "Lightning": LIGHTNING,
    "gradwatch run": COMMAND.format(arguments=["run", "--log-dir", "runs", "loop.py"]),
}
REPORT = COMMAND.format(arguments=["report", "runs", "--html", "page.html", "--fail-on", "nonfinite"])


@pytest.mark.process
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_watched_run_and_its_report_open_no_socket(tmp_path, program):
    (tmp_path / "loop.py").write_text(LOOP)
    for name, text in (("train.py", PROGRAMS[program]), ("report.py", REPORT)):
        (tmp_path / name).write_text(GUARD + text)
    watched = run([sys.executable, "train.py"], cwd=tmp_path, loaded=FRAMEWORKS, check=True)
    shown = run([sys.executable, "report.py"], cwd=tmp_path)
    assert "opened:" not in watched.stdout + shown.stdout
    assert shown.returncode == 1  # the report has the finding, so there was something to hand on
    assert "nonfinite" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.process
def test_the_guard_sees_a_socket(tmp_path):
    (tmp_path / "train.py").write_text(f"{GUARD}import socket\nsocket.create_connection(('localhost', 9))\n")
    done = run([sys.executable, "train.py"], cwd=tmp_path)
    assert done.stdout.startswith("opened: socket.")
