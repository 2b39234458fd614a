"""Work that several processes share, with the same results as one alone."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

CHUNK = 16  # items that a process takes at a time
AHEAD = 4  # chunks a process that may wait, made, for whoever takes the results


def available_cores() -> int:
    """How many cores this process may use, which a container or a job's limits can make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], num_proc: int = 1) -> Iterator[Result]:
    """`map(function, items)` by `num_proc` processes: in order, and never far ahead of whoever takes the results.

    Whatever the number, the results are the same. With more than one, `function`, items and results must be such as
    can be pickled. What `function` raises is raised here.
    """
    if num_proc == 1:
        yield from map(function, items)
        return
    items = iter(items)
    chunks = iter(lambda: list(itertools.islice(items, CHUNK)), [])
    with concurrent.futures.ProcessPoolExecutor(num_proc, initializer=_belong_to_the_parent) as pool:
        waiting = collections.deque(
            pool.submit(_map_chunk, function, chunk) for chunk in itertools.islice(chunks, AHEAD * num_proc)
        )
        while waiting:
            results = waiting.popleft().result()
            waiting.extend(pool.submit(_map_chunk, function, chunk) for chunk in itertools.islice(chunks, 1))
            yield from results


def _map_chunk(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]


def _belong_to_the_parent() -> None:
    """Leave interrupts to the parent, and end with it, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(parent: multiprocessing.Process) -> None:
    parent.join()
    os._exit(1)
