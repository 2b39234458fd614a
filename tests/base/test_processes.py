"""Work that processes share comes back in order, and whole."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.processes import AHEAD, CHUNK, available_cores, map_in_order

ROOT = str(Path(__file__).resolve().parents[2])


def square(number: int) -> tuple[int, int]:
    if number == 0:
        time.sleep(0.2)  # the first chunk is the last to be ready
    return number * number, os.getpid()


def refuse_seven(number: int) -> int:
    if number == 7:
        raise UserError("seven: give another")
    return number


@pytest.mark.parametrize("num_proc", [1, 2, 3])
@pytest.mark.parametrize("number", [0, 1, 5 * CHUNK + 3])
def test_results_are_in_order_whatever_the_number_of_processes(num_proc, number):
    results = list(map_in_order(square, range(number), num_proc))
    assert [value for value, _ in results] == [i * i for i in range(number)]
    pids = {pid for _, pid in results}
    assert (os.getpid() in pids) == (num_proc == 1 and number > 0)


def test_no_more_is_asked_for_than_can_be_taken_soon():
    asked = []
    results = map_in_order(square, (asked.append(i) or i for i in range(10000)), 2)
    next(results)
    assert len(asked) <= (2 * AHEAD + 1) * CHUNK
    results.close()
    assert len(asked) < 1000


@pytest.mark.parametrize("num_proc", [1, 2])
def test_an_error_is_raised_where_the_results_are_taken(num_proc):
    with pytest.raises(UserError, match="seven: give another"):
        list(map_in_order(refuse_seven, range(100), num_proc))


def test_workers_leave_an_interrupt_to_the_parent():
    assert all(map_in_order(_ignores_interrupts, range(3), 2))


def _ignores_interrupts(number: int) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


ORPHANS = """
import os, sys, time
from melanoma_fair_xai.base.processes import map_in_order

def sleep(number):
    os.write(1, b"%d\\n" % os.getpid())  # whole: printing, two processes mix their lines now and then
    time.sleep(600)

if __name__ == "__main__":
    list(map_in_order(sleep, range(100), 2))
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "orphans.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": ROOT}) as parent:
        workers = {int(parent.stdout.readline()) for _ in range(2)}
        parent.kill()
        assert len(workers) == 2
        try:
            parent.communicate(timeout=60)  # until the workers let go of the other end
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_the_cores_are_those_that_this_process_may_use():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to cores")
    before = os.sched_getaffinity(0)
    assert available_cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
