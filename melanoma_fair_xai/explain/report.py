"""What a run of explain.py leaves: tables, maps, figures, and one page with all of it inside."""

import base64
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captum
import jinja2
import numpy as np
import pandas as pd
import timm
import torch
from tqdm.auto import tqdm

from dataset_scripts.phantom import ARTEFACT_BITS
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.fairness.groups import PRIMARY
from melanoma_fair_xai.fairness.intervals import square_and_add

from . import figures, rendering
from .attributions import METHODS
from .controls import CONTROLS
from .explanation import Explanations, Options
from .fidelity import PERCENTILES
from .measures import MEASURES
from .summary import TRAP_MARGIN, against_controls, beats, by_group, group_names

GROUP_FIGURE = [
    "fidelity_blacken",
    "deletion_blur",
    "road_most",
    "energy_in_mask_ratio",
    "pointing_game",
    "infidelity",
]
VERSIONS = {"torch": torch.__version__, "timm": timm.__version__, "captum": captum.__version__}


@dataclass(frozen=True)
class Facts:
    """What the page says of the run."""

    model: str
    data: str
    split: str
    phantoms: bool
    method: str
    layer: str
    options: Options
    skipped: int
    command: str


def write_report(folder: Path, explanations: Explanations, pixels: np.ndarray, facts: Facts, gallery: int) -> str:
    """Write everything into the folder, report.html last; returns what the run says at its end."""
    table = explanations.table
    comparison = against_controls(table, facts.options.seed)
    groups = by_group(table, group_names(table), facts.options.seed)
    for name, write in {
        "attributions.parquet": lambda path: table.to_parquet(path, index=False),
        "attributions.npz": lambda path: save_maps(path, explanations),
        "controls.csv": lambda path: comparison.to_csv(path, index=False),
        "groups.csv": lambda path: groups.to_csv(path, index=False),
    }.items():
        with atomic_path(folder / name) as path:
            write(path)
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
        with atomic_path(folder / f"{re.sub(r'[^-.A-Za-z0-9]+', '_', name)}.jpg") as path:
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
    traps = [f"trap_{trap}_change" for trap in facts.options.traps]
    shown = [name for name in GROUP_FIGURE if (groups["measure"] == name).any()]
    titles = {name: MEASURES[name].title for name in shown}
    draw = {
        "fidelity": lambda path: figures.plot_fidelity(explanations, facts.method, path),
        "shuffled": lambda path: figures.plot_cascade(groups, path),
    }
    if comparison["over_centre"].notna().any():
        draw["controls"] = lambda path: figures.plot_against_controls(comparison, path)
    if groups.loc[groups["measure"].isin(shown), "estimable"].any():
        draw["groups"] = lambda path: figures.plot_groups(groups, shown, titles, path)
    if groups.loc[groups["measure"].isin(traps), "estimable"].any():
        titles_of_traps = {name: name.removeprefix("trap_").removesuffix("_change") for name in traps}
        draw["traps"] = lambda path: figures.plot_groups(groups, traps, titles_of_traps, path)
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
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        method=METHODS[facts.method],
        table=table,
        counts=table["error"].value_counts().to_dict(),
        problems=table.loc[table["map_problem"] != "", "map_problem"].value_counts().to_dict(),
        findings=findings(table, comparison, groups, facts),
        comparison=[row for _, row in comparison.iterrows()],
        controls=CONTROLS,
        arrow={"higher": "↑", "lower": "↓"},
        measures=MEASURES,
        skin_contrasts=skin_contrasts(groups),
        group_rows=[
            (column, group, rows.set_index("measure"))
            for (column, group), rows in groups.groupby(["group_column", "group"], sort=False)
        ],
        group_measures=[name for name in GROUP_FIGURE if name in overall.index],
        traps=[trap for trap in facts.options.traps if f"trap_{trap}_change" in overall.index],
        artefacts=artefact_rows(overall),
        margin=TRAP_MARGIN,
        pictures=pictures,
        versions={"Python": platform.python_version(), **VERSIONS},
    )


def number(value: Any, digits: int = 3) -> str:
    """A number for the page, with as many digits after the point, or two that count where that would show none."""
    if value is None or not np.isfinite(value):
        return "–"
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return f"{value:.0e}".replace("-", "−")
    return f"{value:.{digits}f}".replace("-", "−")


def findings(table: pd.DataFrame, comparison: pd.DataFrame, groups: pd.DataFrame, facts: Facts) -> list[str]:
    """What the figures amount to, in sentences."""
    compared = comparison[comparison["over_centre"].notna()]
    lost = [MEASURES[row["measure"]].title for _, row in compared.iterrows() if not beats(row, "centre")]
    won = f"{len(compared) - len(lost)} of {len(compared)} measures"
    exceptions = f"; not on {', '.join(lost)}" if lost else ""
    lines = [f"{METHODS[facts.method]} beats the centre Gaussian on {won}{exceptions}."]
    if compared.empty:
        lines = ["Too few usable maps, of fewer than 10 lesions, to compare with controls."]
    overall = groups[groups["group_column"] == "all"].set_index("measure")
    if "spearman_shuffled_1" in overall.index:
        row = overall.loc["spearman_shuffled_1"]
        lines.append(
            f"The rank correlation with the maps of a net with all its weights shuffled is {interval(row)}; "
            "a map that shows the net has about none."
        )
    problems = (table["map_problem"] != "").sum()
    if problems:
        lines.append(f"{problems} of {len(table)} maps could not be used and are left out of the measures.")
    for trap in facts.options.traps:
        if f"trap_{trap}_change" in overall.index:
            lines.append(trap_sentence(trap, overall.loc[f"trap_{trap}_change"]))
    for row in artefact_rows(overall):
        caught = "more than every control: the model looks at it" if row["caught"] else "no more than a control does"
        lines.append(f"Of the positive attribution, {number(row['energy'])} lies in the {row['title']}, {caught}.")
    return lines


def interval(row: pd.Series) -> str:
    """A mean with its interval."""
    if not row["estimable"]:
        return f"not estimable ({row['lesions']} lesions)"
    return f"{number(row['mean'])} [{number(row['low'])}, {number(row['high'])}]"


def is_caught(row: pd.Series) -> bool:
    """Whether the interval of a trap's mean change lies beyond TRAP_MARGIN, on either side."""
    return bool(row["low"] > TRAP_MARGIN or row["high"] < -TRAP_MARGIN)


def trap_sentence(trap: str, row: pd.Series) -> str:
    verb = "Erasing the " + trap.removeprefix("erase_") if trap.startswith("erase_") else f"A pasted {trap}"
    if not row["estimable"]:
        return f"{verb}: {interval(row)}."
    verdict = "the score depends on it" if is_caught(row) else f"within ±{TRAP_MARGIN:g} or not told apart from it"
    return f"{verb} changes the melanoma score by {interval(row)} on average: {verdict}."


def artefact_rows(overall: pd.DataFrame) -> list[dict[str, Any]]:
    """For each artefact whose place is known: the energy of method and controls, and the least advantage over one."""
    rows = []
    for artefact in ARTEFACT_BITS:
        name = f"energy_in_{artefact}"
        if name not in overall.index or not overall.loc[name, "estimable"]:
            continue
        over = {
            control: overall.loc[f"{name}_over_{control}"]
            for control in CONTROLS
            if f"{name}_over_{control}" in overall.index
        }
        least = min(over.values(), key=lambda row: row["low"])
        rows.append(
            {
                "title": artefact.replace("_", " "),
                "n": overall.loc[name, "n"],
                "energy": overall.loc[name, "mean"],
                "controls": {c: overall.loc[name, "mean"] - row["mean"] for c, row in over.items()},
                "least": least["mean"],
                "low": least["low"],
                "high": least["high"],
                "caught": bool(least["low"] > 0),
            }
        )
    return rows


def skin_contrasts(groups: pd.DataFrame) -> list[dict[str, Any]]:
    """Differences of each measure from skin types I-II, with MOVER limits from the groups' own intervals."""
    rows = groups[(groups["group_column"] == PRIMARY) & groups["estimable"]].set_index(["measure", "group"])
    contrasts = []
    for measure, known in MEASURES.items():
        for group in ("III-IV", "V-VI"):
            if (measure, "I-II") not in rows.index or (measure, group) not in rows.index:
                continue
            limits = [
                (row["mean"], (row["low"], row["high"]))
                for row in (rows.loc[measure, group], rows.loc[measure, "I-II"])
            ]
            low, high = map(float, square_and_add(*limits))
            sign = 1 if known.better == "higher" else -1
            contrasts.append(
                {
                    "measure": measure,
                    "group": group,
                    "difference": limits[0][0] - limits[1][0],
                    "low": low,
                    "high": high,
                }
                | {"better": min(sign * low, sign * high) > 0, "worse": max(sign * low, sign * high) < 0}
            )
    return contrasts


def closing_words(
    folder: Path, table: pd.DataFrame, comparison: pd.DataFrame, groups: pd.DataFrame, facts: Facts
) -> str:
    """What the run prints last."""
    lines = [f"{'measure':<30}{'better':>8}{'method':>10}{'random':>10}{'centre':>10}{'shuffled':>10}  centre beaten"]
    for _, row in comparison[comparison["over_centre"].notna()].iterrows():
        means = "".join(f"{number(row[name]):>10}" for name in ("mean", "random", "centre", "randomised"))
        verdict = "yes" if beats(row, "centre") else "no"
        lines.append(f"{MEASURES[row['measure']].title:<30}{row['better']:>8}{means}  {verdict}")
    lines += [f"- {line}" for line in findings(table, comparison, groups, facts)]
    lines.append(f"report: {folder / 'report.html'} (opens offline)")
    if facts.phantoms:
        lines.append("These are phantoms, drawn lesions: the figures say nothing about patients.")
    return "\n".join(lines)
