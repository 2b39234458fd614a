"""What tests share: where the real data are, which are not in the repository, and a small data set of phantoms."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import LocalHub

from dataset_scripts.phantom import Phantom
from dataset_scripts.prepare import prepare_parquet

REPOSITORY = Path(__file__).resolve().parents[1]
DATA_VARIABLE = "MELANOMA_FAIR_XAI_DATA"


def pytest_terminal_summary(terminalreporter) -> None:
    """Figures that tests have measured, under xdist too, where what they print is not seen."""
    reports = [r for reports in terminalreporter.stats.values() for r in reports if getattr(r, "when", "") == "call"]
    lines = [text for r in reports for name, text in r.user_properties if name == "measured"]
    if lines:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of ham10000/ and fitzpatrick17k/: $MELANOMA_FAIR_XAI_DATA, or ../shared/data where that exists."""
    folder = Path(os.environ.get(DATA_VARIABLE, REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data: set {DATA_VARIABLE} to the folder that holds ham10000/ and fitzpatrick17k/")
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A prepared data set of 150 phantoms of 32 pixels."""
    folder = tmp_path_factory.mktemp("phantoms")
    builder = Phantom(num_images=150, image_size=32, cache_dir=str(folder / "cache"))
    prepare_parquet(builder, str(folder / "prepared"))
    return folder / "prepared"


@pytest.fixture(scope="module")
def local_hub() -> Iterator[LocalHub]:
    """A Hub on this machine, for processes that are given its `environment`."""
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture
def file_size_limit():
    """A context in which no file can grow beyond so many bytes, as on a disk that fills."""

    @contextlib.contextmanager
    def limited(size: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def accelerator():
    from accelerate.state import AcceleratorState, GradientState

    from melanoma_fair_xai.engine.launch import create_accelerator

    yield create_accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
