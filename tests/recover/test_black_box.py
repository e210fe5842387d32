import getpass
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.recover.black_box_file import BlackBoxFileError, read_black_box, write_atomically
from gradwatch.recover.flight_recorder import MOST_FILES
from gradwatch.recover.plain_values import as_plain, holds_everything, rebuild, without_paths
from gradwatch.recover.training_state import bytes_of_training
from tests.forked_python import run


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def batches_of(steps, sick=None):
    """Return batches of 16 rows; row 3 of batch ``sick`` holds an Inf."""
    torch.manual_seed(1)
    batches = [(torch.randn(16, 4), torch.randn(16, 2)) for _ in range(steps)]
    if sick is not None:
        batches[sick][0][3, 1] = float("inf")
    return batches


def train(batches, path, *, notes=True, raises_at=None, **keywords):
    """Train with a black box; return the watcher and the model."""
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(2)
    with gradwatch.watch(model, optimizer, black_box=path, **keywords) as watcher:
        for step, (x, y) in enumerate(batches):
            if notes and watcher.black_box is not None:
                watcher.black_box.note_batch((x, y))
            loss = (model(x) - y).square().mean()
            if step == raises_at:
                raise RuntimeError("no such file: /home/somebody/secret/data.bin")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return watcher, model


def test_a_finding_of_severity_error_writes_the_last_steps(tmp_path):
    batches = batches_of(8, sick=5)
    watcher, _ = train(batches, tmp_path / "box.pt")
    content = read_black_box(tmp_path / "box.pt")
    assert watcher.findings[0].step == 5
    assert content["reason"]["kind"] == "finding"
    assert content["reason"]["finding"]["kind"] == "nonfinite"
    assert [step["step"] for step in content["steps"]] == [2, 3, 4, 5]
    last = content["steps"][-1]
    assert torch.equal(last["calls"][0]["args"][0], batches[5][0])
    assert torch.equal(last["batches"][0]["batch"][1], batches[5][1])
    assert last["figures"]["nonfinite"]
    assert sorted(last["gradients"]) == sorted(last["figures"]["grad_norm"])
    assert content["state_before"] == content["target"] == 5


@pytest.mark.parametrize("keywords", [{}, {"on_nonfinite": "skip"}, {"copy": True}], ids=["report", "skip", "copy"])
def test_weights_and_optimizer_are_those_of_before_the_failed_step(tmp_path, keywords):
    options = {key: value for key, value in keywords.items() if key != "copy"}
    box = gradwatch.BlackBox(tmp_path / "box.pt", copy_state="copy" in keywords)
    train(batches_of(6, sick=5), box, **options)
    healthy_model = train(batches_of(6, sick=5)[:5], None)[1]
    saved = read_black_box(tmp_path / "box.pt")["state"]
    for name, weight in healthy_model.named_parameters():
        assert torch.equal(saved["weights"][name], weight), name
    assert saved["optimizers"][0]["kind"] == "AdamW"
    assert float(saved["optimizers"][0]["entries"][0]["step"]) == 5
    if "copy" in keywords:  # elsewhere the forward pass has moved these already
        for name, buffer in healthy_model.named_buffers():
            assert torch.equal(saved["buffers"][name], buffer), name


def test_an_error_is_raised_after_the_file_was_written(tmp_path):
    with pytest.raises(gradwatch.NonFiniteError):
        train(batches_of(6, sick=3), tmp_path / "box.pt", on_nonfinite="raise")
    content = read_black_box(tmp_path / "box.pt")
    assert content["target"] == content["state_before"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["box.pt"]


def test_an_exception_writes_the_step_that_it_has_cut_off_and_no_path(tmp_path):
    with pytest.raises(RuntimeError, match="no such file"):
        train(batches_of(6), tmp_path / "box.pt", raises_at=4)
    content = read_black_box(tmp_path / "box.pt")
    assert content["reason"]["exception"] == {"type": "RuntimeError", "message": "no such file: data.bin"}
    assert [step["step"] for step in content["steps"]] == [0, 1, 2, 3, 4][-5:]
    assert content["target"] == content["state_before"] == 4


def test_an_interrupted_run_writes_nothing(tmp_path):
    model = model_of()
    watcher = gradwatch.watch(model, black_box=tmp_path / "box.pt")
    model(torch.randn(4, 4)).sum().backward()
    watcher.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not (tmp_path / "box.pt").exists()


def test_a_healthy_run_writes_nothing_but_what_it_is_asked_for(tmp_path, caplog):
    train(batches_of(3), tmp_path / "box.pt")
    assert not (tmp_path / "box.pt").exists()
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, black_box=gradwatch.BlackBox(tmp_path / "b.pt", steps=2)) as watcher:
        assert watcher.black_box.write() is None
        assert "the black box keeps no step" in caplog.text
        for x, y in batches_of(4):
            (model(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert watcher.black_box.write(tmp_path / "asked.pt") == tmp_path / "asked.pt"
    content = read_black_box(tmp_path / "asked.pt")
    assert [step["step"] for step in content["steps"]] == [2, 3]
    assert content["reason"] == {"kind": "asked"}
    assert content["state_before"] == 4  # step 3 was made before anybody asked


def test_training_with_a_black_box_is_bit_for_bit_what_it_is_without(tmp_path):
    plain = train(batches_of(8, sick=6), None)[1]
    boxed = train(batches_of(8, sick=6), gradwatch.BlackBox(tmp_path / "box.pt", copy_state=True))[1]
    for one, other in zip(plain.state_dict().values(), boxed.state_dict().values(), strict=True):
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))


def test_each_failure_has_a_file_and_a_run_has_few(tmp_path):
    finding = train(batches_of(4, sick=3), None)[0].findings[0]
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, black_box=tmp_path / "box.pt") as watcher:
        for step, (x, y) in enumerate(batches_of(8)):
            (model(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            for _ in range(2):  # the finding of a layer, and that of the loss
                watcher.black_box.note_finding(replace(finding, step=step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["box.pt", "box.step-1.pt", "box.step-2.pt", "box.step-3.pt"]
    assert len(names) == MOST_FILES


def test_the_file_holds_no_names_of_people_machines_or_folders(tmp_path):
    train(batches_of(6, sick=4), tmp_path / "box.pt")
    raw = (tmp_path / "box.pt").read_bytes()
    names = [socket.gethostname(), os.getcwd(), str(tmp_path), sys.executable, str(Path.home() / "x")[:-1]]
    names += [getpass.getuser()] if getpass.getuser() != "root" else []  # which is also a word
    assert [name for name in names if len(name) > 3 and name.encode() in raw] == []


def test_a_slice_of_a_large_tensor_does_not_bring_the_whole_along(tmp_path):
    data = torch.randn(100_000, 4)
    data[35, 0] = float("nan")
    batches = [(data[start : start + 16], torch.randn(16, 2)) for start in range(0, 48, 16)]
    train(batches, tmp_path / "box.pt")
    assert (tmp_path / "box.pt").stat().st_size < 200_000


def test_a_file_that_would_be_too_large_is_refused_with_words(tmp_path, caplog):
    train(batches_of(6, sick=5), gradwatch.BlackBox(tmp_path / "box.pt", most_bytes=1000))
    assert not (tmp_path / "box.pt").exists()
    assert "more than most_bytes=1000" in caplog.text


def test_the_state_of_optimizers_is_left_out_first(tmp_path):
    state = bytes_of_training({"": model_of()})
    batches = (
        4 * 4 * (16 * 4 + 16 * 4 + 16 * 2 + 16 * 2)
    )  # given to the model, handed over, targets, outputs' gradients
    train(batches_of(6, sick=5), gradwatch.BlackBox(tmp_path / "box.pt", most_bytes=state + batches))
    assert read_black_box(tmp_path / "box.pt")["state"]["optimizers"] == []


def test_what_identifies_a_batch_is_kept_in_place_of_it(tmp_path):
    box = gradwatch.BlackBox(tmp_path / "box.pt", identify=lambda args, kwargs: {"first": float(args[0][0, 0])})
    batches = batches_of(4, sick=3)
    train(batches, box, notes=False)
    call = read_black_box(tmp_path / "box.pt")["steps"][-1]["calls"][0]
    assert call["args"] is None
    assert call["identity"] == {"first": float(batches[3][0][0, 0])}


def test_a_folder_that_cannot_be_written_to_loses_the_file_and_not_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    watcher, _ = train(batches_of(6, sick=3), tmp_path / "file" / "box.pt")
    assert len(watcher.history.steps) == 6
    assert "could not be written" in caplog.text


def test_a_fault_in_what_the_user_gave_never_stops_the_run(tmp_path, caplog):
    def identify(args, kwargs):
        raise OSError("no")

    watcher, _ = train(batches_of(6), gradwatch.BlackBox(tmp_path / "box.pt", identify=identify))
    assert len(watcher.history.steps) == 6
    assert [record.levelno for record in caplog.records if "black box" in record.message] == [logging.WARNING] * 2


PROGRAM = """
import torch, sys
from pathlib import Path
from gradwatch.recover.black_box_file import write_atomically
path = Path(sys.argv[1])
content = {"reason": {"kind": "asked"}, "about": {}, "state": {}, "steps": [{"step": 1}]}
content["filler"] = torch.ones(5_000_000)
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_leaves_the_earlier_file_whole(tmp_path):
    path = tmp_path / "box.pt"
    code = PROGRAM + "while True:\n    write_atomically(path, content)\n"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        while not (path.exists() and (tmp_path / ".box.pt.part").exists()):
            assert process.poll() is None, "the process has ended by itself"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_black_box(path)["filler"].sum() == 5_000_000
    write_atomically(path, {"reason": {}, "about": {}, "state": {}, "steps": [{"step": 2}]})  # over what was left
    assert [each.name for each in tmp_path.iterdir()] == ["box.pt"]


@pytest.mark.process
def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "box.pt"
    write_atomically(path, {"reason": {}, "about": {}, "state": {}, "steps": [{"step": 7}]})
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + PROGRAM
    code += "try:\n    write_atomically(path, content)\nexcept (OSError, RuntimeError):\n    print('refused')\n"
    done = run([sys.executable, "-c", code, str(path)], check=True)
    assert done.stdout.strip() == "refused"
    assert read_black_box(path)["steps"] == [{"step": 7}]
    assert [each.name for each in tmp_path.iterdir()] == ["box.pt"]


def test_files_of_something_else_are_refused_clearly(tmp_path):
    with pytest.raises(BlackBoxFileError, match="no such file"):
        read_black_box(tmp_path / "none.pt")
    with pytest.raises(BlackBoxFileError, match="is a folder"):
        read_black_box(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BlackBoxFileError, match="damaged, or was not written"):
        read_black_box(tmp_path / "text")
    torch.save({"weight": torch.ones(2)}, tmp_path / "checkpoint.pt")
    with pytest.raises(BlackBoxFileError, match="may be a checkpoint"):
        read_black_box(tmp_path / "checkpoint.pt")
    torch.save({"format": "gradwatch black box", "version": 99}, tmp_path / "new.pt")
    with pytest.raises(BlackBoxFileError, match="version 99 of the format, and this gradwatch reads version 1"):
        read_black_box(tmp_path / "new.pt")
    torch.save({"format": "gradwatch black box", "version": 1, "steps": []}, tmp_path / "empty.pt")
    with pytest.raises(BlackBoxFileError, match="lacks reason, state, about"):
        read_black_box(tmp_path / "empty.pt")


def test_a_file_that_would_execute_something_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": "gradwatch black box", "version": 1, "steps": [Bomb()]}, tmp_path / "bomb.pt")
    with pytest.raises(BlackBoxFileError, match="damaged, or was not written"):
        read_black_box(tmp_path / "bomb.pt")
    assert not (tmp_path / "executed").exists()


def test_batches_become_plain_and_come_back(tmp_path):
    import numpy as np

    batch = {"x": (torch.ones(2), [1, None, "a"]), "n": np.arange(3), "f": np.float32(0.5), 7: True}
    torch.save(as_plain(batch), tmp_path / "batch.pt")
    back = rebuild(torch.load(tmp_path / "batch.pt", weights_only=True))
    assert back["x"][0].tolist() == [1, 1]
    assert back["x"][1] == [1, None, "a"]
    assert back["n"].tolist() == [0, 1, 2]
    assert (back["f"], back[7]) == (0.5, True)
    odd = as_plain({"x": [object()]})
    assert odd == {"x": [{"gradwatch: left out": "builtins.object"}]}
    assert not holds_everything(odd)
    itself = []
    itself.append(itself)
    assert not holds_everything(as_plain(itself))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open /home/me/data/x.bin: no", "cannot open x.bin: no"),
        (r"cannot open C:\Users\me\x.bin", "cannot open x.bin"),
        ("shapes (3, 4) and 1/2 differ", "shapes (3, 4) and 1/2 differ"),
        ("nothing", "nothing"),
    ],
)
def test_paths_in_a_text_lose_their_folders(text, expected):
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gradwatch.BlackBox(""), "expected the path of a file"),
        (lambda: gradwatch.BlackBox("a", steps=0), r"steps=0\): expected a whole number"),
        (lambda: gradwatch.BlackBox("a", identify=3), "expected a function"),
        (lambda: gradwatch.watch(model_of(), black_box=3), "black_box=3: expected a path"),
        (lambda: gradwatch.watch_tensors({"w": torch.ones(2)}, black_box="a"), "bare tensors cannot be run again"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()
