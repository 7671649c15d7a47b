"""Many small pieces of tensor work at once, each in a thread of its own.

PyTorch gives every operation all threads, which wait for each other at its end. For pieces of a
millisecond or less that wait is long, and much longer where other programs use the cores too. Here
every piece has one thread.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

Task = Callable[[], None]


def in_parallel(tasks: Sequence[Task]) -> None:
    """Runs the tasks, as many at a time as PyTorch has threads, and returns when all are done.

    Tasks must write to different places. They run without gradients and with no mode of the caller
    (autocast, inference mode).

    Raises:
        Exception: what a task raises; others may be left out then.
    """
    threads = min(torch.get_num_threads(), len(tasks))
    if threads < 2:
        for task in tasks:
            task()
        return
    _wait_for(tasks, threads)


def on_one_thread(task: Task) -> None:
    """Runs the task and returns when it is done; like one of `in_parallel`.

    Raises:
        Exception: what the task raises.
    """
    if torch.get_num_threads() < 2:
        task()
    else:
        _wait_for([task], 1)


def _wait_for(tasks: Sequence[Task], threads: int) -> None:
    """Runs the tasks on so many threads of the pool."""
    remaining = iter(tasks)  # of a sequence: `next` is atomic

    @torch.no_grad()
    def work() -> None:
        for task in remaining:
            task()

    pool = _pool(torch.get_num_threads(), os.getpid())
    running: list[Future[None]] = [pool.submit(work) for _ in range(threads)]
    wait(running)
    for future in running:
        future.result()


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that give every operation one thread; ``process``: none live on after a fork."""
    pool = ThreadPoolExecutor(threads, "sketchlayers", initializer=_use_one_thread)
    all_begun = threading.Barrier(threads)
    wait([pool.submit(all_begun.wait) for _ in range(threads)])
    # The number that a thread sets is also what new threads begin with: set it back, now that all
    # threads of the pool have set theirs.
    torch.set_num_threads(threads)
    return pool


def _use_one_thread() -> None:
    torch.get_num_threads()  # takes what new threads begin with, which it would else do later
    torch.set_num_threads(1)
