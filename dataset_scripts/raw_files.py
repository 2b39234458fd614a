"""Raw files: tables, folders and zips that people have downloaded, read as they are.

A reference names a file: a path, or "archive.zip::member" for an entry that is read without unpacking.
"""

import codecs
import collections
import csv
import errno
import functools
import hashlib
import io
import os
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pandas as pd
import tqdm.auto

from melanoma_fair_xai.base.errors import READ_ERRORS, UserError, read_problem
from melanoma_fair_xai.base.files import file_digest, read_file, read_limited
from melanoma_fair_xai.base.images import IMAGE_SUFFIXES, image_content_problem
from melanoma_fair_xai.base.processes import available_cores, map_in_order

Item, Found = TypeVar("Item"), TypeVar("Found")


def read_table(reference: str, required: Iterable[str] = (), blank_rows: bool = False) -> pd.DataFrame:
    """A CSV or tab-separated file as strings (empty for missing), with its 1-based file line in column `line`.

    `reference` is a path or `archive.zip::member`; rows without any value count with `blank_rows` alone. Raises
    UserError for a file that is missing, empty or not a table, has a row of the wrong length or a column twice, or
    lacks a required one.
    """
    try:
        text = decode_text(read_bytes(reference))
    except READ_ERRORS as error:
        raise UserError(f"{reference}: cannot be read ({read_problem(error)})") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{reference}: not a CSV table in UTF-8 or UTF-16; save it as that, or download it again"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
    try:
        header = next(reader, [])
        rows = [[*row, reader.line_num] for row in reader if any(row) or (blank_rows and row)]
    except csv.Error as error:
        raise UserError(f"{reference}, line {reader.line_num}: not a CSV table ({error}); download it again") from None
    if not header:
        raise UserError(f"{reference}: the file is empty; its first line names the columns")
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise UserError(f"{reference}: column {twice[0]} stands twice; leave one of them out")
    missing = [name for name in required if name not in header]
    if missing:
        raise UserError(f"{reference}: no column {', '.join(missing)}; its columns are {', '.join(header)}")
    for row in rows:
        if len(row) != len(header) + 1:
            count = f"{len(row) - 1} columns instead of {len(header)}"
            raise UserError(f"{reference}, line {row[-1]}: {count}; download the file again")
    return pd.DataFrame(rows, columns=[*header, "line"])


def decode_text(content: bytes, errors: str = "strict") -> str:
    """The text of a table in UTF-8, or in UTF-16 where it begins with that mark, as Excel's "Unicode text" does."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig", errors)


def index_files(folder: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, list[str]]:
    """References to every file below `folder` with one of `suffixes`, in zips too, keyed by stem and sorted.

    macOS resource forks (`__MACOSX`, `._x`) are not files of anybody's. Raises UserError for a folder that is missing
    and for a zip that is damaged or whose entries climb out of it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; name the folder of raw files with --data_dir")
    found: dict[str, list[str]] = collections.defaultdict(list)

    def add(name: str, reference: str) -> None:
        stem, suffix = os.path.splitext(posixpath.basename(name))
        if suffix.lower() in suffixes and not stem.startswith("._") and "__MACOSX" not in name.split("/"):
            found[stem].append(reference)

    for path in _walk(folder):
        if path.lower().endswith(".zip") and os.path.isfile(path) and not os.path.basename(path).startswith("._"):
            for member in list_zip(path):
                add(member, f"{path}::{member}")
        else:
            add(os.path.relpath(path, folder).replace(os.sep, "/"), path)
    return dict(found)


def _walk(folder: str) -> Iterator[str]:
    """Every file below a folder, linked folders too but each folder once, in a fixed order."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            yield os.path.join(root, name)


def list_zip(path: str) -> list[str]:
    """Names of the files in a zip, sorted. Raises UserError if it is damaged or an entry climbs out of its folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except READ_ERRORS as error:
        raise UserError(f"{path}: not a readable zip file ({read_problem(error)}); download it again") from None
    for name in names:
        if name.startswith("/") or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
            raise UserError(f"{path}: entry {name!r} climbs out of the archive; do not use this file")
    return names


def read_bytes(reference: str) -> bytes:
    """The content of a file or zip entry. Raises one of READ_ERRORS if it cannot be read, or is none or too large."""
    path, _, member = reference.partition("::")
    if not member:
        return read_file(path)
    archive = _open_zip(path, os.stat(path).st_mtime_ns, os.getpid())
    try:
        with archive.open(member) as entry:
            return read_limited(entry, archive.getinfo(member).file_size, reference)
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, "no such entry", reference) from None


@functools.lru_cache(maxsize=16)
def _open_zip(path: str, modified: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)  # one handle per process: a forked one would share its file position


def image_problem(reference: str) -> str | None:
    """Why a file is not a whole image, or None. Every pixel is decoded: a header alone does not show a truncation."""
    try:
        content = read_bytes(reference)
    except READ_ERRORS as error:
        return f"cannot be read ({read_problem(error)})"
    return image_content_problem(content)


def inspect_files(look: Callable[[Item], Found], items: Sequence[Item], num_proc: int = 1) -> list[Found]:
    """What `look` finds of each image, by `num_proc` processes, under a progress bar."""
    results = map_in_order(look, items, num_proc)
    return list(tqdm.auto.tqdm(results, total=len(items), desc="checking images", unit="image"))


def content_hash(folder: str, by_name: tuple[str, ...] = ()) -> str:
    """A hash of the names and contents of all files below a folder; of those with a suffix in `by_name`, of the names.

    Times say nothing: a file may be replaced by one of equal size and time. What cannot be read counts by its name.
    """

    def describe(path: str) -> str:
        if path.lower().endswith(by_name):
            return ""
        try:
            return file_digest(path, algorithm="xxh3_128")
        except OSError as error:
            return read_problem(error)

    digest = hashlib.sha256()
    paths = list(_walk(folder))
    with ThreadPoolExecutor(available_cores()) as pool:
        for path, said in zip(paths, pool.map(describe, paths), strict=True):
            digest.update(f"{os.path.relpath(path, folder)}\0{said}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
