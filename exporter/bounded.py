"""Runs a function of this package in a process of its own, with limits of CPU time and memory.

It is for work whose cost a source decides: rendering a chat template, compiling a tokenizer. The limit is CPU
time and not the clock on the wall, so that a slow or busy machine does not turn a good source into a bad one.
The child is no sandbox: it may do what its parent may. Where the system has no limits for a process (no
module `resource`), the clock on the wall has to do, with a wide margin.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import ExportError

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

WALL_FACTOR = 60  # seconds on the wall for a second of CPU time, where CPU time cannot be limited

# The child finds modules where its parent does, and not in the current directory.
START = "import sys; sys.path[:] = sys.argv[1:]; from exporter.bounded import child; child()"


class LimitExceeded(ExportError):
    """The function needs more CPU time or memory than it may have. The text says which, and how much."""


class ChildFailed(Exception):
    """A defect of this program: an exception that is no ExportError and no OSError. The text says where."""


class Answer(NamedTuple):
    """What the child sends."""

    result: Any
    error: Exception | None = None


def run_bounded(function: Callable[..., Any], *arguments: Any, seconds: int, memory: int) -> Any:
    """function(*arguments), computed in a child process.

    function: a function of a module of this package. arguments, result: anything that pickle takes; they are
    copied. seconds: of CPU time. memory: bytes, beyond what the interpreter and the modules take.
    Raises LimitExceeded, an ExportError or OSError that the function raised, or ChildFailed."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", START, *sys.path],
            input=pickle.dumps((function, arguments, seconds, memory)),
            capture_output=True,
            timeout=None if resource else WALL_FACTOR * seconds,
        )
    except subprocess.TimeoutExpired:
        raise LimitExceeded(f"more than {WALL_FACTOR * seconds} seconds are needed") from None
    if resource and done.returncode == -signal.SIGXCPU:
        raise LimitExceeded(f"more than {seconds} seconds of CPU time are needed")
    if resource and done.returncode == -signal.SIGKILL:
        raise LimitExceeded("the system ended the process for it: is the machine out of memory?")
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise ChildFailed(f"the process for {function.__name__} ended with status {done.returncode}: {last}")
    answer: Answer = pickle.loads(done.stdout)
    if answer.error is not None:
        raise answer.error
    return answer.result


# ---- in the child


def set_limits(seconds: int, memory: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + 1 + seconds
    size = 0
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
    for which, limit in ((resource.RLIMIT_CPU, end), (resource.RLIMIT_AS, size + memory)):
        _, most = resource.getrlimit(which)
        if most == resource.RLIM_INFINITY or limit < most:  # SIGXCPU at the first, SIGKILL at the second
            resource.setrlimit(which, (limit, limit + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the signal at the end of the CPU time writes none


def too_much_memory(memory: int) -> LimitExceeded:
    return LimitExceeded(f"more than {memory >> 20} MB of memory are needed")


def attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Answer:
    """The result, or the error in a form that can be sent; a defect of this program with its place."""
    try:
        return Answer(function(*arguments))
    except ExportError as error:
        return Answer(None, type(error)(*error.args))  # without its traceback and cause
    except OSError as error:
        return Answer(None, OSError(error.errno, error.strerror, error.filename))
    except MemoryError:
        return Answer(None, MemoryError())
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(at.filename)}:{at.lineno}"
        return Answer(None, ChildFailed(f"{type(error).__name__} at {where}: {error}"))


def child() -> None:
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what the function prints is not taken for its result
        function, arguments, seconds, memory = pickle.load(sys.stdin.buffer)
        if resource:
            set_limits(seconds, memory)
        answer = attempt(function, arguments)
        if isinstance(answer.error, MemoryError):
            answer = Answer(None, too_much_memory(memory))
        try:
            sent = pickle.dumps(answer)
        except MemoryError:
            sent = pickle.dumps(Answer(None, too_much_memory(memory)))
        out.write(sent)
