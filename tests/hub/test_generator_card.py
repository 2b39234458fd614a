"""The generator's card against the folder that it was made of."""

import json
import sys

import pytest
from card_runs import write_generator
from huggingface_hub import ModelCard

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.hub import __main__ as hub
from melanoma_fair_xai.hub.generator_card import write_generator_card


@pytest.fixture
def folder(tmp_path):
    write_generator(tmp_path / "generator")
    write_generator_card(tmp_path / "generator")
    return tmp_path / "generator"


def refusal(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["hub", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run_command(hub.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") <= 2
    return error


def test_the_card_says_what_can_be_asked_and_what_is_not_known(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-nc-4.0" and card.data.library_name == "diffusers"
    assert card.data.widget == [{"text": "generated lesions", "output": {"url": "samples/step-000002.png"}}]
    assert "| `diagnosis` | nv (300), mel (40) |" in card.text and "| `age` (years) | 50 to 60 (340) |" in card.text
    assert 'diagnosis="nv",\n    sex="female",\n    age=55,\n    guidance_scale' in card.text
    assert "no skin types: none can be asked for" in card.text and "not measured" in card.text
    # The last validation's losses, not the first's.
    assert "| timesteps | 0 to 199 | 200 to 399 |" in card.text and "| 0.9000 | 0.5000 |" in card.text
    assert "Smoke run" not in card.text and "Phantom data" not in card.text


def test_made_again_it_is_the_same_and_a_missing_part_is_named(folder, tmp_path, monkeypatch, capsys):
    card = (folder / "README.md").read_bytes()
    write_generator_card(folder, tmp_path / "released")
    assert write_generator_card(tmp_path / "released").read_bytes() == card
    (folder / "samples" / "step-000002.png").unlink()
    assert "no samples/step-000002.png" in refusal(monkeypatch, capsys, "card", folder)


def test_a_smoke_run_is_said(tmp_path):
    write_generator(tmp_path / "run", images_seen=32)
    assert "**Smoke run.**" in write_generator_card(tmp_path / "run").read_text()


def test_only_a_generator_has_a_quality_report_and_only_a_classifier_an_explanation(
    folder, tmp_path, monkeypatch, capsys
):
    error = refusal(monkeypatch, capsys, "card", folder, "--explanation", tmp_path)
    assert "measures a classifier" in error and "is a generator" in error
    facts = json.loads((folder / "card_data.json").read_text())
    (folder / "card_data.json").write_text(json.dumps({**facts, "kind": "metric"}))
    assert "of kind metric" in refusal(monkeypatch, capsys, "card", folder)


def test_names_of_conditions_stay_names(tmp_path):
    write_generator(tmp_path)
    path = tmp_path / "conditioner" / "config.json"
    config = json.loads(path.read_text())
    names = ["![t](http://x)", '"<b>|', "nv"]
    config["vocabularies"]["diagnosis"] = names
    config["counts"]["diagnosis"] = dict(zip(names, (300, 400, 0), strict=True))
    path.write_text(json.dumps(config))
    text = write_generator_card(tmp_path).read_text()
    assert r"| `diagnosis` | !\[t\](http:\//x) (300), " + r'"\<b>\| (400) |' in text
    assert '    diagnosis="\\"<b>|",' in text.splitlines()  # what Python reads as that name
