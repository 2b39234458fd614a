"""Files are whole or absent, and JSON holds only what JSON has."""

import errno
import fcntl
import hashlib
import json
import os
import resource
import threading
from unittest.mock import Mock

import filelock
import numpy as np
import pytest
import torch
import xxhash
from odd_names import ODD_NAMES

from melanoma_fair_xai.base import files
from melanoma_fair_xai.base.errors import UserError, run_command
from melanoma_fair_xai.base.files import atomic_path, file_digest, file_stem, locked, read_file, write_json


def test_atomic_path_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "table.csv"
    with atomic_path(path) as partial:
        assert partial.suffix == ".csv" and partial.parent == tmp_path
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("new, but")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.csv"]


def test_write_json_on_a_full_disk(tmp_path):
    """The limit on the size of files fails in the same call as a full disk does."""
    write_json(tmp_path / "metrics.json", {"auc": 0.9})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError) as failed:
            write_json(tmp_path / "metrics.json", {"auc": [0.9] * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"auc": 0.9}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_write_json_writes_only_what_json_has(tmp_path):
    value = {
        "nan": float("nan"),
        "list": [np.float32(0.5), float("inf"), np.int64(3), np.bool_(True)],
        "array": np.array([1.0, np.nan]),
        "tensor": torch.tensor([2.0, float("-inf")]),
        "path": tmp_path,
        5: {"é"},
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "list": [0.5, None, 3, True],
        "array": [1.0, None],
        "tensor": [2.0, None],
        "path": str(tmp_path),
        "5": ["é"],
    }


def test_two_that_write_one_file_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "x") as one, atomic_path(tmp_path / "x") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "x").read_text() == "one" and os.listdir(tmp_path) == ["x"]


@pytest.fixture
def hold(tmp_path):
    """Another's lock on a file, and what ends it."""
    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


def test_a_lock_that_is_held_is_waited_for(tmp_path, hold, monkeypatch, capsys):
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    threading.Timer(0.3, hold).start()
    with locked(tmp_path / "lock", "the cache: being made"), open(tmp_path / "lock") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert capsys.readouterr().err == "the cache: being made: waiting for it\n"
    with locked(tmp_path / "lock", "free"):
        assert not capsys.readouterr().err


def test_a_lock_that_is_held_is_refused_at_once_where_nobody_waits(tmp_path, hold):
    with (
        pytest.raises(UserError, match="^the folder: in use$"),
        locked(tmp_path / "lock", "the folder: in use", False),
    ):
        pytest.fail("held by another")
    hold()
    with locked(tmp_path / "lock", "the folder: in use", wait=False):
        pass


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (NotImplementedError("use SoftFileLock instead"), "lock: the file system has no locks; choose a folder"),
        (OSError(errno.ENOLCK, "No locks available"), "writing: No locks available; the file system gives no locks"),
    ],
)
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys, problem, said):
    monkeypatch.setattr(filelock.FileLock, "acquire", Mock(side_effect=problem))

    def main():
        with locked(tmp_path / "lock", "busy"):
            pytest.fail("there are no locks")

    with pytest.raises(SystemExit):
        run_command(main)
    assert said in capsys.readouterr().err


def test_a_digest_is_of_the_whole_file(tmp_path):
    (tmp_path / "x").write_bytes(b"ab" * (1 << 20))
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"ab" * (1 << 20)).hexdigest()
    assert file_digest(tmp_path / "x", algorithm="md5") == hashlib.md5(b"ab" * (1 << 20)).hexdigest()
    assert file_digest(tmp_path / "x", algorithm="xxh3_128") == xxhash.xxh3_128_hexdigest(b"ab" * (1 << 20))
    (tmp_path / "y").write_bytes(b"c")
    assert file_digest(tmp_path / "x", tmp_path / "y") == hashlib.sha256(b"ab" * (1 << 20) + b"c").hexdigest()


def test_only_regular_files_that_memory_holds_are_read(tmp_path, monkeypatch):
    (tmp_path / "photograph.jpg").write_bytes(b"12345678")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "photograph.jpg")
    assert read_file(tmp_path / "link.jpg") == b"12345678"
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zeros.jpg"):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(tmp_path / name)
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(OSError, match="larger than 256 MiB"):
        read_file(tmp_path / "sparse.jpg")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 7)
    # A file of /proc says that it has no bytes.
    for path in (tmp_path / "photograph.jpg", "/proc/self/status"):
        with pytest.raises(OSError, match="larger than"):
            read_file(path)


def test_every_name_has_a_file_of_its_own(tmp_path):
    names = ["p/a_1.jpg", "p_a/1.jpg", "p/a 1.jpg", "p_a_1.jpg", "..", ".partial-x", "-x", "", "a/b", "a\nb", "\udcff"]
    names += ["x" * 100, "x" * 101, "deep/" * 200, "deep/" * 201, "é", "è", file_stem("p/a 1.jpg"), *ODD_NAMES]
    stems = [file_stem(name) for name in names]
    assert len({stem.lower() for stem in stems}) == len(names)
    for stem in stems:
        with atomic_path(tmp_path / f"{stem}.png") as path:
            path.touch()
    assert len(os.listdir(tmp_path)) == len(names) and not any(name.startswith(".") for name in os.listdir(tmp_path))
    assert [file_stem(name) for name in ("ISIC_0024306", "age_band", "a.b-c")] == ["ISIC_0024306", "age_band", "a.b-c"]
