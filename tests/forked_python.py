"""Run Python programs as processes that need not load torch: each is a fork of one that has loaded it.

``run`` takes the command line of a Python and answers as ``subprocess.run`` does. The program is a process of its own,
with its own arguments, variables, directory, streams, exit status and signals, and ends as any program does. Only the
time of importing large packages is saved, 1 to 8 seconds each. The program sees none of them in ``sys.modules``
before it imports them; nothing of gradwatch is loaded beforehand.

What belongs to the start of an interpreter is that of the fork server: ``-O``, ``-X``, ``PYTHONHASHSEED``, the encoding
of the streams, what ``.pth`` files do. A test of those, of imports themselves or of how a process dies starts a real
Python by ``subprocess``. So do an example of Lightning, one of transformers and one of torch alone.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

TORCH = ("numpy", "torch", "torch.utils.data", "tensorboard.compat.proto.event_pb2")
"""What most programs load."""

FRAMEWORKS = (*TORCH, "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "transformers.trainer")
"""What programs of Lightning and Hugging Face load."""

SECONDS = 600  # a program takes seconds, more on a busy machine; one that hangs is ended
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The fork server must have no second thread, which no fork would have. They count as set for its programs, too."""


# the side of the tests


def run(
    command: Sequence[str | Path],
    *,
    loaded: tuple[str, ...] = TORCH,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: str = "",
    timeout: float = SECONDS,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run ``[sys.executable, *options, script or -m module or -c code, *arguments]``; both streams are captured.

    Args:
        command: the command line. The only option is ``-W``.
        loaded: the packages whose import takes no time.
        cwd, env, input, timeout, check: as of ``subprocess.run``.

    Raises:
        subprocess.TimeoutExpired: the process took too long, and was killed.
        subprocess.CalledProcessError: ``check`` is set, and the exit status is not 0.
    """
    words = [str(word) for word in command]
    assert words[0] == sys.executable, f"expected a command line of this Python, got {words[0]}"
    request = {"command": words[1:], "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(input.encode())
        streams[0].seek(0)
        status = _server_with(loaded).start(request, [stream.fileno() for stream in streams], words, timeout)
        out, error = (_text_of(stream) for stream in streams[1:])
    done = subprocess.CompletedProcess(words, status, out, error)
    if check:
        done.check_returncode()
    return done


def _text_of(stream: Any) -> str:
    """Return what was written, with the ends of lines as ``subprocess`` gives them."""
    stream.seek(0)
    return stream.read().decode().replace("\r\n", "\n").replace("\r", "\n")


@functools.cache
def _server_with(loaded: tuple[str, ...]) -> _Server:
    """Return the fork server of this process that has loaded these packages. It ends with this process."""
    return _Server(loaded)


class _Server:
    """A fork server, from outside."""

    def __init__(self, loaded: tuple[str, ...]) -> None:
        self._lock = threading.Lock()  # one request at a time goes through the socket
        self._socket, theirs = socket.socketpair()
        hidden = ("PYTHONPATH", "PYTHONWARNINGS", "COVERAGE_PROCESS_START")
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *loaded],
            pass_fds=[theirs.fileno()],
            env={name: value for name, value in os.environ.items() if name not in hidden} | SINGLE_THREAD,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        atexit.register(process.wait)
        atexit.register(self._socket.close)  # is called first

    def start(self, request: dict[str, Any], streams: list[int], command: list[str], timeout: float) -> int:
        """Return the exit status of a process that has these streams."""
        reading, writing = os.pipe()
        message = json.dumps(request).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(message).to_bytes(8, "big")], [*streams, writing])
            self._socket.sendall(message)
        os.close(writing)
        with open(reading, encoding="ascii") as answers:
            pid = int(answers.readline())
            timer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
            timer.start()
            status = int(answers.readline())
            in_time = timer.is_alive()
            timer.cancel()
        if not in_time:
            raise subprocess.TimeoutExpired(command, timeout)
        return status


# the side of the fork server


class _Hidden:
    """Packages that are loaded and that a program must import before it sees them: a finder, and their loader."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        known = self.modules[name].__spec__ if name in self.modules else None
        if known is None:
            return None
        found = ModuleSpec(name, _HiddenLoader(self.modules), origin=known.origin)
        found.submodule_search_locations, found.cached = known.submodule_search_locations, known.cached
        found.has_location = known.has_location
        return found


class _HiddenLoader:
    """Show a module and all that is loaded of its package; one object for each import, as Python's own loaders are."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self.modules = modules

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = self.modules[spec.name]
        self._known = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._known
        package = module.__name__.partition(".")[0]
        sys.modules |= {name: each for name, each in self.modules.items() if name.partition(".")[0] == package}


def _load(names: Sequence[str]) -> tuple[_Hidden, list[Any]]:
    """Import these packages and hide them; return them, and the filters of warnings that they have added."""
    known, filters = set(sys.modules), list(warnings.filters)
    for name in names:
        importlib.import_module(name)
    added = [entry for entry in warnings.filters if entry not in filters]
    visible = known | sys.stdlib_module_names
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] not in visible}
    _hide(hidden)
    return _Hidden(hidden), added


def _hide(modules: dict[str, ModuleType]) -> None:
    for name in modules:
        sys.modules.pop(name, None)


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request; return in the forks alone, once they are what was asked for."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        head, descriptors, _, _ = socket.recv_fds(requests, 8, 4)
        if not head:
            os._exit(0)
        message = requests.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        if os.fork() == 0:
            requests.close()
            if _is_program(descriptors):
                return json.loads(message)
        for descriptor in descriptors:
            os.close(descriptor)


def _is_program(descriptors: list[int]) -> bool:
    """Fork again: the first process waits for the second one, and says how it ended."""
    *streams, answers = descriptors
    if (program := os.fork()) != 0:
        os.write(answers, f"{program}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        os.write(answers, f"{status}\n".encode())
        os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for descriptor in descriptors:
        os.close(descriptor)
    return True


def _become(request: dict[str, Any], hidden: _Hidden, added: list[Any], path: list[str]) -> None:
    """Turn this process into the program that was asked for, and run it."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if (processes := sys.modules.get("multiprocessing.process")) is not None:
        processes.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]  # from where spawned workers find the program
    options, target, arguments = _parts_of(request["command"])
    _set_filters(options, added)
    below = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*(str(Path(folder).absolute()) for folder in below if folder), *path]
    sys.meta_path.insert(0, hidden)  # type: ignore[arg-type]
    if (numpy := hidden.modules.get("numpy.random")) is not None:
        numpy.seed()  # else each fork would draw the same numbers
    _keep_for_ever(hidden.modules)
    _count_lines()
    _run(target, arguments)


def _keep_for_ever(modules: dict[str, ModuleType]) -> None:
    """Have the end of the process, which frees them anyway, not take them apart for a fifth of a second before."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(modules))
    atexit.register(_hide, modules)  # is called after all that the program registers
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # only glibc has it; it is called before the destructors of libtorch
        libc.on_exit(libc._exit, None)


def _parts_of(command: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return options, what to run (one or two words) and its arguments."""
    options, rest = [], list(command)
    while rest[0] == "-W":
        options.append(rest[1])
        del rest[:2]
    length = 2 if rest[0] in ("-m", "-c") else 1
    return options, rest[:length], rest[length:]


def _set_filters(options: list[str], added: list[Any]) -> None:
    """Order filters of warnings as a new process does: those of packages, then those asked for, then Python's own."""
    own = [entry for entry in warnings.filters if entry not in added]
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for text in filter(None, [*os.environ.get("PYTHONWARNINGS", "").split(","), *options]):
            action, message, category, *_ = [*text.split(":"), "", ""]
            kind = getattr(builtins, category or "Warning")
            warnings.filterwarnings(action, re.escape(message), kind)  # type: ignore[arg-type]
        asked = list(warnings.filters)
    warnings.filters[:] = [*added, *asked, *own]
    with warnings.catch_warnings():
        pass  # this makes Python look at the filters anew


def _count_lines() -> None:
    """Follow the lines that run, where the tests ask that of their processes."""
    if "COVERAGE_PROCESS_START" in os.environ:
        importlib.import_module("coverage").process_startup()


def _run(target: list[str], arguments: list[str]) -> None:
    """Run a script, a module or code as ``__main__``."""
    kind, name = (target[0], target[1]) if len(target) == 2 else ("", target[0])
    sys.argv, sys.orig_argv = [kind or name, *arguments], [sys.executable, *target, *arguments]
    sys.path.insert(0, str(Path(name).resolve().parent) if not kind else "" if kind == "-c" else os.getcwd())
    if kind == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    if kind == "-c":
        exec(compile(name, "<string>", "exec"), main.__dict__)
        return
    main.__file__ = name = os.path.join(os.getcwd(), name)
    main.__loader__ = SourceFileLoader("__main__", name)
    exec(compile(Path(name).read_bytes(), name, "exec"), main.__dict__)


def _main(descriptor: str, *names: str) -> None:
    path = sys.path[1:]  # the first one is where this file is
    hidden, added = _load(names)
    gc.collect()
    gc.freeze()  # so that no collection in a program writes to what it shares with the server
    request = _serve(socket.socket(fileno=int(descriptor)))
    _become(request, hidden, added, path)


if __name__ == "__main__":
    _main(*sys.argv[1:])
