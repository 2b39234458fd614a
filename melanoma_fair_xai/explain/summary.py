"""From one row per image to what is reported: the method against its controls, and every measure by group."""

from collections.abc import Sequence

import pandas as pd

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.fairness import mean_by_group
from melanoma_fair_xai.fairness.groups import MAX_GROUPS

from .batches import ARTEFACT_ENERGIES, column_name
from .controls import CASCADE, CONTROLS, RIVALS
from .measures import COMPARED, MEASURES
from .traps import TRAPS, trap_columns

# Types of decision, by (label, whether melanoma is decided), and what the page of examples calls them.
ERRORS = {(1, True): "TP", (1, False): "FN", (0, True): "FP", (0, False): "TN"}
ERROR_TITLES = {
    "TP": "true positives: melanoma, called so",
    "FN": "false negatives: melanoma, missed",
    "FP": "false positives: benign, called melanoma",
    "TN": "true negatives: benign, called so",
    UNKNOWN: "images without a label",
}


def error_types(labels: pd.Series, decided: pd.Series) -> list[str]:
    """TP, FP, TN or FN of each image, `unknown` where it has no label."""
    return [ERRORS.get((label, bool(d)), UNKNOWN) for label, d in zip(labels, decided, strict=True)]


def advantage(table: pd.DataFrame, measure: str, control: str) -> pd.Series:
    """By how much the method's map is better than the control's on each image, or has more energy in an artefact."""
    difference = table[measure] - table[column_name(measure, control)]
    return -difference if measure in MEASURES and MEASURES[measure].better == "lower" else difference


def against_controls(table: pd.DataFrame) -> pd.DataFrame:
    """One row per measure: its mean with interval, the means of the controls, and the advantages over them.

    Columns: measure, better, n, lesions, mean, low, high; for each control its mean (`random` ...) and the paired
    advantage (`over_random`, `over_random_low`, `over_random_high`). Intervals are those of `mean_by_group`.
    """
    measures = [name for name in MEASURES if table[name].notna().any()]
    wide = {name: table[name] for name in ("lesion_id", *measures)}
    for name in measures:
        for control in CONTROLS if MEASURES[name].compared else ():
            # Of the images that the method has a map of: those without one have other scores.
            wide[f"{control} {name}"] = table[column_name(name, control)].where(table[name].notna())
            wide[f"over {control} {name}"] = advantage(table, name, control)
    means = mean_by_group(pd.DataFrame(wide), list(wide)[1:], []).set_index("measure")
    rows = []
    for name in measures:
        row = {"measure": name, "better": MEASURES[name].better}
        row |= means.loc[name, ["n", "lesions", "mean", "low", "high"]].astype(object).to_dict()
        for control in CONTROLS if MEASURES[name].compared else ():
            over = means.loc[f"over {control} {name}"]
            row |= {control: means.loc[f"{control} {name}", "mean"], f"over_{control}": over["mean"]}
            row |= {f"over_{control}_low": over["low"], f"over_{control}_high": over["high"]}
        rows.append(row)
    over = [f"over_{control}{end}" for control in CONTROLS for end in ("", "_low", "_high")]
    columns = ["measure", "better", "n", "lesions", "mean", "low", "high", *CONTROLS, *over]
    return pd.DataFrame(rows, columns=columns)


def group_names(table: pd.DataFrame) -> list[str]:
    """The group columns that say something of these images: those with a known value, and few enough to be groups."""
    needs = {"fitzpatrick": "fitzpatrick", "sex": "sex", "age_band": "age", "diagnosis": "diagnosis", "error": "error"}
    known = {name: set(table[source].dropna()) - {UNKNOWN} for name, source in needs.items() if source in table}
    return [name for name, values in known.items() if values and (name == "age_band" or len(values) <= MAX_GROUPS)]


def by_group(table: pd.DataFrame, group_by: Sequence[str]) -> pd.DataFrame:
    """`mean_by_group` of every measure, of advantages over controls (`..._over_centre` ...), and of traps."""
    wide = table.copy()
    over = [(name, "centre") for name in COMPARED]
    over += [(name, control) for name in ARTEFACT_ENERGIES.values() if name in table for control in RIVALS]
    for name, control in over:
        wide[f"{name}_over_{control}"] = advantage(table, name, control)
    measures = [*MEASURES, *(f"{name}_shuffled_{share:g}" for name in ("spearman", "ssim") for share in CASCADE)]
    measures += [*ARTEFACT_ENERGIES.values(), *(column for trap in TRAPS for column in trap_columns(trap))]
    measures += [f"{name}_over_{control}" for name, control in over]
    measures = [name for name in measures if name in wide and wide[name].notna().any()]
    return mean_by_group(wide, measures, group_by)
