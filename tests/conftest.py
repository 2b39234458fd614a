"""What tests share: where the real data are, which are not in the repository, and a small data set of phantoms."""

import os
from pathlib import Path

import pytest

from dataset_scripts.builder import prepare_parquet
from dataset_scripts.phantom import Phantom

REPOSITORY = Path(__file__).resolve().parents[1]
DATA_VARIABLE = "MELANOMA_FAIR_XAI_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of ham10000/ and fitzpatrick17k/: $MELANOMA_FAIR_XAI_DATA, or ../shared/data where that exists."""
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


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A prepared data set of 150 phantoms of 32 pixels."""
    folder = tmp_path_factory.mktemp("phantoms")
    builder = Phantom(num_images=150, image_size=32, cache_dir=str(folder / "cache"))
    prepare_parquet(builder, str(folder / "prepared"), "# Phantoms for tests")
    return folder / "prepared"
