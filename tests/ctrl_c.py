"""Press Ctrl-C twice: in the midst of a training, and again while the program ends."""

import functools
import signal
import subprocess


def interrupted_twice(command, has_begun, *, cwd, env, seconds):
    """Run a program, interrupt it twice, and return it as it ended, with what it then wrote to stderr.

    Args:
        command: the program and its arguments.
        has_begun: says of a line of its output that it is to be interrupted now.
        cwd, env: as for ``subprocess.Popen``.
        seconds: that it may take to end.
    """
    hears_it = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a job in the background does not
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=cwd, env=env, text=True, preexec_fn=hears_it, **pipes) as process:
        for line in process.stdout:
            if has_begun(line):
                break
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        for line in process.stderr:
            if line.startswith("KeyboardInterrupt"):
                break
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
        process.wait(timeout=seconds)
    return subprocess.CompletedProcess(command, process.returncode, "", error)
