"""What a card takes of an explanation: its verdicts, and never a photograph of a patient."""

import json
import shutil
from pathlib import Path

import pandas as pd
import PIL.Image
import pytest
from card_runs import write_card, write_results
from explained_tables import explained_table

from melanoma_fair_xai.explain.measures import COMPARED
from melanoma_fair_xai.explain.summary import against_controls, by_group
from melanoma_fair_xai.hub import explanation

GALLERY = "figures/explanation_gallery.jpg"
REAL = {
    "a data set": ["HAM10000"] * 40,
    "one photograph among phantoms": ["phantom"] * 39 + ["HAM10000"],
    "generated lesions": ["synthetic"] * 40,
    "an unknown source": ["phantom"] * 39 + [None],
}


def write_report(folder: Path, table: pd.DataFrame) -> Path:
    """A report as explain.py leaves it, with a gallery and overlays, as far as cards need it and more."""
    for name in ("figures", "overlays"):
        (folder / name).mkdir(parents=True)
    table.to_parquet(folder / "attributions.parquet")
    against_controls(table).to_csv(folder / "controls.csv", index=False)
    by_group(table, []).to_csv(folder / "groups.csv", index=False)
    arguments = {"method": "gradcam", "layer": None, "target": "predicted", "split": "test", "seed": 0}
    (folder / "training_args.json").write_text(json.dumps(arguments))
    for name in ("figures/controls.png", "figures/gallery.png", "overlays/image0.jpg"):
        PIL.Image.new("RGB", (1600, 800), "brown").save(folder / name)
    return folder


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The method beats a random map on everything, and the centre on what the card shows last."""
    table = explained_table({"random": 0.2, "centre": -0.2}, trap_ruler_change=0.2, trap_erase_lesion_change=0.0)
    table[f"{COMPARED[-1]}__centre"] -= 0.4
    return table.assign(threshold=0.51234)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "results"
    write_results(folder, ["I"])
    return folder


@pytest.fixture
def run(results, tmp_path) -> Path:
    return shutil.copytree(results, tmp_path / "run")


def taken(run: Path, report: Path) -> set[str]:
    """The files that a report brings to a run."""
    before = set(run.rglob("*"))
    explanation.take(report, run)
    return {path.relative_to(run).as_posix() for path in set(run.rglob("*")) - before if path.is_file()}


def test_of_phantoms_the_gallery_is_taken_and_shown(table, run, tmp_path):
    files = taken(run, write_report(tmp_path / "report", table))
    assert files == {*explanation.PARTS, "figures/explanation_controls.png", GALLERY}
    found = explanation.read(run)
    assert found["phantoms"] is True and set(found["figures"]) == {"controls", "gallery"}
    assert PIL.Image.open(run / GALLERY).size == (1000, 500)
    assert GALLERY in (write_card(run) / "README.md").read_text()


@pytest.mark.parametrize("source", REAL)
def test_of_anything_else_no_picture_of_an_image_is_taken(source, table, run, tmp_path):
    files = taken(run, write_report(tmp_path / "report", table.assign(source=REAL[source])))
    assert files == {*explanation.PARTS, "figures/explanation_controls.png"}
    found = explanation.read(run)
    assert found["phantoms"] is False and set(found["figures"]) == {"controls"}
    assert GALLERY not in (write_card(run) / "README.md").read_text()


def test_nor_where_no_source_is_recorded(table, run, tmp_path):
    files = taken(run, write_report(tmp_path / "report", table.drop(columns="source")))
    assert files == {*explanation.PARTS, "figures/explanation_controls.png"}


def test_a_gallery_that_lies_there_is_shown_only_if_phantoms_are_recorded(table, run, tmp_path):
    explanation.take(write_report(tmp_path / "report", table), run)
    facts = json.loads((run / explanation.FACTS).read_text())
    without = {name: value for name, value in facts.items() if name != "phantoms"}
    for changed in (facts | {"phantoms": False}, facts | {"phantoms": None}, without):
        (run / explanation.FACTS).write_text(json.dumps(changed))
        assert (run / GALLERY).is_file() and set(explanation.read(run)["figures"]) == {"controls"}


def test_an_earlier_reports_pictures_do_not_stay(table, run, tmp_path):
    explanation.take(write_report(tmp_path / "phantoms", table), run)
    later = write_report(tmp_path / "patients", table.assign(source="HAM10000"))
    (later / "figures" / "controls.png").unlink()  # too few maps to draw it
    explanation.take(later, run)
    assert not (run / GALLERY).exists() and explanation.read(run)["figures"] == {}


def test_the_card_says_which_measures_beat_the_centre_and_what_traps_did(table, run, tmp_path):
    explanation.take(write_report(tmp_path / "report", table), run)
    found = explanation.read(run)
    header, _, *lines = found["table"].splitlines()
    assert header.endswith("| the method | random | centre | edges | shuffled net | beats the centre |")
    assert [line.split("|")[-2].strip() for line in lines] == ["no"] * 16 + ["yes"]
    assert (found["won"], found["compared"]) == (1, 17)
    row = against_controls(table).set_index("measure").loc["road_most"]
    (line,) = (line for line in lines if "ROAD, most" in line)
    interval = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    means = " | ".join(f"{row[name]:.3f}" for name in ("random", "centre", "edges", "randomised"))
    assert line == f"| ROAD, most relevant first | lower | 40 | {interval} | {means} | no |"
    ruler, erased = found["traps"]
    assert ruler.startswith("A pasted ruler changes") and ruler.endswith("the score depends on it.")
    assert erased.startswith("Erasing the lesion changes") and erased.endswith("not told apart from it.")
    text = (write_card(run) / "README.md").read_text()
    assert found["table"] in text and f"- {ruler}\n- {erased}" in text
    assert "which it has on 1 of 17 measures" in text and "Method: Grad-CAM (Selvaraju et al. 2017)" in text
