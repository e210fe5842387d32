"""What a run was made with: written first, read back anywhere, and without a word of whose machine it was."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import textwrap
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
from gradwatch.watcher.command_line import HIDDEN, shown_words
from gradwatch.watcher.environment import environment_of
from gradwatch.watcher.git_commit import git_commit
from tests.forked_python import run
from tests.written import FINDING, event, forge, train

MADE_WITH = {"versions": {"torch": "2.9"}, "devices": "CPU", "commit": "", "command": "python train.py"}
FOLDER = Path("/home/ada/project")


def words(*arguments, names=()):
    return shown_words(["/usr/bin/python3", *arguments], FOLDER, names)[1:]


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
    assert page_of([run]).count("<code>") == 0


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
    forge(tmp_path, event(0, environment={**MADE_WITH, "command": "<b>\x1b[31m"}), event(4, finding=FINDING))
    (run,) = read_runs(tmp_path)
    assert "\x1b" not in run.environment.command
    assert "<b>" not in page_of([run])


def test_of_absolute_paths_what_is_below_the_folder_or_the_last_name_remains():
    assert words("/home/ada/project/train.py", "/home/ada/data/x.csv") == ["train.py", "x.csv"]
    assert words("train.py", "--data=/home/ada/x.csv,/srv/y.csv", "~/z.csv") == [
        "train.py",
        "--data=x.csv,y.csv",
        "z.csv",
    ]
    assert words("train.py", "--lr", "1e-3", "runs/mine", "model.depth=3") == [
        "train.py", "--lr", "1e-3", "runs/mine", "model.depth=3",
    ]  # fmt: skip


def test_a_script_that_was_installed_beside_the_interpreter_is_a_command():
    arguments = ["/home/ada/.venv/bin/python", "/home/ada/.venv/bin/gradwatch", "run", "train.py"]
    assert shown_words(arguments, FOLDER, ()) == ["gradwatch", "run", "train.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train.py", "--api-key", "s3cret"),
        ("train.py", "--api-key=s3cret"),
        ("train.py", "wandb.api_key=s3cret"),
        ("train.py", "--token", "s3cret"),
        ("-c", "password = 's3cret'"),
        ("train.py", "--db", "postgres://ada:s3cret@gpu7/x"),
        ("train.py", "--url=https://host/s3cret"),
    ],
)
def test_secrets_addresses_and_code_are_hidden(arguments):
    shown = " ".join(words(*arguments))
    assert "s3cret" not in shown
    assert HIDDEN in shown


def test_names_of_user_and_host_are_hidden_and_words_that_hold_them_are_not():
    arguments = ("train.py", "--as", "ada", "--to", "gpu7:/data/x", "runs/ada/1", "adam", "--ada")
    shown = words(*arguments, names=["ada", "gpu7"])
    assert shown == ["train.py", "--as", HIDDEN, "--to", f"{HIDDEN}:x", f"runs/{HIDDEN}/1", "adam", "--ada"]


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


@pytest.mark.process
def test_nothing_in_the_files_of_a_script_says_whose_it_is(repository):
    home = repository.parent
    script = repository / "train.py"
    script.write_text(
        textwrap.dedent("""
        import torch, gradwatch
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with gradwatch.watch(model, optimizer, log_dir="runs/mine"):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        """)
    )
    environment = {**os.environ, "HOME": str(home), "USER": "lovelace"}
    command = [sys.executable, str(script), "--name", "lovelace", "--data", f"{home}/data/x.csv"]
    run(command, check=True, cwd=repository, env=environment)
    (read,) = read_runs(repository / "runs")
    told = json.dumps(dataclasses.asdict(read.environment))
    assert f"train.py --name {HIDDEN} --data x.csv" in read.environment.command
    assert read.environment.commit == git(repository, "rev-parse", "HEAD")
    secrets = ["lovelace", str(home), platform.node() or "lovelace"]
    page = page_of([read])
    assert read.environment.commit[:12] in page
    assert not [secret for secret in secrets if secret in told or secret in page]


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
