"""From one row per image to what is reported: the method against its controls, and every measure by group."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dataset_scripts.common import UNKNOWN
from melanoma_fair_xai.fairness import mean_by_group

from .controls import CASCADE, CONTROLS
from .explanation import column_name
from .measures import COMPARED, MEASURES

ERRORS = {(1, True): "TP", (0, True): "FP", (0, False): "TN", (1, False): "FN"}
TRAP_MARGIN = 0.05
ARTEFACT_CONTROLS = ("random", "centre", "edges", "randomised")


def error_types(labels: pd.Series, decided: pd.Series) -> list[str]:
    """TP, FP, TN or FN of each image, `unknown` where it has no label."""
    return [ERRORS.get((label, bool(d)), UNKNOWN) for label, d in zip(labels, decided, strict=True)]


def advantage(table: pd.DataFrame, measure: str, control: str) -> pd.Series:
    """By how much the method's map is better than the control's on each image; negative where it is worse."""
    difference = table[measure] - table[column_name(measure, control)]
    return difference if MEASURES[measure].better == "higher" else -difference


def against_controls(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row per measure: its mean with interval, the means of the controls, and the advantages over them.

    Columns: measure, better, n, lesions, mean, low, high; for each control its mean (`random` ...) and the paired
    advantage (`over_random`, `over_random_low`, `over_random_high`). Intervals are 95 % lesion-bootstrap intervals.
    """
    compared = [name for name in COMPARED if table[name].notna().any()]
    wide = {name: table[name] for name in ("lesion_id", *compared, "max_sensitivity")}
    for control in CONTROLS:
        for name in compared:
            # Of the images that the method has a map of: those without one have other scores.
            wide[f"{control} {name}"] = table[column_name(name, control)].where(table[name].notna())
            wide[f"over {control} {name}"] = advantage(table, name, control)
    measures = [name for name in wide if name != "lesion_id"]
    means = mean_by_group(pd.DataFrame(wide), measures, [], seed=seed).set_index("measure")
    rows = []
    for name in [name for name in MEASURES if name in means.index]:
        row = {"measure": name, "better": MEASURES[name].better}
        row |= means.loc[name, ["n", "lesions", "mean", "low", "high"]].astype(object).to_dict()
        for control in CONTROLS if name in compared else ():
            over = means.loc[f"over {control} {name}"]
            row |= {control: means.loc[f"{control} {name}", "mean"], f"over_{control}": over["mean"]}
            row |= {f"over_{control}_low": over["low"], f"over_{control}_high": over["high"]}
        rows.append(row)
    over = [f"over_{control}{end}" for control in CONTROLS for end in ("", "_low", "_high")]
    columns = ["measure", "better", "n", "lesions", "mean", "low", "high", *CONTROLS, *over]
    return pd.DataFrame(rows, columns=columns)


def group_names(table: pd.DataFrame) -> list[str]:
    """The group columns that say something of these images: those with a known value."""
    needs = {"fitzpatrick": "fitzpatrick", "sex": "sex", "age_band": "age", "diagnosis": "diagnosis", "error": "error"}
    return [
        name
        for name, source in needs.items()
        if source in table and (table[source].notna() & (table[source] != UNKNOWN)).any()
    ]


def by_group(table: pd.DataFrame, group_by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """`mean_by_group` of every measure, of advantages over controls (`..._over_centre` ...), and of traps."""
    wide = table.copy()
    for name in COMPARED:
        wide[f"{name}_over_centre"] = advantage(table, name, "centre")
    artefacts = [name for name in extra_measures(table) if name.startswith("energy_in_")]
    for name in artefacts:
        for control in ARTEFACT_CONTROLS:
            wide[f"{name}_over_{control}"] = wide[name] - wide[column_name(name, control)]
    over = [f"{name}_over_centre" for name in COMPARED]
    over += [f"{name}_over_{control}" for name in artefacts for control in ARTEFACT_CONTROLS]
    measures = [*MEASURES, *extra_measures(table), *over]
    measures = [name for name in measures if wide[name].notna().any()]
    return mean_by_group(wide, measures, group_by, seed=seed)


def extra_measures(table: pd.DataFrame) -> list[str]:
    """Columns beside MEASURES: energy in artefacts, similarity to maps of shuffled nets, changes by traps."""
    similarity = [f"{name}_shuffled_{share:g}" for name in ("spearman", "ssim") for share in CASCADE]
    return [
        name
        for name in table.columns
        if name in similarity
        or name.startswith("trap_")
        or (name.startswith("energy_in_") and "__" not in name and name not in MEASURES)
    ]


def beats(row: pd.Series, control: str) -> bool:
    """Whether the interval of the advantage over a control lies above zero."""
    return bool(np.isfinite(row[f"over_{control}_low"]) and row[f"over_{control}_low"] > 0)
