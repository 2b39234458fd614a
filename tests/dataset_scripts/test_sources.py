"""The registry of data sets: what stands in a row is what every room says, and a row is all that a new one takes."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_builder import Toy

from dataset_scripts.prepare import prepare_parquet
from dataset_scripts.sources import LOCAL_USE_ONLY, SOURCES
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.data.loading import load_records
from melanoma_fair_xai.hub.record import DataFacts, data_facts

REPOSITORY = Path(__file__).resolve().parents[2]
PLANTED = dataclasses.replace(Toy.source, has_raw_files=False, may_be_published=False)


@pytest.mark.parametrize("source", SOURCES.values(), ids=lambda source: source.name)
def test_a_row_is_what_its_builder_says_and_its_module_a_command(source, tmp_path):
    builder = source.load_builder()
    assert builder.source is source and builder.__name__.lower() == source.name
    info = builder(cache_dir=str(tmp_path)).info
    assert (info.license, info.citation, info.homepage) == (source.licence, source.citation, source.homepage)
    assert importlib.util.find_spec(f"{source.module}.__main__")
    assert source.about and source.licence and source.title


def test_only_the_photographs_of_the_atlases_may_not_be_passed_on():
    assert [name for name, source in SOURCES.items() if LOCAL_USE_ONLY in source.card_tags] == ["fitzpatrick17k"]


def test_the_front_page_names_every_data_set_with_its_licence():
    rows = re.findall(r"^\| (\S+) \|.*\| ([^|]+) \|$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    licences = {name.lower().removesuffix("s"): text.lower().replace(" ", "-") for name, text in rows}
    assert all(licences[source.name].startswith(source.licence) for source in SOURCES.values())


@pytest.fixture
def planted(monkeypatch):
    """A fourth data set, of squares."""
    monkeypatch.setattr(Toy, "source", PLANTED)
    monkeypatch.setitem(SOURCES, PLANTED.name, PLANTED)


def test_a_planted_row_is_loaded_and_named(planted):
    records = load_records("toy")
    assert len(records.table) == 30 and set(records.table["source"]) == {"toy"}
    with pytest.raises(UserError, match="give one of ham10000, fitzpatrick17k, phantom, toy, a folder"):
        load_records("nowhere")


def test_a_planted_row_is_on_cards_by_name_and_by_its_prepared_folder(planted, tmp_path):
    facts = DataFacts("toy", "Toy lesions", "cc-by-4.0", "@misc{toy}", "Squares of one shade.")
    assert data_facts("toy") == facts
    prepare_parquet(Toy(cache_dir=str(tmp_path / "cache")), str(tmp_path / "of mine"))
    assert data_facts(str(tmp_path / "of mine")) == dataclasses.replace(facts, id="of mine", on_hub=False)
    for path in ("/home/Jane Doe/of mine", "../Jane/of mine", "C:\\Jane\\of mine"):  # no longer there
        assert data_facts(path) == DataFacts("of mine", "of mine", on_hub=False)
    card = (tmp_path / "of mine" / "README.md").read_text()
    assert f"- {LOCAL_USE_ONLY}" in card and 'load_dataset("toy")' in card and "`python -m test_builder`" in card


def test_raw_files_are_asked_for_where_a_row_has_them(planted, monkeypatch):
    monkeypatch.setitem(SOURCES, "toy", dataclasses.replace(PLANTED, has_raw_files=True))
    with pytest.raises(UserError, match="--dataset_name toy: name the folder of its raw files with --data_dir"):
        load_records("toy")


HELP = """
from dataset_scripts.sources import SOURCES
import dataclasses
for name, raw in (("first", True), ("second", False)):
    SOURCES[name] = dataclasses.replace(SOURCES["phantom"], name=name, has_raw_files=raw)
from melanoma_fair_xai.data.arguments import DataArguments
for name in ("dataset_name", "data_dir"):
    print(DataArguments.__dataclass_fields__[name].metadata["help"])
"""


def test_a_planted_row_is_in_the_flags_help():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    named, raw = done.stdout.splitlines()
    assert named.startswith("ham10000, fitzpatrick17k, phantom, first, second, or a folder")
    assert raw == "Folder of the raw files (ham10000, fitzpatrick17k, first)."


@pytest.mark.parametrize("source", SOURCES.values(), ids=lambda source: source.name)
def test_a_builder_stands_on_little(source):
    """Importing one must not take torch along, nor the library above it."""
    code = f"import sys, {source.module}.builder; print(*sys.modules)"
    environment = {**os.environ, "USE_TORCH": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    names = set(done.stdout.split())
    assert "datasets" in names and not names & {"torch", "timm", "transformers", "sklearn", "scipy", "matplotlib"}
    assert {name.split(".")[1] for name in names if name.startswith("melanoma_fair_xai.")} == {"base"}
