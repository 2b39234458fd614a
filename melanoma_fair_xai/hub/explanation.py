"""What a card says of an explanation: a report of explain.py, taken into the run folder, beside its controls."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import atomic_path, read_file, write_json
from melanoma_fair_xai.base.images import open_image
from melanoma_fair_xai.base.tables import markdown_table
from melanoma_fair_xai.engine.arguments import ARGUMENTS_NAME
from melanoma_fair_xai.explain.findings import comparison_cells, trap_sentences
from melanoma_fair_xai.explain.methods import METHODS
from melanoma_fair_xai.hub import card

PARTS = tuple(f"explanation/{name}" for name in ("facts.json", "controls.csv", "groups.csv"))
FACTS, CONTROLS_TABLE, GROUPS_TABLE = PARTS
FIGURES = {"controls": "figures/explanation_controls.png", "gallery": "figures/explanation_gallery.jpg"}
GALLERY_WIDTH = 1000  # pixels: a card is looked at in a browser


def take(report: Path, folder: Path) -> None:
    """Copy from an explain.py report what the card of the run in `folder` shows.

    Of a cross-validation it is the model of fold 0 that is explained. UserError if a part is missing, and if the
    report is of another model: their thresholds differ.
    """
    arguments = card.read_json(report, ARGUMENTS_NAME)
    table = pd.read_parquet(card.need(report, "attributions.parquet"))
    threshold = card.read_json(folder, card.config_name(folder))["operating_point"]["threshold"]
    if set(table["threshold"]) != {threshold}:
        raise UserError(
            f"{report}: explains another model than {folder}: its threshold is {table['threshold'].iloc[0]}"
        )
    phantoms = set(table.get("source", ())) == {"phantom"}
    for name, target in (("controls.csv", CONTROLS_TABLE), ("groups.csv", GROUPS_TABLE)):
        (folder / target).parent.mkdir(exist_ok=True)
        with atomic_path(folder / target) as path:
            shutil.copyfile(card.need(report, name), path)
    for name, target in FIGURES.items():
        figure = report / "figures" / f"{name}.png"
        if figure.is_file() and may_show(name, phantoms):
            take_figure(figure, folder / target)
        else:  # too few maps for it, no gallery asked for, or patients on it
            (folder / target).unlink(missing_ok=True)
    kept = {name: arguments[name] for name in ("method", "layer", "target", "split", "seed")}
    counts = {"images": len(table), "lesions": int(table["lesion_id"].nunique()), "phantoms": phantoms}
    write_json(folder / FACTS, {**kept, **counts})


def may_show(figure: str, phantoms: bool) -> bool:
    """Whether a card may show a figure: the gallery shows the images, so only where no patient stands behind them."""
    return figure != "gallery" or phantoms


def take_figure(figure: Path, target: Path) -> None:
    """Copy a figure, or save it as a JPEG of at most GALLERY_WIDTH if the target is one."""
    target.parent.mkdir(exist_ok=True)
    with atomic_path(target) as path:
        if target.suffix == ".png":
            shutil.copyfile(figure, path)
            return
        with open_image(read_file(figure)) as image:
            smaller = image.convert("RGB")
        smaller.thumbnail((GALLERY_WIDTH, 10 * GALLERY_WIDTH))
        smaller.save(path, quality=85)


def read(folder: Path) -> dict[str, Any] | None:
    """What the template needs, or None where nothing was measured. UserError for a missing part."""
    if not (folder / FACTS).is_file():
        return None
    controls, groups = card.read_table(folder, CONTROLS_TABLE), card.read_table(folder, GROUPS_TABLE)
    overall = groups[groups["group_column"] == "all"].set_index("measure")
    header, *rows = comparison_cells(controls)
    facts = card.read_json(folder, FACTS)
    shown = [item for item in FIGURES.items() if may_show(item[0], facts.get("phantoms") is True)]
    return {
        **facts,
        "method": METHODS[facts["method"]].title,
        "table": markdown_table(header, rows),
        "won": sum(row[-1] == "yes" for row in rows),
        "compared": len(rows),
        "traps": trap_sentences(overall),
        "figures": {name: path for name, path in shown if (folder / path).is_file()},
    }
