"""What a run of explain.py leaves: tables, maps, figures, and one page with all of it inside."""

import base64
import platform
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import captum
import jinja2
import numpy as np
import pandas as pd
import timm
import torch

from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.tables import number, write_csv

from . import figures, rendering
from .batches import Options
from .controls import CONTROLS
from .fidelity import PERCENTILES
from .findings import TRAP_MARGIN, artefact_rows, beats, comparison_cells, findings, is_caught, skin_contrasts
from .layers import MapLayer
from .measures import MEASURES
from .methods import METHODS
from .record import Record
from .summary import ERROR_TITLES, against_controls, by_group, group_names
from .traps import trap_columns

REPORT_NAME = "report.html"
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


def write_report(folder: Path, table: pd.DataFrame, record: Record, facts: Facts, gallery: int) -> str:
    """Write everything into the folder, report.html last; returns what the run says at its end.

    Row i of the table is of image i of the record.
    """
    curves = record.curves()
    comparison = against_controls(table)
    groups = by_group(table, group_names(table))
    for name, write in {
        "attributions.parquet": lambda path: table.to_parquet(path, index=False),
        "attributions.npz": lambda path: save_maps(path, table["image_id"], record, curves),
    }.items():
        with atomic_path(folder / name) as path:
            write(path)
    write_csv(comparison, folder / "controls.csv")
    write_csv(groups, folder / "groups.csv")
    pictures = draw_figures(folder / "figures", table, record, curves, comparison, groups, facts, gallery)
    page = render_page(table, comparison, groups, pictures, facts)
    with atomic_path(folder / REPORT_NAME) as path:
        path.write_text(page, encoding="utf-8")
    return closing_words(folder, table, comparison, groups, facts)


def save_maps(path: Path, ids: pd.Series, record: Record, curves: dict[tuple[str, str], np.ndarray]) -> None:
    """ids (N,), maps float32 (N, H, W), percentiles (19,), and the study's curves (N, 19) of every map.

    As numpy's `savez_compressed` would write them, without all maps in memory.
    """
    arrays = {"ids": ids.to_numpy(dtype=str), "percentiles": np.array(PERCENTILES)}
    arrays |= {f"{kind}_{name or 'method'}": values for (name, kind), values in curves.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, values in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
        with file.open("maps.npy", "w", force_zip64=True) as member:
            for number, maps in enumerate(record.maps()):
                if number == 0:
                    shape = (len(ids), *maps.shape[1:])
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(np.ascontiguousarray(maps, dtype="<f4"))


def draw_figures(
    folder: Path,
    table: pd.DataFrame,
    record: Record,
    curves: dict[tuple[str, str], np.ndarray],
    comparison: pd.DataFrame,
    groups: pd.DataFrame,
    facts: Facts,
    gallery: int,
) -> dict[str, str]:
    """Draw the figures into the folder; returns each as a data URI."""
    changes = {trap_columns(trap)[0]: trap for trap in facts.options.traps}
    titles = {name: MEASURES[name].title for name in shown_by_group(groups)}
    draw = {
        "fidelity": lambda path: figures.plot_fidelity(curves, facts.options.method, path),
        "shuffled": lambda path: figures.plot_cascade(groups, path),
    }
    if comparison["over_centre"].notna().any():
        draw["controls"] = lambda path: figures.plot_against_controls(comparison, path)
    for name, shown in (("groups", titles), ("traps", changes)):
        if groups.loc[groups["measure"].isin(shown), "estimable"].any():
            draw[name] = partial(figures.plot_groups, groups, shown)
    if gallery:
        draw["gallery"] = lambda path: rendering.plot_gallery(
            table, record.image_and_map, gallery, facts.options.seed, path
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
    lines.append(f"report: {folder / REPORT_NAME} (opens offline)")
    if facts.phantoms:
        lines.append("These are phantoms, drawn lesions: the figures say nothing about patients.")
    return "\n".join(lines)
