"""The simulation of coverage: its rows count what its data sets say, and a file is gone on with."""

import pandas as pd
import pytest

from benchmarks.fairness_coverage import CHUNK, cell_name, draw_chunk, simulate, tables
from benchmarks.fairness_studies import STUDIES


@pytest.mark.parametrize("study", STUDIES)
def test_a_data_set_of_each_study_has_an_outcome(study):
    *_, (outcome,), _ = draw_chunk((study, STUDIES[study].cells[0], range(3, 4)))
    assert outcome and {kind.split()[0] for kind, _ in outcome} <= {"coverage", "size", "power"}
    assert all(value is None or value in (True, False) for value in outcome.values())


def test_rows_are_shares_of_the_data_sets_and_a_file_is_gone_on_with(tmp_path):
    cells = [("few_missed", cell) for cell in STUDIES["few_missed"].cells[:2]]
    output, data_sets = tmp_path / "coverage.csv", CHUNK + 1
    simulate(cells[:1], data_sets, 1, output)
    simulate(cells, data_sets, 1, output)
    rows = pd.read_csv(output)
    assert list(rows["cell"]) == [cell_name(*cell) for cell in cells for _ in range(2)]
    outcomes = [draw_chunk((*cells[0], range(data_sets)))[2], draw_chunk((*cells[1], range(data_sets)))[2]]
    for i, kind in enumerate(("sensitivity", "its lower limit (97.5 nominal)")):
        for j in (0, 1):
            share = sum(one["coverage", kind] for one in outcomes[j]) / data_sets
            row = rows.iloc[2 * j + i]
            assert row["per_cent"] == pytest.approx(100 * share, abs=0.05) and row["given"] == data_sets
            assert row["standard_error"] == pytest.approx(100 * (share * (1 - share) / data_sets) ** 0.5, abs=0.01)
    text = tables(output)
    assert text.count("| sensitivity 0.9") == 2 and "### few_missed" in text


def test_what_is_not_estimable_is_no_false_alarm():
    *_, outcomes, _ = draw_chunk(("thresholds", ("youden", 14, 20), range(4)))
    given = [outcome["size", "sensitivity at specificity 0.9"] for outcome in outcomes]
    assert None in given and not any(given)  # at a fixed specificity nothing is given below 20 lesions
