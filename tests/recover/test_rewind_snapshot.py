"""Snapshots in files: whole or not there, whatever happens while one is written."""

import signal
import sys
import textwrap

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import Rewind
from gradwatch.recover.rewind_snapshot import read_snapshot, take_snapshot, write_snapshot
from tests.forked_python import run


def snapshot(steps=3):
    torch.manual_seed(steps)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return model, optimizer, scheduler, take_snapshot(steps, {"": model}, [optimizer], [scheduler], {"0": {"a": 1}})


def test_a_file_gives_back_what_was_written_bit_for_bit(tmp_path):
    *_, taken = snapshot()
    write_snapshot(taken, tmp_path / "folder" / "snapshot-3.pt")
    read = read_snapshot(tmp_path / "folder" / "snapshot-3.pt")
    assert read.steps == 3
    assert read.learned == {"0": {"a": 1}}
    assert all(
        torch.equal(read.training.weights[name], taken.training.weights[name]) for name in taken.training.weights
    )
    assert torch.equal(read.random.cpu, taken.random.cpu)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["snapshot-3.pt"]


def test_a_snapshot_that_is_not_finite_says_so():
    model, optimizer, scheduler, taken = snapshot()
    assert taken.is_finite
    with torch.no_grad():
        model[1].running_var.fill_(torch.nan)
    assert not take_snapshot(3, {"": model}, [optimizer], [scheduler], {}).is_finite


def test_a_file_that_is_no_snapshot_is_refused_in_words(tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"no snapshot")
    with pytest.raises(ValueError, match="expected a snapshot of gradwatch"):
        read_snapshot(tmp_path / "broken.pt")
    with pytest.raises(FileNotFoundError):
        read_snapshot(tmp_path / "none.pt")


def test_a_folder_that_cannot_be_written_costs_the_snapshots_and_never_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, recover=Rewind(every=2, path=tmp_path / "file")):
        for _ in range(8):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "taking a snapshot" in caplog.text


def test_a_run_keeps_as_many_files_as_it_was_asked_to(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradwatch.watch(model, optimizer, recover=Rewind(every=5, keep=2, confirm=3, path=tmp_path)):
        for _ in range(32):
            model(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot-25.pt", "snapshot-30.pt"]


@pytest.mark.process
def test_kill_9_while_a_file_is_written_loses_that_one_alone(tmp_path):
    """The process kills itself in the middle of the second write, after half of the bytes are on the disk."""
    program = textwrap.dedent(
        f"""
        import os, signal, torch
        from pathlib import Path
        from torch import nn
        from gradwatch.recover.rewind_snapshot import take_snapshot, write_snapshot

        model = nn.Linear(100, 100)
        folder = Path({str(tmp_path)!r})
        write_snapshot(take_snapshot(1, {{"": model}}, [], [], {{}}), folder / "snapshot-1.pt")
        save = torch.save

        def die_halfway(content, file):
            save(content, folder / "whole")
            half = (folder / "whole").read_bytes()
            file.write(half[: len(half) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = die_halfway
        write_snapshot(take_snapshot(2, {{"": model}}, [], [], {{}}), folder / "snapshot-2.pt")
        """
    )
    died = run([sys.executable, "-c", program])
    assert died.returncode == -signal.SIGKILL
    assert not (tmp_path / "snapshot-2.pt").exists()
    assert read_snapshot(tmp_path / "snapshot-1.pt").steps == 1
