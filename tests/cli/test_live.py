"""``gradwatch live`` and ``gradwatch run --live``, on a pseudo-terminal."""

import os
import signal
import subprocess
import sys

import pytest

from tests.cli.terminal import FIRST_SCREEN, LONGEST, SECOND_SCREEN, Terminal
from tests.distributed.launch import counted_too
from tests.written import FINDING, TABLE, event, forge, norms, totals, train

pytestmark = pytest.mark.process


def row(step, **table):
    figures = {"loss": 0.25, "learning_rate": 0.5, "grad_norm_total": 3.0}
    return event(step, grad_norm=norms(1.0, 2.0), totals=totals(**figures), **table)


def begun(directory):
    """A run whose first row is written, and which goes on."""
    return forge(directory, row(0, layers=TABLE))


def append(directory, *contents):
    (path,) = directory.iterdir()
    spare = forge(directory.parent / "spare", *contents)
    with path.open("ab") as file:
        file.write(spare.joinpath(path.name).read_bytes())


def test_it_follows_a_run_and_leaves_no_trace(tmp_path):
    run = begun(tmp_path / "run")
    with Terminal("live", run) as terminal:
        terminal.wait_for("● step 0")
        terminal.wait_for("no findings so far")
        append(run, row(7), event(7, finding={**FINDING, "step": 6, "raised_step": 7, "last_step": 7}))
        terminal.wait_for("● step 7")
        terminal.wait_for("exploding in a and 1 other layer since step 6")
        append(run, event(9, end={"steps": 10}))
        terminal.wait_for("■ ended after 10 steps")
        terminal.wait_for("the run has ended; q or Ctrl-C ends this view")
        terminal.type("q")
        assert terminal.wait() == 0
    assert terminal.raw.count(SECOND_SCREEN) == terminal.raw.count(FIRST_SCREEN) == 1
    before, _, _ = terminal.raw.partition(SECOND_SCREEN)
    _, _, after = terminal.raw.rpartition(FIRST_SCREEN)
    assert (before.strip(), after.replace("\x1b[?25h", "").strip()) == ("", "")  # the cursor is shown again


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, "\x03"])
def test_signals_and_ctrl_c_leave_no_trace_either(tmp_path, end):
    with Terminal("live", begun(tmp_path / "run")) as terminal:
        terminal.wait_for("● step 0")
        if isinstance(end, str):
            terminal.type(end)
        else:
            terminal.process.send_signal(end)
        assert terminal.wait() == 0
    assert terminal.raw.count(SECOND_SCREEN) == terminal.raw.count(FIRST_SCREEN) == 1
    assert "Traceback" not in terminal.text


def test_it_waits_for_the_first_row(tmp_path):
    with Terminal("live", tmp_path) as terminal:
        terminal.wait_for("waits for the first row of a run in")
        begun(tmp_path / "later")
        terminal.wait_for("● step 0")
        terminal.type("q")
        assert terminal.wait() == 0


def live(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gradwatch", "live", *map(str, arguments)],
        capture_output=True, text=True, timeout=LONGEST, env={**os.environ, **counted_too(), **environment},
    )  # fmt: skip


def test_without_a_terminal_rows_and_findings_are_lines(tmp_path):
    train(tmp_path / "run", steps=12, spoil=8)
    done = live(tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    first, last_row, finding, end = done.stdout.splitlines()
    assert first.startswith("gradwatch: this is no terminal")
    assert last_row == "step 11: total norm NaN or Inf, learning rate 0.01, loss NaN or Inf"
    assert finding.startswith("error: nonfinite in 2.bias since step 8")
    assert end == "ended after 12 steps: 1 finding"


def test_what_is_no_directory_has_a_status_of_its_own(tmp_path):
    done = live(tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (3, "")
    assert "expected the directory of a run, found none" in done.stderr


SCRIPT = """
import sys
import torch
print("begins", sys.stdout.isatty())
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(5):
    model(torch.ones(8, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print("trained")
if sys.argv[1] == "--live":
    input()
sys.exit(3)
"""


def test_run_live_shows_the_run_and_then_all_that_the_script_has_printed(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    with Terminal("run", "--log-dir", "here", "--live", "train.py", "--live", cwd=tmp_path) as terminal:
        terminal.wait_for("trained")  # the last lines of the output are part of the view
        terminal.type("\n")  # what is typed goes to the script
        assert terminal.wait() == 3
    shown, _, after = terminal.raw.rpartition(FIRST_SCREEN)
    assert "Ctrl-C interrupts the script" in shown
    assert [line for line in after.splitlines() if line in ("begins True", "trained")] == ["begins True", "trained"]
    assert "gradwatch: 5 steps, no findings; event files in" in after


def test_run_live_shows_a_finding_and_the_line_of_the_log_without_its_colour(tmp_path):
    sick = SCRIPT.replace("torch.ones(8, 4)", "torch.full((8, 4), torch.nan)")
    (tmp_path / "train.py").write_text(sick)
    with Terminal("run", "--live", "train.py", "--live", cwd=tmp_path) as terminal:
        terminal.wait_for("gradwatch: nonfinite in")
        terminal.type("\n")
        assert terminal.wait() == 3
    shown, _, after = terminal.raw.rpartition(FIRST_SCREEN)
    assert "\N{REPLACEMENT CHARACTER}" not in shown
    assert after.count("\x1b[1;31mgradwatch:\x1b[0m nonfinite in") == 1  # as it would be without the view


def test_run_live_ends_by_the_signal_that_ended_the_script(tmp_path):
    (tmp_path / "train.py").write_text("import os, signal\nprint('dies', flush=True)\nos.kill(os.getpid(), 9)\n")
    with Terminal("run", "--live", "train.py", cwd=tmp_path) as terminal:
        assert terminal.wait() == -signal.SIGKILL
    assert terminal.raw.rpartition(FIRST_SCREEN)[2].strip().endswith("dies")


def test_run_live_without_a_terminal_says_so_and_runs_the_script(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "gradwatch", "run", "--live", "train.py", "plainly"],
        capture_output=True, text=True, cwd=tmp_path, timeout=LONGEST, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "begins False\ntrained\n")
    assert done.stderr.startswith("gradwatch: --live needs a terminal to draw on: the script runs without the view.\n")
