"""What a run of explain.py leaves: tables, maps, figures, and one page with all of it inside."""

import base64
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import captum
import jinja2
import numpy as np
import pandas as pd
import timm
import torch
from tqdm.auto import tqdm

from melanoma_fair_xai.base.files import atomic_path, file_stem
from melanoma_fair_xai.base.tables import number, write_csv

from . import figures, rendering
from .batches import Explanations, Options
from .controls import CONTROLS
from .fidelity import PERCENTILES
from .findings import TRAP_MARGIN, artefact_rows, beats, comparison_cells, findings, is_caught, skin_contrasts
from .layers import MapLayer
from .measures import MEASURES
from .methods import METHODS
from .summary import ERROR_TITLES, against_controls, by_group, group_names
from .traps import trap_columns

VERSIONS = {"torch": torch.__version__, "timm": timm.__version__, "captum": captum.__version__}


@dataclass(frozen=True)
class Facts:
    """What the page says of the run."""

    model: str
    data: str
    split: str
    phantoms: bool
    layer: MapLayer | None
    options: Options
    skipped: int
    command: str


def write_report(folder: Path, explanations: Explanations, pixels: np.ndarray, facts: Facts, gallery: int) -> str:
    """Write everything into the folder, report.html last; returns what the run says at its end."""
    table = explanations.table
    comparison = against_controls(table)
    groups = by_group(table, group_names(table))
    for name, write in {
        "attributions.parquet": lambda path: table.to_parquet(path, index=False),
        "attributions.npz": lambda path: save_maps(path, explanations),
    }.items():
        with atomic_path(folder / name) as path:
            write(path)
    write_csv(comparison, folder / "controls.csv")
    write_csv(groups, folder / "groups.csv")
    write_overlays(folder / "overlays", table, pixels, explanations.maps)
    pictures = draw_figures(folder / "figures", explanations, comparison, groups, pixels, facts, gallery)
    page = render_page(table, comparison, groups, pictures, facts)
    with atomic_path(folder / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    return closing_words(folder, table, comparison, groups, facts)


def save_maps(path: Path, explanations: Explanations) -> None:
    """ids (N,), maps float32 (N, H, W), percentiles (19,), and the study's curves (N, 19) of every map."""
    curves = {f"{kind}_{name or 'method'}": values for (name, kind), values in explanations.curves.items()}
    ids = explanations.table["image_id"].to_numpy(dtype=str)
    np.savez_compressed(path, ids=ids, maps=explanations.maps, percentiles=np.array(PERCENTILES), **curves)


def write_overlays(folder: Path, table: pd.DataFrame, pixels: np.ndarray, maps: np.ndarray) -> None:
    """One JPEG per image: itself, its heat map, its contours."""
    folder.mkdir(exist_ok=True)
    for row, name in enumerate(tqdm(table["image_id"], desc="overlays", unit="image")):
        with atomic_path(folder / f"{file_stem(name)}.jpg") as path:
            rendering.overlay(pixels[row], maps[row]).save(path, quality=88)


def draw_figures(
    folder: Path,
    explanations: Explanations,
    comparison: pd.DataFrame,
    groups: pd.DataFrame,
    pixels: np.ndarray,
    facts: Facts,
    gallery: int,
) -> dict[str, str]:
    """Draw the figures into the folder; returns each as a data URI."""
    table = explanations.table
    changes = {trap_columns(trap)[0]: trap for trap in facts.options.traps}
    titles = {name: MEASURES[name].title for name in shown_by_group(groups)}
    draw = {
        "fidelity": lambda path: figures.plot_fidelity(explanations, facts.options.method, path),
        "shuffled": lambda path: figures.plot_cascade(groups, path),
    }
    if comparison["over_centre"].notna().any():
        draw["controls"] = lambda path: figures.plot_against_controls(comparison, path)
    for name, shown in (("groups", titles), ("traps", changes)):
        if groups.loc[groups["measure"].isin(shown), "estimable"].any():
            draw[name] = partial(figures.plot_groups, groups, shown)
    if gallery:
        draw["gallery"] = lambda path: rendering.plot_gallery(
            table, pixels, explanations.maps, gallery, facts.options.seed, path
        )
    folder.mkdir(exist_ok=True)
    pictures = {}
    for name, function in draw.items():
        with atomic_path(folder / f"{name}.png") as path:
            function(path)
        content = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        pictures[name] = f"data:image/png;base64,{content}"
    return pictures


def render_page(
    table: pd.DataFrame, comparison: pd.DataFrame, groups: pd.DataFrame, pictures: dict[str, str], facts: Facts
) -> str:
    """The page, which needs nothing beside itself."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("melanoma_fair_xai.explain", ""), autoescape=True, trim_blocks=True
    )
    environment.filters["number"] = number
    environment.tests["beaten"] = beats
    environment.tests["caught"] = is_caught
    overall = groups[groups["group_column"] == "all"].set_index("measure")
    return environment.get_template("page.html.jinja").render(
        facts=facts,
        method=METHODS[facts.options.method],
        table=table,
        counts={name: count for name in ERROR_TITLES if (count := (table["error"] == name).sum())},
        problems=table.loc[table["map_problem"] != "", "map_problem"].value_counts().to_dict(),
        findings=findings(table, comparison, groups, facts.options.method),
        comparison=[row for _, row in comparison.iterrows()],
        controls=CONTROLS,
        arrow={"higher": "↑", "lower": "↓"},
        measures=MEASURES,
        skin_contrasts=skin_contrasts(groups),
        group_rows=[
            (column, group, rows.set_index("measure"))
            for (column, group), rows in groups.groupby(["group_column", "group"], sort=False)
        ],
        group_measures=shown_by_group(groups),
        traps={trap: own for trap in facts.options.traps if (own := trap_columns(trap))[0] in overall.index},
        artefacts=artefact_rows(overall),
        margin=TRAP_MARGIN,
        pictures=pictures,
        versions={"Python": platform.python_version(), **VERSIONS},
    )


def shown_by_group(groups: pd.DataFrame) -> list[str]:
    """The measures that the page shows group by group, of those that have values."""
    return [name for name, measure in MEASURES.items() if measure.by_group and (groups["measure"] == name).any()]


def closing_words(
    folder: Path, table: pd.DataFrame, comparison: pd.DataFrame, groups: pd.DataFrame, facts: Facts
) -> str:
    """What the run prints last."""
    cells = comparison_cells(comparison)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    lines += [f"- {line}" for line in findings(table, comparison, groups, facts.options.method)]
    lines.append(f"report: {folder / 'report.html'} (opens offline)")
    if facts.phantoms:
        lines.append("These are phantoms, drawn lesions: the figures say nothing about patients.")
    return "\n".join(lines)
