"""A program under ``gradwatch run`` is what it is under ``python``; none of these imports torch."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gradwatch

pytestmark = pytest.mark.process

WATCHED = (sys.executable, "-m", "gradwatch", "run")
BARE = (sys.executable,)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(gradwatch.__file__).parent.parent)}


def both(directory, *command):
    """(bare, watched) of one command line in one directory."""
    done = [
        subprocess.run([*before, *command], cwd=directory, env=ENVIRONMENT, capture_output=True, text=True)
        for before in (BARE, WATCHED)
    ]
    done[1].stderr, _, done[1].summary = done[1].stderr.partition("gradwatch: ")
    return done


def assert_alike(bare, watched):
    assert watched.stdout == bare.stdout
    assert watched.returncode == bare.returncode
    assert watched.stderr == bare.stderr


def write(directory, name, program):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(program), encoding="utf-8")
    return path


ABOUT_ITSELF = """
    import inspect, pickle, sys

    class Kept:
        def __eq__(self, other):
            return type(other) is Kept

    def where():
        main = sys.modules["__main__"]
        return main.where is where, main.__dict__ is globals()

    if __name__ == "__main__":
        print(sys.argv, sys.path[0], __file__, __doc__)
        print(__spec__ and __spec__.name, __package__, type(__loader__).__name__)
        print(sorted(name for name in globals() if name.startswith("__")))
        print(pickle.loads(pickle.dumps(Kept())) == Kept(), Kept.__module__)
        print(inspect.getsource(Kept), where(), sys.exc_info())
        print("torch" in sys.modules, "click" in sys.modules)
"""


@pytest.mark.parametrize("how", ["train.py", "./train.py", "{directory}/train.py", "deep/train.py", "link.py"])
def test_a_script_finds_itself_as_it_does_under_python(tmp_path, how):
    write(tmp_path, "train.py", ABOUT_ITSELF)
    write(tmp_path, "deep/train.py", ABOUT_ITSELF)
    (tmp_path / "link.py").symlink_to("deep/train.py")
    arguments = ["--log-dir", "theirs", "-m", "x", "--clip=1", "--help", "--", "-h", ""]
    bare, watched = both(tmp_path, how.format(directory=tmp_path), *arguments)
    assert_alike(bare, watched)
    assert "--help" in bare.stdout
    assert not (tmp_path / "theirs").exists()


def test_a_module_finds_itself_and_its_package(tmp_path):
    write(tmp_path, "package/__init__.py", "print('package')")
    write(tmp_path, "package/other.py", "VALUE = 3")
    write(tmp_path, "package/train.py", ABOUT_ITSELF + "\n        from .other import VALUE; print(VALUE)\n")
    write(tmp_path, "package/__main__.py", "from package.other import VALUE; import sys; print(sys.argv, VALUE)")
    for module in ("package.train", "package"):
        bare, watched = both(tmp_path, "-m", module, "--epochs", "3", "-m", "y")
        assert_alike(bare, watched)
        assert "3" in bare.stdout


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("sys.exit(3)", 3),
        ("sys.exit(0)", 0),
        ("sys.exit()", 0),
        ("sys.exit('a message')", 1),
        ("raise SystemExit(True)", 1),
        ("raise KeyError('key')", 1),
        ("int('x')", 1),
        ("nested()", 1),
        ("os._exit(5)", 5),
        ("os.abort()", -signal.SIGABRT),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("signal.signal(signal.SIGTERM, lambda *a: sys.exit(7)); os.kill(os.getpid(), signal.SIGTERM)", 7),
        ("sys.excepthook = lambda *a: print('hooked', a[0]); raise ValueError", 1),
        ("atexit.register(os._exit, 9)", 9),
        ("threading.Timer(0.1, print, ['a thread']).start()", 0),
    ],
)
def test_it_ends_as_it_does_under_python(tmp_path, ending, status):
    program = f"""
        import atexit, os, signal, sys, threading

        def nested():
            try:
                int("x")
            except ValueError as error:
                raise RuntimeError("and so") from error

        atexit.register(print, "at exit", flush=True)
        print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), flush=True)
        {ending}
    """
    write(tmp_path, "train.py", program)
    bare, watched = both(tmp_path, "train.py")
    assert bare.returncode == status
    assert_alike(bare, watched)


def test_a_syntax_error_is_pointed_at(tmp_path):
    write(tmp_path, "train.py", "x = (\n")
    bare, watched = both(tmp_path, "train.py")
    assert_alike(bare, watched)
    assert watched.summary.startswith("the script ended before an optimizer")  # what it asks of loops would mislead


def test_streams_are_the_programs_own(tmp_path):
    write(tmp_path, "train.py", "import sys; print(sys.stdin.read()[::-1]); print('to stderr', file=sys.stderr)")
    done = [
        subprocess.run(
            [*before, "train.py"], cwd=tmp_path, env=ENVIRONMENT, input="abc", capture_output=True, text=True
        )
        for before in (BARE, WATCHED)
    ]
    assert done[0].stdout == done[1].stdout == "cba\n"
    assert done[1].stderr.startswith("to stderr\ngradwatch: no optimizer of torch.optim has stepped")


def test_modules_beside_the_script_come_before_any_of_ours(tmp_path):
    write(tmp_path, "deep/click.py", "VALUE = 'its own click'")
    write(tmp_path, "deep/findings.py", "VALUE = 'its own findings'")
    write(tmp_path, "deep/train.py", "import click, findings; print(click.VALUE, findings.VALUE)")
    assert_alike(*both(tmp_path, "deep/train.py"))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_find_the_programs_classes_and_functions(tmp_path, method):
    program = f"""
        import multiprocessing, sys

        class Item:
            def __init__(self, value):
                self.value = value

        def work(item):
            return Item(item.value + 1)

        if __name__ == "__main__":
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                print([item.value for item in pool.map(work, [Item(1), Item(2)])])
    """
    write(tmp_path, "train.py", program)
    write(tmp_path, "package/train.py", program)
    for command in (["train.py"], ["-m", "package.train"]):
        bare, watched = both(tmp_path, *command)
        assert_alike(bare, watched)
        assert bare.stdout == "[2, 3]\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.py"], "no such file: absent.py"),
        (["."], "found a directory: ."),
        (["-"], "save the script as a file"),
        (["/dev/null"], "found no plain file: /dev/null"),
        (["-m", "absent_module"], "absent_module"),
        (["--clip", "-1", "train.py"], "positive number"),
        (["--clip", "much", "train.py"], "'much'"),
        (["--fail-on", "exploding,nan", "train.py"], "'nan'"),
        (["--log-dir", "train.py", "train.py"], "is a file"),
        ([], "Missing argument"),
    ],
)
def test_what_is_asked_wrongly_is_answered_with_status_2(tmp_path, arguments, said):
    write(tmp_path, "train.py", "print('ran')")
    done = subprocess.run([*WATCHED, *arguments], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


def test_a_module_that_is_missing_from_its_package_ends_with_1_as_under_python(tmp_path):
    write(tmp_path, "package/__init__.py", "")
    bare, watched = both(tmp_path, "-m", "package.absent")
    assert_alike(bare, watched)
    assert bare.returncode == 1
