"""A classifier that learned the ruler is caught by where it looks and by the trap; one that could not is not."""

import pytest

from benchmarks.explain_planted import planted


@pytest.mark.slow
@pytest.mark.parametrize("confounder", [None, "ruler"])
def test_a_planted_ruler_is_caught_and_nothing_else(confounder, tmp_path):
    found = planted(tmp_path, confounder, seed=0)
    assert found["auc"] > 0.6, "the net has learned something"
    assert found["caught_by_trap"] == found["caught_by_energy"] == (confounder == "ruler"), found
