"""What a run was made with: written first, read back anywhere, and without a word of whose machine it was."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradwatch
from gradwatch.event_files.event import decode_event
from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.records import records
from gradwatch.event_files.run import Environment
from gradwatch.views.page import page_of
from gradwatch.views.plain import object_of
from gradwatch.watcher.environment import environment_of
from gradwatch.watcher.git_commit import git_commit
from tests.forked_python import run
from tests.written import FINDING, event, forge, train

MADE_WITH = {"versions": {"torch": "2.9"}, "devices": "CPU", "commit": "", "script": "train.py"}


def git(folder, *arguments):
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **identity})
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    (folder / "deep" / "down").mkdir(parents=True)
    git(folder, "init", "--quiet")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    return folder


def test_a_run_says_first_what_it_was_made_with(tmp_path):
    train(tmp_path)
    (file,) = tmp_path.glob("*tfevents*")
    own = [found for each in records(file) if (found := decode_event(each)) is not None]
    assert isinstance(own[0], Environment)
    assert sum(isinstance(each, Environment) for each in own) == 1
    (run,) = read_runs(tmp_path)
    assert run.environment == own[0]
    assert run.environment.versions["torch"] == torch.__version__
    assert run.environment.versions["python"] == platform.python_version()
    assert run.environment.versions["gradwatch"] == gradwatch.__version__
    assert run.environment.devices == "CPU"


def test_files_of_before_have_no_environment_and_are_read(tmp_path):
    forge(tmp_path, event(4, finding=FINDING))
    (run,) = read_runs(tmp_path)
    assert run.environment is None
    assert object_of(run)["environment"] is None


@pytest.mark.parametrize(
    "content",
    [{}, {**MADE_WITH, "versions": ["2.9"]}, {**MADE_WITH, "devices": 3}, {**MADE_WITH, "versions": {"torch": None}}],
)
def test_an_environment_that_is_none_is_refused_and_the_rest_is_read(tmp_path, content):
    forge(tmp_path, event(0, environment=content), event(4, finding=FINDING))
    (run,) = read_runs(tmp_path)
    assert run.environment is None
    assert len(run.findings) == 1
    assert "gradwatch/environment: expected versions" in run.problems[0]


def test_what_anyone_may_have_written_is_shown_as_text(tmp_path):
    forge(tmp_path, event(0, environment={**MADE_WITH, "script": "<b>\x1b[31m"}), event(4, finding=FINDING))
    (run,) = read_runs(tmp_path)
    assert "\x1b" not in run.environment.script
    assert "<b>" not in page_of([run])


def test_the_commit_is_that_of_git(repository, tmp_path):
    first = git(repository, "rev-parse", "HEAD")
    assert git_commit(repository / "deep" / "down") == first
    git(repository, "pack-refs", "--all")
    assert git_commit(repository) == first  # now a line of packed-refs
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "second")
    assert git_commit(repository) == git(repository, "rev-parse", "HEAD") != first
    git(repository, "worktree", "add", "--quiet", str(tmp_path / "other"), first)
    assert git_commit(tmp_path / "other") == first  # .git is a file there, and no branch is checked out
    git(repository, "worktree", "add", "--quiet", "-b", "third", str(tmp_path / "branch"), first)
    assert git_commit(tmp_path / "branch") == first


def test_there_is_no_commit_without_a_repository_or_in_a_broken_one(tmp_path):
    assert git_commit(Path(tmp_path.anchor)) == ""
    (tmp_path / ".git").mkdir()
    assert git_commit(tmp_path) == ""
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/none")
    assert git_commit(tmp_path) == ""


def test_several_devices_are_counted():
    tensors = [torch.ones(1, device=device) for device in ("cpu", "meta", "cpu")]
    assert environment_of(tensors).devices == "CPU and META"


TRAINING = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(5):
    loss = (model(torch.ones(2, 4)).sum() * (step != 3)).log()  # of zero
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(sys.argv[1])
raise ValueError("over")
"""
WATCHED = """
import gradwatch
sinks = [gradwatch.JsonLines("runs/run.jsonl"), gradwatch.Csv("runs/run.csv")]
options = {"log_dir": "runs/mine", "log_every_n_steps": 1, "layer_scalars": True, "histograms": True, "sinks": sinks}
watcher = gradwatch.watch(model, optimizer, black_box="runs/failed.pt", **options)
"""


@pytest.fixture
def told_by_nobody(repository):
    """A script's environment and arguments, and what of them is to be found in no file."""
    secrets = {
        "argument": "argument-s3cret",
        "value of an option": "0.01234567",
        "path in an option": "/srv/s3cret/x.csv",
        "variable": "variable-s3cret",
        "user": "lovelace-s3cret",
        "home": str(repository.parent),
        "run of torchrun": "elastic-s3cret",
    }
    variables = {
        "HOME": secrets["home"],
        "USER": secrets["user"],
        "LOGNAME": secrets["user"],
        "WANDB_API_KEY": secrets["variable"],
        "TORCHELASTIC_RUN_ID": secrets["run of torchrun"],
    }
    arguments = [secrets["argument"], "--rate", secrets["value of an option"], f"--data={secrets['path in an option']}"]
    return secrets, {**os.environ, **variables}, arguments


def read_of_all(folder):
    """Return the bytes of every file in a folder, and the names that they have."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    return content, " ".join(str(path.relative_to(folder)) for path in files)


@pytest.mark.process
@pytest.mark.parametrize("is_by_command", [False, True])
def test_no_argument_variable_or_name_of_a_user_is_in_any_file_of_a_run(repository, told_by_nobody, is_by_command):
    secrets, variables, arguments = told_by_nobody
    way = ["-m", "gradwatch", "run", "--log-dir", "runs/mine"] if is_by_command else []
    script = TRAINING if is_by_command else TRAINING.replace("for step", f"{WATCHED}for step", 1)
    (repository / "train.py").write_text(script)
    done = run([sys.executable, *way, "train.py", *arguments], cwd=repository, env=variables)
    assert "ValueError: over" in done.stderr
    assert secrets["argument"] in done.stdout
    content, names = read_of_all(repository / "runs")
    assert len(names.split()) == (1 if is_by_command else 8), names
    found = [what for what, secret in secrets.items() if secret.encode() in content or secret in names]
    assert found == []
    (read,) = read_runs(repository / "runs")
    assert read.findings
    assert read.environment.script == "train.py"
    assert read.environment.commit == git(repository, "rev-parse", "HEAD")
    page = page_of([read])
    assert "train.py" in page
    assert read.environment.commit[:12] in page
    assert not [what for what, secret in secrets.items() if secret in page and what != "home"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "script"),
    [
        (["train.py"], "train.py"),
        (["-m", "work.train"], "work.train"),
        (["-m", "work"], "work"),
        (["-c", "import work.train"], ""),
        (["-m", "gradwatch", "run", "--log-dir", "other", "-m", "work.train"], "work.train"),
    ],
)
def test_a_script_is_named_as_it_was_started(tmp_path, command, script):
    (tmp_path / "work").mkdir()
    text = "from gradwatch.watcher.environment import environment_of\nprint([environment_of([]).script])\n"
    for name in ("train.py", "work/train.py", "work/__main__.py"):
        (tmp_path / name).write_text(text)
    done = run([sys.executable, *command], cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[0] == str([script])


def test_the_page_names_neither_the_folders_of_a_home_nor_the_host_in_the_name_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "ada")
    directory = forge(
        tmp_path / "ada" / "runs" / "mine", event(4, finding=FINDING), name="events.out.tfevents.17.gpu7.1.0"
    )
    (file,) = directory.iterdir()
    file.write_bytes(file.read_bytes() + b"cut")
    (run,) = read_runs(directory)
    page = page_of([run])
    assert "<h2>runs/mine" in page
    assert "Not read: events.out.tfevents.17: ends within a record." in page
    assert all(secret not in page for secret in ("ada", "gpu7"))
