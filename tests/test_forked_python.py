"""A forked Python runs a program as a real one does."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.forked_python import run

pytestmark = pytest.mark.process

PROGRAMS = {
    "arguments and path": "import os, sys; print(sys.argv, sys.path[:3], os.getcwd(), __name__, os.environ['MARK'])",
    "modules": "import sys; print('torch' in sys.modules, 'numpy' in sys.modules, 'gradwatch' in sys.modules)",
    "streams": "import sys; print(sys.stdin.read()[::-1]); print('error', file=sys.stderr)",
    "a message": "import sys; sys.exit('a message')",
    "a status": "import sys; sys.exit(3)",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "the end": "import atexit, threading; atexit.register(print, 0); threading.Timer(0.1, print, [1]).start()",
    "a warning": "import warnings; warnings.warn('known', UserWarning); warnings.warn('other', UserWarning)",
    "classes": "import pickle\nclass Kept: pass\nprint(type(pickle.loads(pickle.dumps(Kept()))))",
    "workers": (
        "import multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn'):\n"
        "        with multiprocessing.get_context(method).Pool(1) as pool:\n"
        "            print(pool.map(abs, [-1]))"
    ),
}


@pytest.mark.parametrize("how", ["script", "code", "module"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_does_what_it_does_under_a_new_python(program, how, tmp_path):
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    target = {"script": ["program.py"], "code": ["-c", program], "module": ["-m", "program"]}[how]
    if how == "code" and "__main__" in program and "multiprocessing" in program:
        target = ["program.py"]  # workers of a -c program have no program
    command = [sys.executable, "-W", "ignore", "-W", "default:known:UserWarning", *target, "--option", "x"]
    env = {**os.environ, "MARK": "set", "PYTHONPATH": str(tmp_path / "below")}
    real = subprocess.run(command, cwd=tmp_path, env=env, input="abc", capture_output=True, text=True, timeout=60)
    forked = run(command, cwd=tmp_path, env=env, input="abc", timeout=60)
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert forked.stderr == real.stderr


def test_a_package_appears_when_it_is_imported_and_is_itself():
    program = """
import sys
print("torch" in sys.modules, "numpy" in sys.modules)
import torch.nn.functional as F, torch
print("torch" in sys.modules, F.relu(torch.ones(2)).tolist(), torch.__spec__.loader.path)
import numpy
print(torch.ones(2).numpy() + numpy.ones(2))
"""
    lines = run([sys.executable, "-c", program], check=True).stdout.splitlines()
    assert lines == ["False False", f"True [1.0, 1.0] {torch.__spec__.origin}", "[2. 2.]"]


def test_each_program_draws_numbers_of_its_own():
    command = [sys.executable, "-c", "import random, numpy; print(random.random(), numpy.random.rand())"]
    assert not set(run(command).stdout.split()) & set(run(command).stdout.split())


def test_a_program_that_takes_too_long_is_killed(tmp_path):
    program = f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(99)"
    command = [sys.executable, "-c", program]
    with pytest.raises(subprocess.TimeoutExpired):
        run(command, timeout=2)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("it lives")


def test_a_failed_program_raises_where_that_is_asked_for():
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"], check=True)
    assert run([sys.executable, "-c", "import os; os.abort()"]).returncode == -signal.SIGABRT
