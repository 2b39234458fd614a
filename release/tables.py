"""The tables of released results in model_cards/README.md, made of the data beside it and of nothing else.

python -m release.tables
"""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.tables import Markdown, markdown_table
from melanoma_fair_xai.fairness.comparison import COMPARED
from melanoma_fair_xai.fairness.groups import OVERALL
from melanoma_fair_xai.fairness.metrics import AT_FIXED, METRICS
from melanoma_fair_xai.fairness.rows import NOT_ESTIMABLE, with_interval
from melanoma_fair_xai.hub.card import read_json, read_table
from melanoma_fair_xai.hub.classifier_card import metric_rows

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
CLASSIFIERS = {
    "ham10000-mobilenetv2": "MobileNetV2, from ImageNet",
    "ham10000-mobilenetv2-nevus": "MobileNetV2, from ImageNet",
    "ham10000-resnet18": "ResNet-18, from scratch",
    "ham10000-resnet34": "ResNet-34, from scratch",
    "ham10000-resnet50": "ResNet-50, from scratch",
    "ham10000-resnet101": "ResNet-101, from scratch",
}
GENERATORS = {"ham10000-generator": "UNet2DModel, from scratch"}
SHOWN = ("roc_auc", "sensitivity", "specificity", "balanced_accuracy", "calibration_slope")
IN_GROUPS = ("roc_auc", "sensitivity", "specificity", "calibration_slope")
QUALITY = ("kid", "precision", "recall", "coverage")
NOT_RUN, COMPARISONS = "not run", "comparisons"


def update_readme(readme: Path = CARDS / "README.md") -> None:
    """Put the tables between their marks in README.md."""
    text = MARKED.sub(lambda mark: f"{mark[1]}{TABLES[mark[2]]()}\n{mark[3]}", readme.read_text(encoding="utf-8"))
    with atomic_path(readme) as path:
        path.write_text(text, encoding="utf-8")


def classifier_table() -> str:
    header = [
        "classifier",
        "target",
        "size",
        "images",
        "melanomas",
        *(METRICS[name].title for name in SHOWN),
        "commit",
    ]
    return markdown_table(header, [_classifier(name, title) for name, title in CLASSIFIERS.items()])


def _classifier(name: str, title: str) -> list[str]:
    folder = CARDS / name
    if not (folder / "README.md").is_file():
        return [title, NOT_RUN, *[""] * (len(SHOWN) + 4)]
    facts = read_json(folder, "card_data.json")
    rows = {row.metric: row for row in metric_rows(folder) if row.group_column == "all"}
    settings, first = facts["settings"], rows[SHOWN[0]]
    target = settings["target"].replace("_", " ") + (", confirmed" if settings["confirmed_by_histology"] else "")
    tested = f"{target}, {'five folds' if facts['folds'] else 'fold 0'}"
    counts = [f"{settings['image_size']} px", f"{first.n:,}", f"{first.melanomas:,}"]
    values = [with_interval(rows[metric]) for metric in SHOWN]
    return [Markdown(f"[{title}]({name}/README.md)"), tested, *counts, *values, _commit(facts)]


def group_table() -> str:
    """The classifiers that were tested on all images, group by group."""
    header = ["group", "melanomas", "classifier", *(METRICS[metric].title for metric in IN_GROUPS)]
    found: dict[tuple[str, str], list[list[str]]] = {}
    for name, title in CLASSIFIERS.items():
        folder = CARDS / name
        if not (folder / "README.md").is_file() or not read_json(folder, "card_data.json")["folds"]:
            continue
        groups: dict[tuple[str, str], dict[str, Any]] = {}
        for row in metric_rows(folder):
            groups.setdefault((row.group_column, row.group), {})[row.metric] = row
        for (column, group), rows in groups.items():
            if column != OVERALL and group != UNKNOWN and "*" not in column:
                cells = [with_interval(rows[metric]) for metric in IN_GROUPS]
                line = [f"{column} {group}", f"{rows['roc_auc'].melanomas:,}", title.partition(",")[0], *cells]
                found.setdefault((column, group), []).append(line)
    return _table(header, [line for lines in found.values() for line in lines])


def generator_table() -> str:
    """Each value with its floor, what real images score, in brackets."""
    header = ["generator", "size", "images", "KID", "precision", "recall", "coverage", "copies", "commit"]
    lines = []
    for name, title in GENERATORS.items():
        folder = CARDS / name
        if not (folder / "quality").is_dir():
            lines.append([title, NOT_RUN, *[""] * (len(header) - 2)])
            continue
        facts = read_json(folder, "card_data.json")
        table = read_table(folder, "quality/quality.csv")
        whole = table[table["scope"] == "all"].set_index("metric")
        cells = [f"{whole.loc[metric, 'value']:.3f} ({whole.loc[metric, 'floor']:.3f})" for metric in QUALITY]
        copies = read_table(folder, "quality/copy_shares.csv").iloc[0]
        size = f"{facts['settings']['resolution']} px"
        count = f"{int(whole['n_generated'].iloc[0]):,}"
        shown = f"{copies['share']:.1%} [{copies['low']:.1%}, {copies['high']:.1%}]"
        lines.append([Markdown(f"[{title}]({name}/README.md)"), size, count, *cells, shown, _commit(facts)])
    return markdown_table(header, lines)


def comparison_table(name: str, baseline: str) -> str:
    """Paired differences from a baseline by model and group, and the baseline's own ROC AUC."""
    differences = _differences(name)
    titles = _compared(differences)
    header = ["", "group", f"ROC AUC of {baseline}", *(f"{title}, difference" for title in titles.values())]
    lines = []
    for (model, column, group), cells in differences.items():
        auc = cells["roc_auc"]
        if group != UNKNOWN:
            own = f"{auc.baseline_value:.3f}" if auc.estimable else NOT_ESTIMABLE
            shown = "all images" if column == OVERALL else f"{column} {group}"
            lines.append([model, shown, own, *(_difference(cells[metric]) for metric in titles)])
    return _table(header, lines)


def lift_table() -> str:
    """What each change does to all images: of validation, by which it may be picked, and of test."""
    validation, test = _differences("lift-validation"), _differences("lift-test")
    titles = _compared(test)
    header = ["change", "ROC AUC on validation", *(f"{title} on test" for title in titles.values())]
    lines = [
        [key[0], _difference(validation[key]["roc_auc"]), *(_difference(cells[metric]) for metric in titles)]
        for key, cells in test.items()
        if key[1] == OVERALL
    ]
    return _table(header, lines)


def gap_table(name: str, baseline: str) -> str:
    """What becomes of the gaps in ROC AUC between a group and the reference."""
    header = ["", "gap in ROC AUC", baseline, "this training", "change"]
    lines = [
        [row.model, f"{row.group} minus {row.reference}", f"{row.baseline_gap:+.3f}", f"{row.model_gap:+.3f}"]
        + [_difference(row)]
        for row in _rows(name, "gap")
        if row.metric == "roc_auc"
    ]
    return _table(header, lines)


def _table(header: list[str], lines: list[list[str]]) -> str:
    return markdown_table(header, lines or [[NOT_RUN, *[""] * (len(header) - 1)]])


def _differences(name: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Rows of comparisons/NAME.csv by metric, by (model, column, group)."""
    cells: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in _rows(name, "difference"):
        cells.setdefault((row.model, row.group_column, row.group), {})[row.metric] = row
    return cells


def _rows(name: str, kind: str) -> list[Any]:
    """Rows of a kind of comparisons/NAME.csv; none if it is not there."""
    if not (CARDS / COMPARISONS / f"{name}.csv").is_file():
        return []
    table = read_table(CARDS / COMPARISONS, f"{name}.csv")
    return list(table[table["kind"] == kind].itertuples())


def _compared(differences: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, str]:
    """Titles of the metrics that a comparison shows: ROC AUC, those at a fixed rate, and those at own thresholds."""
    first = next(iter(differences.values()), {})
    names = [name for name in ("roc_auc", *AT_FIXED, *SHOWN[1:3]) if name in first or not first]
    titles = {name: COMPARED[name].title for name in names}
    # Comparisons of older releases do not say that they knew no better.
    given = [name for name in titles if COMPARED[name].at_threshold and getattr(first.get(name), "conditional", True)]
    return titles | {name: f"{titles[name]}, given the thresholds" for name in given}


def _difference(row: Any) -> str:
    if not row.estimable or math.isnan(row.value):
        return NOT_ESTIMABLE
    return f"{row.value:+.3f} [{row.low:.3f}, {row.high:.3f}]"


def _commit(facts: dict) -> str:
    commit = facts["commit"] or "unknown"
    return commit[:7] + (" with changes" if " " in commit else "")


TABLES: dict[str, Callable[[], str]] = {
    "classifiers": classifier_table,
    "groups": group_table,
    "backbones": partial(comparison_table, "backbones", "MobileNetV2"),
    "depths": partial(comparison_table, "depths", "ResNet-18"),
    "lift": lift_table,
    "generators": generator_table,
    "synthetic": partial(comparison_table, "synthetic", "real alone"),
    "faded": partial(comparison_table, "faded", "drawn alone"),
    "faded-gaps": partial(gap_table, "faded", "drawn alone"),
}


if __name__ == "__main__":
    run_command(update_readme)
