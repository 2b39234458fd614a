"""What users are told, in one line and with exit code 2, and what is no fault of theirs."""

import errno

import pytest

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
        (RuntimeError("Traceback (most recent call last):\n  ...\nOSError: [Errno 28] No space left\n"), ["No space"]),
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
