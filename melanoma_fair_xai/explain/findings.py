"""What the figures of an explanation amount to: verdicts, and sentences that give them."""

from typing import Any

import numpy as np
import pandas as pd

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.tables import number
from melanoma_fair_xai.fairness.groups import PRIMARY, REFERENCES
from melanoma_fair_xai.fairness.intervals import square_and_add

from .batches import ARTEFACT_ENERGIES
from .controls import RIVALS
from .measures import MEASURES
from .methods import METHODS
from .traps import TRAPS, trap_columns

TRAP_MARGIN = 0.05


def interval(row: pd.Series) -> str:
    """A mean with its interval."""
    if not np.isfinite(row["mean"]):
        return f"not estimable ({row['lesions']} lesions)"
    return f"{number(row['mean'])} [{number(row['low'])}, {number(row['high'])}]"


def beats(row: pd.Series, control: str) -> bool:
    """Whether the interval of the advantage over a control lies above zero."""
    return bool(row[f"over_{control}_low"] > 0)


def comparison_cells(comparison: pd.DataFrame) -> list[list[str]]:
    """A table of `against_controls` to read, header first: the method, its rivals, and whether it beats the centre."""
    titles = [control.title for control in RIVALS.values()]
    cells = [["measure", "better", "n", "the method", *titles, "beats the centre"]]
    for _, row in comparison[comparison["over_centre"].notna()].iterrows():
        title = [MEASURES[row["measure"]].title, row["better"], f"{int(row['n']):,}", interval(row)]
        cells.append([*title, *(number(row[name]) for name in RIVALS), "yes" if beats(row, "centre") else "no"])
    return cells


def is_caught(row: pd.Series) -> bool:
    """Whether the interval of a trap's mean change lies beyond TRAP_MARGIN, on either side."""
    return bool(row["low"] > TRAP_MARGIN or row["high"] < -TRAP_MARGIN)


def findings(table: pd.DataFrame, comparison: pd.DataFrame, groups: pd.DataFrame, method: str) -> list[str]:
    """What a page says first, a sentence each.

    Args:
        table: one row per image, as `explain_images` gives it.
        comparison, groups: of `against_controls` and `by_group`.
        method: of METHODS, by name.
    """
    compared = comparison[comparison["over_centre"].notna()]
    lost = [MEASURES[row["measure"]].title for _, row in compared.iterrows() if not beats(row, "centre")]
    won = f"{len(compared) - len(lost)} of {len(compared)} measures"
    exceptions = f"; not on {', '.join(lost)}" if lost else ""
    lines = [f"{METHODS[method].title} beats the centre Gaussian on {won}{exceptions}."]
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
    lines += trap_sentences(overall)
    for row in artefact_rows(overall):
        caught = "more than every control: the model looks at it" if row["caught"] else "no more than a control does"
        lines.append(f"Of the positive attribution, {number(row['energy'])} lies in the {row['title']}, {caught}.")
    return lines


def trap_sentences(overall: pd.DataFrame) -> list[str]:
    """What each trap in `overall` did (rows of `mean_by_group` of all images, by measure)."""
    lines = []
    for name, trap in TRAPS.items():
        change, _ = trap_columns(name)
        if change not in overall.index:
            continue
        row = overall.loc[change]
        if row["estimable"]:
            verdict = (
                "the score depends on it" if is_caught(row) else f"within ±{TRAP_MARGIN:g} or not told apart from it"
            )
            lines.append(f"{trap.deed} changes the melanoma score by {interval(row)} on average: {verdict}.")
        else:
            lines.append(f"{trap.deed}: {interval(row)}.")
    return lines


def artefact_rows(overall: pd.DataFrame) -> list[dict[str, Any]]:
    """For each artefact whose place is known: the energy of method and controls, and the least advantage over one."""
    rows = []
    for artefact, name in ARTEFACT_ENERGIES.items():
        if name not in overall.index or not overall.loc[name, "estimable"]:
            continue
        energy = overall.loc[name]
        names = {control: f"{name}_over_{control}" for control in RIVALS}
        over = {control: overall.loc[own] for control, own in names.items() if own in overall.index}
        least = min(over.values(), key=lambda row: np.nan_to_num(row["low"], nan=-np.inf))
        rows.append(
            {
                "title": artefact.replace("_", " "),
                "n": energy["n"],
                "energy": energy["mean"],
                "controls": {control: energy["mean"] - row["mean"] for control, row in over.items()},
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
    for (measure, group), row in rows.iterrows():
        reference = measure, REFERENCES[PRIMARY]
        if measure not in MEASURES or group in (reference[1], UNKNOWN) or reference not in rows.index:
            continue
        other = rows.loc[reference]
        limits = [(own["mean"], (own["low"], own["high"])) for own in (row, other)]
        low, high = map(float, square_and_add(*limits))
        better_low, better_high = (low, high) if MEASURES[measure].better == "higher" else (-high, -low)
        difference = {"difference": row["mean"] - other["mean"], "low": low, "high": high}
        verdict = {"better": better_low > 0, "worse": better_high < 0}
        contrasts.append({"measure": measure, "group": group, **difference, **verdict})
    return contrasts
