"""What goes wrong without a fault of the program's: said in one or two lines, with exit code 2."""

import errno
import re
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
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EEXIST: "a file stands where a folder is needed; choose another path",
}


def run_command(main: Callable[[], None]) -> None:
    """Run a script's main; a user error becomes one or two lines on stderr and exit code 2, without a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)


def _explain(error: BaseException | None) -> str | None:
    """What to tell the user about an error, or None if it is a fault of the program's own."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, OSError) and error.errno in _ADVICE:
            return f"{error.filename or 'writing'}: {error.strerror}; {_ADVICE[error.errno]}"
        # A worker process hands over its error's causes as text alone.
        remote = re.search(r"\[Errno (\d+)\] ([^\n:]*)", str(error)) if "Traceback (most" in str(error) else None
        if remote and int(remote[1]) in _ADVICE:
            return f"writing: {remote[2]}; {_ADVICE[int(remote[1])]}"
        # `datasets` wraps what happens while it generates, and a full disk makes its closing of the file fail, too.
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def read_problem(error: BaseException) -> str:
    """The first line of what an error says, without the name of the file."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
