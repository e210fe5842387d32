"""A run that is followed while it grows reads as one that is read at once."""

import random
from dataclasses import asdict, replace

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from gradwatch.event_files.followed_run import FollowedRun, newest_run
from gradwatch.event_files.reader import read_runs
from gradwatch.sinks import tensorboard
from tests.reports import run_of
from tests.written import FINDING, TABLE, event, forge, norms, train, write_rows


def read(directory):
    (run,) = read_runs(directory)
    return run


def content_of(run):
    """All that a run holds, comparable; without what is only so while a file is being written."""
    content = asdict(replace(run, problems=tuple(each for each in run.problems if "ends within" not in each)))
    return _plain(content)


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    return repr(value)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_read_in_pieces_is_the_run_read_at_once(tmp_path, seed):
    train(tmp_path / "whole", steps=30, spoil=20)
    (whole,) = (tmp_path / "whole").iterdir()
    content, rng = whole.read_bytes(), random.Random(seed)
    (tmp_path / "run").mkdir()
    grown, followed, seen = tmp_path / "run" / whole.name, FollowedRun(tmp_path / "run"), 0
    grown.touch()
    assert followed.read() is None
    while seen < len(content):
        seen = min(len(content), seen + rng.choice([1, 5, 100, 3000]))
        with grown.open("ab") as file:
            file.write(content[grown.stat().st_size : seen])
        run = followed.read()
        if run is not None:
            assert content_of(replace(run, written_at=0)) == content_of(replace(read(tmp_path / "run"), written_at=0))
    assert followed.read().closed_after == 30
    assert followed.read() is followed.read()  # nothing is read twice


def test_damage_is_told_once_and_what_follows_it_is_read(tmp_path):
    row = event(0, layers=TABLE, grad_norm=norms(1.0, 2.0))
    path = forge(tmp_path / "run", row, event(1, grad_norm=norms(1.0, 2.0))) / "events.out.tfevents.1.host"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1  # of the second record
    path.write_bytes(content)
    followed = FollowedRun(tmp_path / "run")
    assert followed.read().steps.tolist() == [0]
    with path.open("ab") as file:
        file.write(forge(tmp_path / "other", event(2, grad_norm=norms(3.0, 4.0))).joinpath(path.name).read_bytes())
    run = followed.read()
    assert run.steps.tolist() == [0, 2]
    assert run.problems == (f"{path.name}: a record is damaged",)


def test_a_run_that_is_resumed_in_another_file_is_followed_there(tmp_path):
    write_rows(tmp_path, run_of([[1.0]] * 6))
    followed = FollowedRun(tmp_path)
    assert followed.read().steps.tolist() == [0, 1, 2, 3, 4, 5]
    write_rows(tmp_path, run_of([[2.0]] * 9)[3:])
    run = followed.read()
    assert run.packed["grad_norm"].values[:, 0].tolist() == [1.0] * 3 + [2.0] * 6
    assert content_of(run) == content_of(read(tmp_path))


def test_the_newest_run_below_is_found(tmp_path):
    assert newest_run(tmp_path) is None
    train(tmp_path / "first", steps=2)
    train(tmp_path / "second", steps=2)
    with SummaryWriter(str(tmp_path / "foreign")) as writer:
        writer.add_scalar("loss", 1.0, 0)
    assert newest_run(tmp_path).directory == tmp_path / "second"


def test_a_closed_run_says_so_and_a_killed_one_does_not(tmp_path):
    train(tmp_path / "closed", steps=7)
    assert read(tmp_path / "closed").closed_after == 7
    forge(tmp_path / "killed", event(0, layers=TABLE, grad_norm=norms(1.0, 2.0)))
    assert read(tmp_path / "killed").closed_after is None


def test_a_run_that_goes_on_after_its_end_is_not_closed(tmp_path):
    row, end = event(0, layers=TABLE, grad_norm=norms(1.0, 2.0)), event(0, end={"steps": 1})
    assert read(forge(tmp_path / "a", row, end)).closed_after == 1
    assert read(forge(tmp_path / "b", row, end, event(1, grad_norm=norms(1.0, 2.0)))).closed_after is None
    assert read(forge(tmp_path / "c", row, end, event(1, finding=FINDING))).closed_after is None
    assert read(forge(tmp_path / "c", row, event(0, end={"steps": -1}))).closed_after is None


def test_steps_after_the_last_row_are_counted(tmp_path):
    import torch

    from gradwatch import watch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch(model, optimizer, log_dir=tmp_path, log_every_n_steps=1000):
        for _ in range(1013):
            model(torch.ones(4, 2)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert read(tmp_path).closed_after == 1013


def test_rows_in_a_writer_of_the_users_can_soon_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_FLUSH_SECONDS", -1)
    with SummaryWriter(str(tmp_path)) as writer:
        sink = tensorboard.TensorBoard(writer)
        from gradwatch.sinks import RowBuilder

        builder = RowBuilder()
        for report in run_of([[1.0]] * 3):
            builder.add(report)
            sink.write_row(builder.build(report, skipped_steps=0))
            assert read(tmp_path).steps[-1] == report.step  # though nobody has flushed
        sink.close()
    assert read(tmp_path).closed_after == 3
