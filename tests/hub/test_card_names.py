"""A card of groups with any names: it is written, read as the Hub reads it, and the names are names."""

import re
from pathlib import Path

import numpy as np
import pytest
from card_runs import make_predictions, write_card, write_results
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from odd_names import BROKEN_NAMES, ODD_NAMES

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.publication import collect
from melanoma_fair_xai.fairness.metrics import METRICS
from melanoma_fair_xai.hub.classifier_card import metric_rows, write_classifier_card

NAMES = [name for name in (*ODD_NAMES, *BROKEN_NAMES) if re.search(r"\]\(|^<s|^\*|\||^=|\$|\n", name)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "run `x` $y$"
    table = make_predictions(["unknown"], 30 * len(NAMES)).assign(sex=np.resize(NAMES, 30 * len(NAMES)))
    write_results(folder, table=table)
    return write_card(folder, "folder of ![t](http://x) <b>", table=table)


def test_metadata_hold_the_names(run):
    results = ModelCard.load(run / "README.md").data.eval_results
    strata = {result.metric_args["stratum"] for result in results}
    assert strata == {"all images", *(f"sex {name}" for name in NAMES)}
    titles = {result.metric_name for result in results}
    assert f"{METRICS['roc_auc'].title}, sex ![t](http://x)" in titles


def test_the_page_shows_figures_and_its_own_markup_only(run):
    page = MarkdownIt("commonmark").enable("table").render(ModelCard.load(run / "README.md").text)
    assert set(re.findall(r'<img src="([^"]*)"', page)) == {f"figures/{p.name}" for p in (run / "figures").iterdir()}
    assert "<a " not in page and "<script" not in page and "<b>" not in page and "<del>" not in page
    for name in set(NAMES) & set(ODD_NAMES):
        text = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
        assert page.count(f"<td>{text}</td>") >= 2, name  # the metrics, in halves
        assert f"<td>sex {text}</td>" in page, name  # who is in the data, and the table at the top


def test_the_rows_keep_the_names(run):
    assert {row.group for row in metric_rows(run) if row.group_column == "sex"} == set(NAMES)
    lines = (run / "fairness.csv").read_text().splitlines()
    assert any(",'=1+1," in line for line in lines) and not any(",=1+1," in line for line in lines)


def test_it_can_be_published_and_made_again(run, tmp_path):
    publication = collect(run, "model", ["README.md", "fairness.csv"], ["figures/*"])
    assert sum(name.startswith("figures/") for name in publication.files) == len(list((run / "figures").iterdir()))
    again = write_classifier_card(run, tmp_path / "again")
    assert again.read_text() == (run / "README.md").read_text()


def test_a_figure_that_is_not_there_still_stops_the_card(run, tmp_path):
    folder = tmp_path / "again"
    write_classifier_card(run, folder)
    with open(folder / "fairness.md", "a") as file:
        file.write("![x](figures/gone.png)\n")
    with pytest.raises(UserError, match="no figures/gone.png"):
        write_classifier_card(folder)
