"""The demonstration names its two closing commands as they must be typed."""

import shlex
import sysconfig
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradwatch.cli.demonstration import NETWORKS, as_typed, train

SCRIPTS = Path(sysconfig.get_path("scripts"))


def test_a_command_on_the_path_is_typed_by_its_name(monkeypatch):
    monkeypatch.setenv("PATH", str(SCRIPTS))
    assert as_typed("tensorboard") == "tensorboard"


def test_a_command_below_the_working_directory_is_typed_by_its_relative_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(SCRIPTS.parent)
    (typed,) = shlex.split(as_typed("tensorboard"))
    assert not Path(typed).is_absolute()
    assert (SCRIPTS.parent / typed).samefile(next(SCRIPTS.glob("tensorboard*")))


def test_a_command_elsewhere_is_typed_by_its_full_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (typed,) = shlex.split(as_typed("tensorboard"))
    assert Path(typed).is_absolute()


def test_a_command_that_is_not_installed_is_its_name():
    assert as_typed("no-such-command") == "no-such-command"


def test_the_demonstration_leaves_a_chart_for_each_figure_of_the_whole_run_and_none_of_each_layer(tmp_path):
    train(NETWORKS[0], 2, tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {
        "loss", "learning_rate", "grad_norm_total", "grad_norm_clipped_total", "skipped_steps",
    }  # fmt: skip
