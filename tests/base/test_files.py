"""Files are whole or absent, and JSON holds only what JSON has."""

import errno
import hashlib
import json
import os
import resource

import numpy as np
import pytest
import torch

from melanoma_fair_xai.base import files
from melanoma_fair_xai.base.files import atomic_path, file_digest, read_file, write_json


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


def test_a_digest_is_of_the_whole_file(tmp_path):
    (tmp_path / "x").write_bytes(b"ab" * (1 << 20))
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"ab" * (1 << 20)).hexdigest()
    assert file_digest(tmp_path / "x", algorithm="md5") == hashlib.md5(b"ab" * (1 << 20)).hexdigest()
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
