"""Where the tests find the real data, which are not in the repository."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DATA_VARIABLE = "MELANOMA_FAIR_XAI_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds ham10000/ and fitzpatrick17k/: $MELANOMA_FAIR_XAI_DATA, or ../shared/data if it is there."""
    folder = Path(os.environ.get(DATA_VARIABLE, REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data: set {DATA_VARIABLE} to the folder that holds ham10000/ and fitzpatrick17k/")
    return folder


@pytest.fixture(autouse=True)
def caches_of_their_own(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's caches."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("MELANOMA_FAIR_XAI_CACHE", str(cache))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache / "datasets"))
