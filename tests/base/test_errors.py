"""What users are told, in one line and with exit code 2, and what is no fault of theirs."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from melanoma_fair_xai.base.errors import UserError, run_command


def wrapped(cause: Exception):
    def main():
        try:
            raise cause
        except Exception as error:
            raise RuntimeError("while generating") from error

    return main


@pytest.mark.parametrize(
    "error, words",
    [
        (UserError("t.csv, line 3: age 'abc'"), ["t.csv, line 3: age 'abc'"]),
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), ["/out/x: No space left", "free some space"]),
        (OSError(errno.EROFS, "Read-only file system", "/out"), ["/out: Read-only", "written to"]),
        (OSError(errno.ENOSPC, "No space left on device", "/in/x", None, "/out/x"), ["/out/x: No space left"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), ["xxx: File name too long", "shorter"]),
        (OSError(errno.EMFILE, "Too many open files"), ["Too many open files", "ulimit -n"]),
        (
            RuntimeError(
                "unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"
            ),
            ["Too many open files", "ulimit -n"],
        ),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), ["TMPDIR"]),
        (
            RuntimeError(
                "Traceback (most recent call last):\n ...\nOSError: [Errno 28] No space left on device: '/x'\n"
            ),
            ["No space left on device", "free some space"],
        ),
    ],
)
def test_run_command_ends_in_one_line_and_code_2(capsys, error, words):
    with pytest.raises(SystemExit) as ended:
        run_command(wrapped(error))
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert all(word in printed for word in words)


def test_run_command_finds_a_full_disk_behind_what_failed_after_it(capsys):
    def main():
        try:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            finally:
                raise ValueError("I/O operation on closed file")
        except ValueError as error:
            raise RuntimeError("while generating") from error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2 and "No space left on device; free some space" in capsys.readouterr().err


def test_run_command_hides_no_fault_of_its_own():
    with pytest.raises(RuntimeError):
        run_command(wrapped(ValueError("a bug")))


@pytest.mark.parametrize("limit", [1000, None], ids=["full", "name"])
@pytest.mark.parametrize("kind", ["path", "file", "legacy", "safetensors"])
def test_what_torch_and_safetensors_make_of_the_systems_errors_is_said(tmp_path, capsys, kind, limit):
    """A limit on the size of files fails in the same call as a full disk does."""
    path, state = tmp_path / ("x" if limit else "x" * 300), {"weight": torch.zeros(10000)}

    def main():
        if kind == "safetensors":
            safetensors.torch.save_file(state, path)
        elif kind == "file":
            with open(path, "wb") as file:
                torch.save(state, file)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=kind == "path")

    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, previous[1]))
        with pytest.raises(SystemExit) as ended:
            run_command(main)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "unexpected pos" not in said
    assert re.search("File too large|was cut short; free some space" if limit else "too long; choose a shorter", said)


def test_a_path_with_a_nul_character_is_said(capsys):
    with pytest.raises(SystemExit):
        run_command(lambda: open("a\0b"))
    assert capsys.readouterr().err == "error: a path holds a NUL character; correct the table or file that names it\n"


STOPPED = """
import os, signal, sys
from pathlib import Path
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.files import atomic_path

def main():
    with atomic_path(sys.argv[1]) as path:
        path.touch()
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 143 << 8
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

run_command(main)
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_sigterm_ends_a_command_with_a_line_its_code_and_nothing_half_written(tmp_path, rank):
    command = [sys.executable, "-c", STOPPED, tmp_path / "x"]
    done = subprocess.run(command, env=os.environ | {"RANK": rank}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n" if rank == "0" else "")
    assert not os.listdir(tmp_path)


def test_the_handler_of_whoever_calls_comes_back():
    previous = signal.getsignal(signal.SIGTERM)
    run_command(lambda: None)
    assert signal.getsignal(signal.SIGTERM) is previous
