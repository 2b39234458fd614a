"""The tables of released results in this folder's README.md, made of the data beside the cards and of nothing else.

python -m model_cards.results
"""

import json
from pathlib import Path

from dataset_scripts.common import run_command
from melanoma_fair_xai.engine.files import atomic_path
from melanoma_fair_xai.fairness.report import TITLES, markdown_table
from melanoma_fair_xai.hub.card import read_table
from melanoma_fair_xai.hub.classifier_card import metric_rows, with_interval

CARDS = Path(__file__).parent
BEGIN, END = "<!-- results: python -m model_cards.results -->\n", "<!-- end of results -->"
CLASSIFIERS = {
    "ham10000-mobilenetv2": "MobileNetV2, from ImageNet",
    "ham10000-mobilenetv2-nevus": "MobileNetV2, from ImageNet",
    "ham10000-resnet18": "ResNet-18, from scratch",
    "ham10000-resnet34": "ResNet-34, from scratch",
    "ham10000-resnet50": "ResNet-50, from scratch",
}
GENERATORS = {"ham10000-generator": "UNet2DModel, from scratch"}
METRICS = ("roc_auc", "sensitivity", "specificity", "balanced_accuracy")
QUALITY = ("kid", "precision", "recall", "coverage")
NOT_RUN = "not run"


def main() -> None:
    update_readme()


def update_readme(readme: Path = CARDS / "README.md") -> None:
    """Put the tables between the marks in README.md."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_path(readme) as path:
        path.write_text(before + BEGIN + results() + END + after, encoding="utf-8")


def results() -> str:
    """All tables as Markdown."""
    parts = [classifier_table(), generator_table()]
    if (CARDS / "synthetic.csv").is_file():
        parts.append(synthetic_table())
    return "\n".join(part.rstrip() + "\n" for part in parts)


def classifier_table() -> str:
    header = ["classifier", "target", "size", "images", "melanomas", *(TITLES[name] for name in METRICS), "commit"]
    return markdown_table(header, [_classifier(name, title) for name, title in CLASSIFIERS.items()])


def _classifier(name: str, title: str) -> list[str]:
    folder = CARDS / name
    if not (folder / "README.md").is_file():
        return [title, NOT_RUN, *[""] * (len(METRICS) + 4)]
    facts = json.loads((folder / "card_data.json").read_text(encoding="utf-8"))
    rows = {row.metric: row for row in metric_rows(folder) if row.group_column == "all"}
    settings, first = facts["settings"], rows[METRICS[0]]
    target = settings["target"].replace("_", " ") + (", confirmed" if settings["confirmed_by_histology"] else "")
    tested = f"{target}, {'five folds' if facts['folds'] else 'fold 0'}"
    counts = [f"{settings['image_size']} px", f"{first.n:,}", f"{first.melanomas:,}"]
    values = [with_interval(rows[metric]) for metric in METRICS]
    return [f"[{title}]({name}/README.md)", tested, *counts, *values, _commit(facts)]


def generator_table() -> str:
    """Each value with its floor, what real images score, in brackets."""
    header = ["generator", "size", "images", "KID", "precision", "recall", "coverage", "copies", "commit"]
    lines = []
    for name, title in GENERATORS.items():
        folder = CARDS / name
        if not (folder / "quality").is_dir():
            lines.append([title, NOT_RUN, *[""] * (len(header) - 2)])
            continue
        facts = json.loads((folder / "card_data.json").read_text(encoding="utf-8"))
        table = read_table(folder, "quality/quality.csv")
        whole = table[table["scope"] == "all"].set_index("metric")
        cells = [f"{whole.loc[metric, 'value']:.3f} ({whole.loc[metric, 'floor']:.3f})" for metric in QUALITY]
        copies = read_table(folder, "quality/copy_shares.csv").iloc[0]
        size = f"{facts['settings']['resolution']} px"
        count = f"{int(whole['n_generated'].iloc[0]):,}"
        shown = f"{copies['share']:.1%} [{copies['low']:.1%}, {copies['high']:.1%}]"
        lines.append([f"[{title}]({name}/README.md)", size, count, *cells, shown, _commit(facts)])
    return markdown_table(header, lines)


def synthetic_table() -> str:
    """What generated training images change, paired with real images alone, overall and by group."""
    table = read_table(CARDS, "synthetic.csv")
    table = table[(table["kind"] == "difference") & table["estimable"] & table["metric"].isin(METRICS[:3])]
    lines = [
        [
            row["model"],
            "all images" if row["group_column"] == "all" else f"{row['group_column']} {row['group']}",
            TITLES[row["metric"]],
            f"{row['baseline_value']:.3f}",
            f"{row['model_value']:.3f}",
            f"{row['value']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]",
        ]
        for _, row in table.iterrows()
    ]
    header = ["training", "group", "metric", "real images alone", "this training", "difference"]
    return markdown_table(header, lines)


def _commit(facts: dict) -> str:
    commit = facts["commit"] or "unknown"
    return commit[:7] + (" with changes" if " " in commit else "")


if __name__ == "__main__":
    run_command(main)
