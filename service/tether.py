"""Run a command that cannot outlive the process that started it.

    python -I -S tether.py PARENT_PID COMMAND ...

Linux sends a process the signal that it asked for (PR_SET_PDEATHSIG) when the thread that started it
ends, however that came about, SIGKILL included; the wish survives exec. Asking in a little program
between fork and exec, instead of in a forked copy of the parent, is safe whatever threads the parent
has. It needs nothing but the standard library and is run by its path.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, command: list[str]) -> None:
    """Become `command`, to be killed when the process `parent` ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL)) != 0:
            sys.exit(f"tether: prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it ended before the wish was heard
        sys.exit("tether: the parent has ended")
    try:
        os.execvp(command[0], command)  # noqa: S606  the command is the parent's own
    except OSError as error:
        sys.exit(f"tether: {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
