"""The example cards are what the code makes of the data beside them, to the byte, and small."""

import shutil
import sys
from pathlib import Path

import pytest

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.hub import __main__ as hub

EXAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "model_cards").rglob("card_data.json"))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_made_again_a_card_is_the_same(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    (copy / "README.md").unlink()
    monkeypatch.setattr(sys, "argv", ["hub", "card", str(copy)])
    run_command(hub.main)
    again = (copy / "README.md").read_text()
    assert again == (folder / "README.md").read_text(), f"python -m melanoma_fair_xai.hub card {folder}"
    assert all(path.stat().st_size < 300_000 for path in [*folder.rglob("*.png"), *folder.rglob("*.jpg")])


def test_there_are_examples():
    assert EXAMPLES
