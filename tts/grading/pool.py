"""A small pool of grading processes that can be killed: the only place where a deadline is enforced."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from tts.grading import worker as program
from tts.grading.worker import Message

START_SECONDS = 60.0
"""How long a process may take to import math-verify: it is not part of any request's deadline."""

ERROR: Message = {"status": "error"}
TIMEOUT: Message = {"status": "timeout"}


class WorkerPool:
    """Asks `num_workers` processes, each request within `deadline` seconds of its own.

    A process is started when it is first needed and killed when it overruns; the next request starts it anew. Several threads
    may ask at once: they share the processes. A forked child of this process must make its own pool.
    """

    def __init__(self, num_workers: int, deadline: float, memory_limit: int) -> None:
        self.workers = [_Worker(deadline, memory_limit) for _ in range(num_workers)]
        self.num_workers = num_workers
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()  # last in, first out: a lone caller keeps to one process
        for worker in self.workers:
            self._idle.put(worker)
        self.close = weakref.finalize(self, _kill_all, self.workers, os.getpid())  # on close, at collection and at exit

    def ask(self, requests: Sequence[Message]) -> list[Message]:
        """One reply for each request, in order: what the worker said, or `TIMEOUT`, or `ERROR` where a process died.

        Raises `RuntimeError` if the pool is closed or a process cannot start.
        """
        replies: list[Message] = [ERROR] * len(requests)
        waiting = deque(range(len(requests)))
        busy: dict[_Worker, int] = {}
        try:
            while waiting or busy:
                while waiting and (worker := self._take(is_waiting=not busy)):
                    busy[worker] = waiting.popleft()
                    worker.submit(requests[busy[worker]])
                for worker, reply in _settled(busy):
                    replies[busy.pop(worker)] = reply
                    self._idle.put(worker)
        finally:
            for worker in busy:  # only after an exception: nobody will read these replies
                worker.kill()
                self._idle.put(worker)
        return replies

    def _take(self, is_waiting: bool) -> _Worker | None:
        """An idle worker; without one, wait for it or return `None`."""
        try:
            worker = self._idle.get(block=is_waiting)
        except queue.Empty:
            return None
        if not self.close.alive:
            self._idle.put(worker)
            raise RuntimeError("this grader is closed: make a new one")
        return worker


def _settled(busy: Iterable[_Worker]) -> list[tuple[_Worker, Message]]:
    """Wait until something arrives or expires; the workers that are done with their request, each with its reply."""
    workers = list(busy)
    until = min(worker.expires for worker in workers)
    readable = wait([worker.replies for worker in workers], timeout=max(0.0, until - time.monotonic()))
    advanced = [(worker, worker.advance(worker.replies in readable)) for worker in workers]
    return [(worker, reply) for worker, reply in advanced if reply is not None]


def _kill_all(workers: Iterable[_Worker], owner: int) -> None:
    if os.getpid() == owner:  # a forked child shares these processes but does not own them
        for worker in workers:
            worker.kill()


class _Worker:
    """One process and the request it works on. Its states: no process, starting (no greeting yet), ready."""

    expires = float("inf")
    replies = -1
    """File descriptor of the pipe that the process writes to."""

    def __init__(self, deadline: float, memory_limit: int) -> None:
        self._deadline = deadline
        self._memory_limit = memory_limit
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._request: Message = {}
        self._received = bytearray()

    def submit(self, request: Message) -> None:
        """Hand over one request; `advance` brings the reply."""
        self._request = request
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self._start()
        else:
            self._begin()

    def advance(self, is_readable: bool) -> Message | None:
        """Take in what has arrived. The reply once the request is settled, else `None`."""
        if is_readable:
            chunk = os.read(self.replies, 1 << 16)
            self._received += chunk
            if not chunk:
                return self._died()
        message = self._next_message()
        if message is not None and self._is_ready:
            return message
        if message is not None:
            self._greet(message)
        elif time.monotonic() >= self.expires:
            return self._overran()
        return None

    def kill(self) -> int | None:
        """End the process at once, whatever it is doing. Its exit status, if there was one."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return process.wait()

    def _start(self) -> None:
        # Its own session: an interrupt from the keyboard is for the parent. A fixed hash seed: sympy's sets in one order.
        self._process = subprocess.Popen(
            [sys.executable, str(Path(program.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        assert self._process.stdout is not None
        self.replies = self._process.stdout.fileno()
        self.expires = time.monotonic() + START_SECONDS
        self._is_ready = False
        self._received.clear()
        path = [entry for entry in sys.path if isinstance(entry, str)]
        self._send({"sys_path": path, "deadline": self._deadline, "memory_limit": self._memory_limit})

    def _greet(self, greeting: Message) -> None:
        if greeting["status"] != "ok":
            self.kill()
            raise RuntimeError(f"the grading process cannot load math-verify ({greeting['reason']}): pip install math-verify")
        self._is_ready = True
        self._begin()

    def _begin(self) -> None:
        self._send(self._request)
        self.expires = time.monotonic() + self._deadline

    def _send(self, message: Message) -> None:
        assert self._process is not None and self._process.stdin is not None
        unsent = memoryview(program.frame(message))
        with contextlib.suppress(BrokenPipeError):  # it died a moment ago: reading from it will say so
            while unsent:
                unsent = unsent[self._process.stdin.write(unsent) :]

    def _next_message(self) -> Message | None:
        size = program.HEADER.size
        if len(self._received) < size:
            return None
        end = size + program.HEADER.unpack_from(self._received)[0]
        if len(self._received) < end:
            return None
        message, self._received = self._received[size:end], self._received[end:]
        return program.decode(message)

    def _died(self) -> Message:
        status = self.kill()
        if not self._is_ready:
            raise RuntimeError(f"the grading process ended with status {status} before it was ready")
        return ERROR

    def _overran(self) -> Message:
        self.kill()
        if not self._is_ready:
            raise RuntimeError(f"the grading process was not ready after {START_SECONDS:g} s")
        return TIMEOUT
