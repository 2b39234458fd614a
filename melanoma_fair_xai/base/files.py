"""Files that are whole or absent, for everything that a run or a report writes."""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import filelock
import xxhash

from .errors import UserError

PARTIAL_PREFIX = ".partial-"
PARTIAL_FILES = f"{PARTIAL_PREFIX}{'[0-9a-f]' * 8}-*"  # what `atomic_path` leaves behind in a process that is killed
MAX_FILE_BYTES = 256 << 20  # of a photograph or a table: more is an accident, or meant to fill the memory
WEIGHTS_DIGESTS = "_sha256"  # in a model's config: the SHA-256 of each file of weights, by its path from there
PATIENCE = 3  # seconds that a process waits for another one before it says so


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A path beside `path`, with its suffix, to write a file to; it is renamed if the block ends without error.

    The path is nobody else's: of two processes that write one file, the last to end has written it.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        sync_to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, as one process at a time can, on all machines that share its folder.

    Whoever finds it held waits, and after PATIENCE seconds prints `busy`; without `wait` that is a UserError at once.
    The system lets go of it however the process ends. The file stays: unlinked, it would be another one to whoever
    waits for it. UserError where the file system has no locks.
    """
    lock = filelock.FileLock(path, mode=0o664)  # a cache may be shared by a group
    try:
        lock.acquire(timeout=PATIENCE if wait else 0)
    except filelock.Timeout:
        if not wait:
            raise UserError(busy) from None
        print(f"{busy}: waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    except NotImplementedError:
        raise UserError(f"{path}: the file system has no locks; choose a folder on another") from None
    try:
        yield
    finally:
        lock.release()


def file_stem(name: str) -> str:
    """A file's name without its suffix for any name, each its own: at most 100 letters, digits, dots, dashes, `_`.

    A name of these alone stays as it is; others end in a part of their SHA-256.
    """
    if re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII) and not re.search(r"-[0-9a-f]{16}$", name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub(r'[^a-zA-Z0-9.-]+', '_', name).lstrip('.-')[:80]}-{digest}"


@contextlib.contextmanager
def made_folder(folder: str | os.PathLike) -> Iterator[None]:
    """A folder, made with its parents if it is not there. At the end those that were made and are empty go again."""
    folder = pathlib.Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def check_replaceable(folder: str | os.PathLike, beginnings: Mapping[str, str]) -> None:
    """UserError for a file that a report would replace, and that does not begin as an earlier report's of its name."""
    for name, beginning in beginnings.items():
        path = pathlib.Path(folder, name)
        if os.path.lexists(path):
            with contextlib.suppress(OSError), open_regular(path) as file:
                if file.read(len(beginning)) == beginning.encode():
                    continue
            raise UserError(f"{path}: not of an earlier report, and would be lost; choose another --output_dir")


def sync_to_disk(path: pathlib.Path) -> None:
    """Return once a file, or a folder's list of names, is on the disk and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON whole or not at all. NaN and infinities become null, numpy numbers and arrays plain ones."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: dicts with string keys, lists, strings, finite numbers, booleans and None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A file opened for reading. OSError for a pipe or a device, which may block or never end, too."""
    file = open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a regular file of at most MAX_FILE_BYTES; OSError for any other."""
    with open_regular(path) as file:
        return read_limited(file, os.fstat(file.fileno()).st_size, path)


def read_limited(file: BinaryIO, size: int, name: str | os.PathLike) -> bytes:
    """The rest of an open file that says it has `size` bytes; OSError if it says or has more than MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES or len(content := file.read(MAX_FILE_BYTES + 1)) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES >> 20} MiB", str(name))
    return content


def file_digest(*paths: str | os.PathLike, algorithm: str = "sha256") -> str:
    """The hash of a file, or of several as if they were one, in hexadecimal digits; read in pieces.

    OSError for what is not a regular file. `algorithm` is one of hashlib's, or xxh3_128, which is many times as fast
    and finds accidents, not forgers.
    """
    digest = xxhash.xxh3_128() if algorithm == "xxh3_128" else hashlib.new(algorithm)
    for path in paths:
        with open_regular(path) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def weights_problem(config: pathlib.Path) -> str | None:
    """Which file of weights is not the one that a model's config knows by its SHA-256, or None.

    Configs that know none, as older exports have them, find no problem.
    """
    known = json.loads(config.read_text(encoding="utf-8")).get(WEIGHTS_DIGESTS, {})
    for name, digest in known.items():
        path = config.parent / name
        if not path.is_file() or file_digest(path) != digest:
            return (
                f"{path}: not the weights that were exported, by their SHA-256 in {config.name}; copy them again,\n"
                f"or, if it was you who changed them, take {WEIGHTS_DIGESTS} out of that file"
            )
    return None
