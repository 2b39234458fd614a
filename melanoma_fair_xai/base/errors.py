"""What goes wrong without a fault of the program's: said in one or two lines, with exit code 2."""

import errno
import os
import re
import signal
import sys
import zipfile
import zlib
from collections.abc import Callable

# What reading a file or a zip entry can raise; RuntimeError and NotImplementedError for encrypted and exotic entries.
READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


class UserError(Exception):
    """Something that the user can mend: one or two lines that name the file, row or flag, and what to do."""


_ADVICE = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some space, or choose a folder on another disk",
    errno.EFBIG: "no larger files are allowed here (ulimit -f)",
    errno.ENOLCK: "the file system gives no locks; choose a folder on another",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "check the permissions, or choose another folder",
    errno.EPERM: "check the permissions, or choose another folder",
    errno.EIO: "the disk fails, or the network drive is gone; choose a folder on another",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "the links lead in a circle; choose another path",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or load with fewer worker processes",
    errno.ENFILE: "the machine has no more open files to give; try again later",
    errno.EISDIR: "a folder stands where a file is needed; choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EEXIST: "a file stands where a folder is needed; choose another path",
}

# What torch, safetensors and worker processes say of an error of the system's: its text alone, at the end of a line.
_CODES = {os.strerror(code): code for code in _ADVICE}
_SAID = re.compile(
    rf"({'|'.join(map(re.escape, _CODES))})( \((os error )?\d+\))?(: '.*')?:? *($|\. )",
    re.MULTILINE,
)


def run_command(main: Callable[[], None]) -> None:
    """Run a script's main; a user error becomes one or two lines on stderr and exit code 2, without a traceback.

    SIGTERM ends it with a line and exit code 143, after what is half written has been removed.
    """
    process = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != process:  # a worker, which the process speaks for
            os._exit(128 + number)
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, previous)


def explain(error: BaseException | None) -> str | None:
    """What to tell the user about an error, or None if it is a fault of the program's own."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, OSError) and error.errno in _ADVICE:
            where = error.filename2 or error.filename or "writing"  # of a copy, what was to be written
            return f"{where}: {error.strerror}; {_ADVICE[error.errno]}"
        if isinstance(error, FileNotFoundError) and "usable temporary directory" in str(error):
            return "no folder for temporary files can be written to; name one in TMPDIR"
        if isinstance(error, ValueError) and "embedded null" in str(error):
            return "a path holds a NUL character; correct the table or file that names it"
        said = _SAID.search(str(error))
        if said:
            return f"writing: {said[1]}; {_ADVICE[_CODES[said[1]]]}"
        if "unexpected pos" in str(error):  # torch says no more than that what it wrote is not there
            return f"writing: a file was cut short; {_ADVICE[errno.ENOSPC]}"
        # `datasets` wraps what happens while it generates, and a full disk makes its closing of the file fail, too.
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def read_problem(error: BaseException) -> str:
    """The first line of what an error says, without the name of the file."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
