"""Run programs bare and under gradwatch, in all sorts of environments and to all sorts of ends, and compare them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.endurance import ends
from benchmarks.endurance.ends import ENDS, NO_SUMMARY
from benchmarks.endurance.figure import Figure, at_least_one, draws_of
from tests import forked_python
from tests.ctrl_c import interrupted_twice

__all__ = ["attack"]

DEADLINE = 300.0  # seconds for a process, on a machine however busy
ALWAYS = (0, 1, 2, 7, 120, *range(126, 131), 255)
"""Statuses that mean something to Python, to shells or to gradwatch."""

_HERE, _ROOT = Path(__file__).parent, Path(__file__).parents[2]
_PR_CAPBSET_DROP, _CAPABILITIES = 24, (1, 2, 3)  # of Linux: root may then do with files what their modes allow
_LOADED = (*forked_python.TORCH, "torch._dynamo", "torch.utils.tensorboard", "rich.console", "click")
_OURS = re.compile(r"^gradwatch: .*\n?|^  (why, and what to do|No scalar loss).*\n?", re.MULTILINE)
_SUMMARY = re.compile(r"^gradwatch: .*(\d+ steps?, |no optimizer of torch)", re.MULTILINE)


@dataclass(frozen=True)
class Surrounding:
    """An environment for a program.

    Attributes:
        options: of the interpreter.
        variables: of the environment that are set; None takes one away.
        statements: what the program executes first.
        shell: how its streams are redirected.
        prepare: is called in the new process before Python starts.
        closed: the home and the current directory may not be written.
    """

    options: tuple[str, ...] = ()
    variables: Mapping[str, str | None] = field(default_factory=dict)
    statements: tuple[str, ...] = ()
    shell: str = ""
    prepare: Callable[[], object] = lambda: None
    closed: bool = False


def _limit(which: int, limit: int) -> Callable[[], object]:
    return lambda: resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))


def _without_privileges() -> None:
    """Take from root the right to write what modes forbid, where this is root."""
    if os.geteuid() == 0:
        for capability in _CAPABILITIES:
            ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


_MOVED = "import os, tempfile; made = tempfile.mkdtemp(); os.chdir(made); os.rmdir(made)"
SURROUNDINGS: dict[str, Surrounding] = {
    "python -O": Surrounding(("-O",)),
    "python -OO": Surrounding(("-OO",)),
    "-W error": Surrounding(("-W", "error")),
    "-X dev": Surrounding(("-X", "dev")),
    "-P": Surrounding(("-P",)) if sys.version_info >= (3, 11) else Surrounding(("-s",)),
    "LANG=C without UTF-8": Surrounding(
        variables={"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ),
    "stdout in ASCII": Surrounding(variables={"PYTHONIOENCODING": "ascii"}),
    "home and current directory closed": Surrounding(
        variables={"PYTHONPYCACHEPREFIX": "/proc/nowhere"}, prepare=_without_privileges, closed=True
    ),
    "no HOME": Surrounding(variables={"HOME": None}),
    "HOME is not there": Surrounding(variables={"HOME": "/proc/nowhere"}),
    "no PATH": Surrounding(variables={"PATH": None}),
    "no variables": Surrounding(variables=dict.fromkeys(set(os.environ) - {"PYTHONPATH"})),
    "TMPDIR is not there": Surrounding(variables={"TMPDIR": "/proc/nowhere"}),
    "current directory deleted": Surrounding(statements=(_MOVED,)),
    "default device cpu": Surrounding(statements=("torch.set_default_device('cpu')",)),
    "default device meta": Surrounding(statements=("torch.set_default_device('meta')",)),
    "default float64": Surrounding(statements=("torch.set_default_dtype(torch.float64)",)),
    "default float16": Surrounding(statements=("torch.set_default_dtype(torch.float16)",)),
    "default bfloat16": Surrounding(statements=("torch.set_default_dtype(torch.bfloat16)",)),
    "24 descriptors": Surrounding(prepare=_limit(resource.RLIMIT_NOFILE, 24)),
    "a stack of 1 MB": Surrounding(prepare=_limit(resource.RLIMIT_STACK, 2**20)),
    "8 GB of addresses": Surrounding(prepare=_limit(resource.RLIMIT_AS, 8 * 2**30)),
    "no core dumps, idle priority": Surrounding(prepare=lambda: os.nice(19)),
    "stdin closed": Surrounding(shell="<&-"),
    "stdout closed": Surrounding(shell=">&-"),
    "stderr closed": Surrounding(shell="2>&-"),
    "all streams closed": Surrounding(shell="<&- >&- 2>&-"),
    "stdout and stderr full": Surrounding(shell=">/dev/full 2>/dev/full"),
    "deterministic algorithms": Surrounding(statements=("torch.use_deterministic_algorithms(True)",)),
    "recursion limit of 160": Surrounding(statements=("import sys; sys.setrecursionlimit(160)",)),
}
"""By name."""


def attack(share: float, seed: int) -> Iterator[Figure]:
    """Compare bare and watched programs in every environment and to every end."""
    draws = draws_of(seed, 0)
    names = sorted(draws.sample(list(SURROUNDINGS), at_least_one(share, len(SURROUNDINGS))))
    yield _figure("environments: " + ", ".join(names), names, _in_surrounding)
    statuses = {*ALWAYS, *draws.sample(range(256), at_least_one(share, 256))} if share < 1 else {*range(256)}
    yield _figure("`gradwatch run`: exit statuses", sorted(map(str, statuses)), lambda each: _ended(("status", each)))
    some = sorted(draws.sample(list(ENDS), at_least_one(share, len(ENDS))))
    yield _figure("`gradwatch run`: other ends", some, _really_ended)
    programs = sorted(draws.sample(list(_PROGRAMS), at_least_one(share, len(_PROGRAMS))))
    yield _figure("`gradwatch run`: " + ", ".join(programs), programs, lambda each: _PROGRAMS[each]())


def _figure(what: str, names: Sequence[str], compare: Callable[[str], list[str]]) -> Figure:
    """Compare each of ``names``; what differs is printed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(names, pool.map(compare, names), strict=True))
    wrong = {name: words for name, words in found.items() if words}
    for name, words in wrong.items():
        print(f"    {name}: {'; '.join(words)}", file=sys.stderr)
    missing = sum("no summary" in words for words in wrong.values())
    differ = sum(any(each != "no summary" for each in words) for words in wrong.values())
    reached = f"{differ} of {len(names)} differ, {missing} without summary"
    return Figure(f"{what} ({len(names)})", "0 differ, 0 without summary or finding", reached, not wrong)


# environments


def _in_surrounding(name: str) -> list[str]:
    """Return in words how a watched program in an environment differs from a bare one."""
    with _folder() as folder:
        bare, watched = (_run_in(SURROUNDINGS[name], folder / how, how) for how in ("bare", "watched"))
        if bare.status != 0:
            return [] if watched.status == bare.status else [f"bare {bare}, watched {watched}"]
        wrong = [] if (bare.status, bare.digest) == (watched.status, watched.digest) else [f"{bare} and {watched}"]
        return wrong + _missing_in(folder / "watched")


@dataclass(frozen=True)
class _Ended:
    status: int
    digest: str
    error: str


def _run_in(surrounding: Surrounding, folder: Path, how: str) -> _Ended:
    """Run the program in its environment."""
    folder.mkdir()
    below = folder / "closed"
    below.mkdir()
    variables = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "HOME": str(below)}
    for name, value in surrounding.variables.items():
        variables.pop(name, None)
        variables |= {} if value is None else {name: value}
    if surrounding.closed:
        below.chmod(0o500)
    command = [sys.executable, *surrounding.options, str(_HERE / "surrounded.py"), str(folder), how]
    command += surrounding.statements
    if surrounding.shell:
        command = ["/bin/sh", "-c", f'exec "$@" {surrounding.shell}', "sh", *command]
    done = subprocess.run(
        command, cwd=below, env=variables, capture_output=True, text=True, timeout=DEADLINE, check=False,
        errors="replace", preexec_fn=surrounding.prepare,
    )  # fmt: skip
    digest = folder / "digest"
    return _Ended(done.returncode, digest.read_text("ascii") if digest.exists() else "", done.stderr[-600:])


def _missing_in(folder: Path) -> list[str]:
    """Return in which files there is no finding of the NaN."""
    lines = map(json.loads, (folder / "run.jsonl").read_text("utf-8").splitlines())
    wrong = [] if any(line.get("kind") == "nonfinite" for line in lines) else ["no finding in JSON lines"]
    report = [sys.executable, "-m", "gradwatch", "report", str(folder / "run"), "--fail-on", "nonfinite"]
    done = forked_python.run(report, loaded=_LOADED, env={**os.environ, "PYTHONPATH": str(_ROOT)}, timeout=DEADLINE)
    return wrong if done.returncode == 1 else [*wrong, f"the report ends with {done.returncode}"]


# ends


def _ended(words: tuple[str, ...]) -> list[str]:
    """Return in words how a script that ends so under ``gradwatch run`` differs from a bare one."""
    with _folder() as folder:
        shutil.copy(ends.__file__, folder / "ends.py")
        bare, watched = _both(folder, ["ends.py", *words])
        return _differences(bare, watched, has_summary=words[0] not in NO_SUMMARY)


def _really_ended(name: str) -> list[str]:
    """Return the same of another end: tracebacks and interrupts need processes that nobody has forked."""
    if name not in ends.SHOWS_FRAMES:
        return _ended((name,))
    with _folder() as folder:
        shutil.copy(ends.__file__, folder / "ends.py")
        commands = ([sys.executable, *before, "ends.py", name] for before in ((), _watched(folder)))
        bare, watched = (_run(command, folder) for command in commands)
        return _differences(bare, watched, has_summary=True)


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=_variables(), capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def _variables() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def _watched(folder: Path) -> tuple[str, ...]:
    return "-m", "gradwatch", "run", "--log-dir", str(folder / "runs")


def _both(
    folder: Path, program: Sequence[str], loaded: tuple[str, ...] = _LOADED
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """Run a program bare and under ``gradwatch run``, each in a process of its own."""
    bare, watched = (
        forked_python.run(
            [sys.executable, *before, *program], loaded=loaded, cwd=folder, env=_variables(), timeout=DEADLINE
        )
        for before in ((), _watched(folder))
    )
    return bare, watched


def _differences(
    bare: subprocess.CompletedProcess[str], watched: subprocess.CompletedProcess[str], *, has_summary: bool
) -> list[str]:
    wrong = []
    # Python means to end by SIGINT after Ctrl-C, and does not where any function at exit has evaluated a string
    is_interrupted = bare.stderr.endswith("KeyboardInterrupt\n") and watched.returncode == -signal.SIGINT
    if bare.returncode != watched.returncode and not is_interrupted:
        wrong.append(f"status {watched.returncode}, bare {bare.returncode}")
    for name, one, other in (("stdout", bare.stdout, watched.stdout), ("stderr", bare.stderr, watched.stderr)):
        if _shown(one) != _shown(other):
            wrong.append(f"{name} {_shown(other)[-600:]!r}, bare {_shown(one)[-600:]!r}")
    if has_summary and not _SUMMARY.search(watched.stderr):
        wrong.append("no summary")
    return wrong


def _shown(text: str) -> str:
    """Return what the program has shown, without our lines, addresses and times."""
    return re.sub(r"0x[0-9a-f]+|\bin \d+\.\d+s|\d+:\d+:\d+", "…", _OURS.sub("", text))


# programs that run programs


def _pytest() -> list[str]:
    """Run tests, one of which fails."""
    test = """
        from ends import train

        def test_training():
            train()

        def test_that_fails():
            assert 1 == 2
    """
    with _folder() as folder:
        shutil.copy(ends.__file__, folder / "ends.py")
        (folder / "test_it.py").write_text("\n".join(line[8:] for line in test.splitlines()), encoding="utf-8")
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-s", "test_it.py"]
        return _differences(*_both(folder, command), has_summary=True)


def _module() -> list[str]:
    """Run a module of a package."""
    with _folder() as folder:
        (folder / "package").mkdir()
        (folder / "package" / "__init__.py").touch()
        shutil.copy(ends.__file__, folder / "package" / "ends.py")
        return _differences(*_both(folder, ["-m", "package.ends", "status", "21"]), has_summary=True)


def _notebook() -> list[str]:
    """Run a notebook by nbclient, whose kernel trains: the kernel is a process that is not watched."""
    runner = """
        import nbformat, nbclient

        if __name__ == "__main__":
            cells = [nbformat.v4.new_code_cell(each) for each in ("from ends import train; train()", "1 / 0")]
            notebook = nbformat.v4.new_notebook(cells=cells)
            client = nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True)
            client.execute()
            for cell in notebook.cells:
                print([(each.output_type, each.get("text"), each.get("evalue")) for each in cell.outputs])
    """
    with _folder() as folder:
        shutil.copy(ends.__file__, folder / "ends.py")
        (folder / "run.py").write_text("\n".join(line[8:] for line in runner.splitlines()), encoding="utf-8")
        return _differences(*_both(folder, ["run.py"]), has_summary=True)


def _interrupted_twice() -> list[str]:
    """Interrupt a training, and once more while it is being summed up: in a shell of its own."""
    script = "import ends\nprint('begun', flush=True)\nwhile True:\n    ends.train()\n"
    with _folder() as folder:
        shutil.copy(ends.__file__, folder / "ends.py")
        (folder / "run.py").write_text(script, encoding="utf-8")
        commands = ([sys.executable, *before, "run.py"] for before in ((), _watched(folder)))
        bare, watched = (_interrupt(command, folder) for command in commands)
        wrong = [] if watched.returncode == -signal.SIGINT else [f"{watched.returncode}, bare {bare.returncode}"]
        return wrong if _SUMMARY.search(watched.stderr) else [*wrong, "no summary"]


def _interrupt(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    ended: subprocess.CompletedProcess[str] = interrupted_twice(
        command, lambda line: line.startswith("trained"), cwd=folder, env=_variables(), seconds=DEADLINE
    )
    return ended


_PROGRAMS: dict[str, Callable[[], list[str]]] = {
    "pytest": _pytest,
    "a module of a package": _module,
    "a notebook's client": _notebook,
    "Ctrl-C twice": _interrupted_twice,
}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made).resolve()
