"""Run a script or module as the program ``__main__``, as ``python SCRIPT`` and ``python -m MODULE`` do.

Nothing is imported here that the program might want to import first.
"""

from __future__ import annotations

import atexit
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any

__all__ = ["End", "Program", "leave", "run_program"]

_PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep
_interrupts: list[KeyboardInterrupt] = []
_held: list[Callable[[int, FrameType | None], Any]] = []  # the handler of Ctrl-C, while none is taken
_kept: list[ModuleType] = []  # a module that sys.modules no longer holds would lose its globals


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        target: a file, or a module's dotted name.
        args: the arguments after it.
        is_module: whether it is a module.
    """

    target: str
    args: tuple[str, ...] = ()
    is_module: bool = False

    @property
    def name(self) -> str:
        """The file's stem or the module's name, for messages and directories."""
        return self.target if self.is_module else Path(self.target).stem

    def refusal(self) -> str | None:
        """Return why the program cannot be run; None if it seems that it can. Nothing of it runs for that."""
        if not self.is_module:
            return _refusal_of_file(self.target)
        package = self.target.partition(".")[0]
        path = [os.getcwd(), *sys.path[1:]]
        if package in sys.builtin_module_names or importlib.machinery.PathFinder.find_spec(package, path):
            return None
        return f"expected the name of a module after -m, found no module of this name: {self.target}"


@dataclass(frozen=True)
class End:
    """The end of a program; ``raised`` is None if it reached its last line."""

    raised: BaseException | None = None

    @property
    def status(self) -> int:
        """The exit status of ``python`` after such an end; after Ctrl-C 130, as shells have it."""
        if self.raised is None:
            return 0
        if not isinstance(self.raised, SystemExit):
            return 130 if isinstance(self.raised, KeyboardInterrupt) else 1
        code = self.raised.code
        return code if isinstance(code, int) else int(code is not None)


def run_program(program: Program) -> End:
    """Run ``program`` to its end. An exception is printed as ``python`` prints it."""
    atexit.register(_die_if_interrupted)  # before the program registers any: it is called when all of those have been
    try:
        module, code = _prepared(program)
        exec(code, module.__dict__)
    except SystemExit as left:
        if not isinstance(left.code, int | None):
            print(left.code, file=sys.stderr)
        return End(left)
    except BaseException as error:
        _hold_interrupts()
        _forget_our_frames(error)
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        return End(error)
    return End()


def _hold_interrupts() -> None:
    """Let no second Ctrl-C stop the summary: it is meant for the program, which has ended."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _held.append(signal.default_int_handler)
    except KeyboardInterrupt:  # it has come already
        _hold_interrupts()
    except ValueError:  # another thread than the main one runs the program
        pass


def _take_interrupts_again() -> None:
    while _held:
        signal.signal(signal.SIGINT, _held.pop())


def leave(end: End, otherwise: int = 0) -> None:
    """Leave the interpreter as the program would have: by its status, or by the signal of Ctrl-C.

    Args:
        end: of the program.
        otherwise: the status to use in place of 0.

    Raises:
        SystemExit: always.
    """
    if isinstance(end.raised, KeyboardInterrupt):
        _interrupts.append(end.raised)
    _take_interrupts_again()
    raise SystemExit(end.status or otherwise)


def _refusal_of_file(target: str) -> str | None:
    path = Path(target)
    if path.is_file():
        return None
    found = "a directory" if path.is_dir() else "no plain file" if path.exists() else "no such file"
    if target == "-":
        found = "the standard input, which belongs to the program; save the script as a file"
    return f"expected a Python file, found {found}: {target}"


def _prepared(program: Program) -> tuple[ModuleType, CodeType]:
    """Put an empty module ``__main__`` in place, and return it with the code to run in it."""
    module, ours = ModuleType("__main__"), sys.modules["__main__"]
    _kept.append(ours)
    sys.modules["__main__"] = module
    if "__annotations__" in ours.__dict__:  # not in every version of Python
        module.__annotations__ = {}
    spec: importlib.machinery.ModuleSpec | None = None
    if program.is_module:
        sys.argv = ["-m", *program.args]
        _put_first(os.getcwd())
        spec = _spec_of(program.target)
        loader: Any = spec.loader
        code = loader.get_code(spec.name)
        sys.argv[0] = path = str(spec.origin)
    else:
        path = os.path.join(os.getcwd(), program.target)
        sys.argv = [program.target, *program.args]
        _put_first(os.path.dirname(os.path.realpath(path)))
        loader = importlib.machinery.SourceFileLoader("__main__", path)
        code = compile(loader.get_data(path), path, "exec", dont_inherit=True)
    about = {"__spec__": spec, "__package__": spec and spec.parent, "__cached__": spec and spec.cached}
    module.__dict__.update(about, __loader__=loader, __file__=path, __builtins__=sys.modules["builtins"])
    return module, code


def _spec_of(name: str) -> importlib.machinery.ModuleSpec:
    """Return the spec of the module to run. This imports its parent packages, as ``python -m`` does."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or not hasattr(spec.loader, "get_code"):
        raise SystemExit(f"{sys.executable}: No module named {name}")
    return spec


def _put_first(directory: str) -> None:
    """Put ``directory`` where ``python`` has put our own. Under ``-P`` it has put none."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = directory


def _forget_our_frames(error: BaseException | None) -> None:
    """Drop our frames from the traceback of ``error``, and of the errors that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = _without_ours(error.__traceback__)
        _forget_our_frames(error.__cause__)
        error = error.__context__


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    kept = None
    for frame in reversed([frame for frame in frames if not _is_ours(frame)]):
        frame.tb_next = kept
        kept = frame
    return kept


def _is_ours(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _die_if_interrupted() -> None:
    """End by the signal, as ``python`` does after Ctrl-C, so that a shell's loop around it ends, too."""
    if not _interrupts:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
