"""Processes that work for this one: copies of it, so that each call sends its arguments and its result alone.

Processes and not threads: numpy's calls here are so short that threads would mostly wait for the
interpreter's lock. A worker ends when its connection does, that is also when this process is killed. Where
the system cannot copy a process (Windows), calls are made in this one. bounded.py is for calls that may not
be trusted to end.
"""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Any, TypeAlias

from .bounded import Answer, attempt
from .errors import ExportError

Call: TypeAlias = tuple[Any, ...]  # the arguments of one call


def processors() -> int:
    """How many this process may use; less than the machine has in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Ticket:
    """A call that was handed out, and its answer as soon as it is there."""

    def __init__(self) -> None:
        self.answer: Answer | None = None


class Worker:
    """One process, its end of the connection, and the calls that it has not answered, oldest first."""

    def __init__(self, process: int, connection: Connection) -> None:
        self.process, self.connection = process, connection
        self.open: deque[Ticket] = deque()


class Workers:
    """`count` copies of this process as it is now, each of which makes calls of `function`, one after the
    other. What `function` reaches and does not change is shared with them."""

    def __init__(self, function: Callable[..., Any], count: int) -> None:
        self.function = function
        self.workers: list[Worker] = []
        for _ in range(count if hasattr(os, "fork") else 0):
            self._start()

    def _start(self) -> None:
        ours, theirs = Pipe()
        process = os.fork()
        if process:
            theirs.close()
            self.workers.append(Worker(process, ours))
            return
        try:
            for worker in self.workers:  # or they would not see that this process's parent has ended
                worker.connection.close()
            ours.close()
            serve(self.function, theirs)
        finally:
            os._exit(0)  # runs nothing of what the copied process has to do at its end

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            os.kill(worker.process, signal.SIGTERM)  # it may be in the middle of a call
            os.waitpid(worker.process, 0)

    def submit(self, call: Call) -> Ticket:
        """Hands a call to the worker that has the fewest."""
        ticket = Ticket()
        if not self.workers:
            ticket.answer = attempt(self.function, call)
            return ticket
        worker = min(self.workers, key=lambda worker: len(worker.open))
        worker.open.append(ticket)
        with contextlib.suppress(OSError):  # a worker that has ended: result() tells
            worker.connection.send(call)
        return ticket

    def result(self, ticket: Ticket) -> Any:
        """What the call returned. Raises what it raised; ExportError if the worker's process was ended."""
        while ticket.answer is None:
            for connection in wait([worker.connection for worker in self.workers if worker.open]):
                worker = next(worker for worker in self.workers if worker.connection is connection)
                try:
                    answer = worker.connection.recv()
                except (EOFError, OSError):
                    raise ExportError(
                        "a process that packs weights was ended by the system: is the machine out of memory?"
                    ) from None
                worker.open.popleft().answer = answer
        if ticket.answer.error is not None:
            raise ticket.answer.error
        return ticket.answer.result

    def in_order(self, calls: Iterable[Call], ahead: int) -> Iterator[Any]:
        """The results of `calls`, in order; at most `ahead` of them are handed out before their results are
        taken."""
        running: deque[Ticket] = deque()
        for call in calls:
            running.append(self.submit(call))
            if len(running) >= ahead:
                yield self.result(running.popleft())
        while running:
            yield self.result(running.popleft())


def serve(function: Callable[..., Any], connection: Connection) -> None:
    """A worker's life. Ctrl-C goes to all processes of a terminal, and what it means the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        try:
            connection.send(attempt(function, connection.recv()))
        except (EOFError, OSError):
            return
