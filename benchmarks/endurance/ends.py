"""A training script that ends in the way that its argument names: the program of the attack ``surroundings``.

``python ends.py status 7`` ends with that status. The other ends are the functions below; each trains first.
"""

import asyncio
import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import torch
from torch import nn

NO_SUMMARY = frozenset({"leave_at_once", "become_another"} | {f"die_of_{each}" for each in ("term", "hup", "abrt")})
NO_SUMMARY |= {f"die_of_{each}" for each in ("segv", "kill", "pipe")}
"""Ends after which Python does not run any more, so that there is nobody to sum up."""

SHOWS_FRAMES = frozenset({"interrupt", "raise_a_deep_error", "raise_an_error", "raise_an_interrupt"})
"""Ends that show the frames of all that runs, or are interrupted as only a process of Python's own is."""


def train(steps: int = 3) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print("trained", sum(each.double().sum().item() for each in model.parameters()), flush=True)


def status(number: str) -> None:
    sys.exit(int(number))


def end_well() -> None:
    pass


def raise_an_error() -> None:
    try:
        raise KeyError("the first")
    except KeyError as error:
        raise ValueError("as it happens") from error


def exit_with_words() -> None:
    sys.exit("that is all")


def exit_with_nothing() -> None:
    sys.exit()


def exit_with_true() -> None:
    sys.exit(True)


def exit_with_a_pair() -> None:
    sys.exit((1, 2))  # type: ignore[arg-type]


def exit_below_zero() -> None:
    sys.exit(-1)


def exit_beyond_a_byte() -> None:
    sys.exit(256 + 7)


def exit_by_raising() -> None:
    raise SystemExit(9)


def exit_beyond_an_integer() -> None:
    sys.exit(2**70)


def raise_an_interrupt() -> None:
    raise KeyboardInterrupt


def raise_a_deep_error() -> None:
    raise RecursionError("too deep")


def leave_at_once() -> None:
    os._exit(3)


def become_another() -> None:
    os.execv("/bin/sh", ["sh", "-c", "echo another; exit 4"])


def fork_and_wait() -> None:
    child = os.fork()
    if child == 0:
        train()
        sys.stdout.flush()
        os._exit(5)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def fork_and_exit_in_the_child() -> None:
    child = os.fork()
    if child == 0:
        train()
        sys.exit(6)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _work(method: str) -> None:
    worker = multiprocessing.get_context(method).Process(target=train)
    worker.start()
    worker.join()
    print(worker.exitcode)


def multiprocess_by_fork() -> None:
    _work("fork")


def multiprocess_by_spawn() -> None:
    _work("spawn")


def start_a_shell() -> None:
    print(subprocess.run(["/bin/sh", "-c", "exit 8"], check=False).returncode)


def run_asyncio() -> None:
    async def trained() -> None:
        await asyncio.sleep(0)
        train()

    asyncio.run(trained())


def leave_a_thread() -> None:
    threading.Thread(target=lambda: (threading.main_thread().join(), print("the thread is over", flush=True))).start()


def leave_a_daemon() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def fail_in_a_thread() -> None:
    thread = threading.Thread(target=lambda: 1 / 0, name="one")
    thread.start()
    thread.join()


def act_at_exit() -> None:
    atexit.register(print, "at exit, first registered", flush=True)
    atexit.register(train)


def fail_at_exit() -> None:
    atexit.register(lambda: 1 / 0)


def exit_at_exit() -> None:
    atexit.register(lambda: os._exit(11))


def close_stdout() -> None:
    sys.stdout.close()


def handle_term() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(12))
    os.kill(os.getpid(), signal.SIGTERM)


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGINT)


def handle_interrupts() -> None:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(13))
    os.kill(os.getpid(), signal.SIGINT)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(60)


def set_an_excepthook() -> None:
    sys.excepthook = lambda kind, error, trace: print("caught", error, flush=True)
    raise ValueError("for the hook")


def die_of_term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def die_of_hup() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def die_of_abrt() -> None:
    os.kill(os.getpid(), signal.SIGABRT)


def die_of_segv() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def die_of_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_of_pipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)


ENDS = tuple(
    name for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__ and name not in {"train", "status", "_work"}
)  # fmt: skip
"""The names of all ends but ``status``."""


if __name__ == "__main__":
    train()
    globals()[sys.argv[1]](*sys.argv[2:])
