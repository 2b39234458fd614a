import pytest

from melanoma_fair_xai.base.tables import markdown_table, number


@pytest.mark.parametrize(
    "value, text",
    [(0.12345, "0.123"), (-0.5, "−0.500"), (0.0, "0.000"), (12.0, "12.000"), (float("nan"), "–"), (None, "–")]
    + [(0.0005, "0.001"), (0.0004, "4e−04"), (-0.00004, "−4e−05"), (float("inf"), "–")],
)
def test_a_number_never_reads_as_zero_unless_it_is(value, text):
    assert number(value) == text


def test_digits_are_asked_for():
    assert number(0.00123, 4) == "0.0012" and number(0.004, 2) == "4e−03"


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown_table(["a", "b"], [["x|y", "z"]]).splitlines() == ["| a | b |", "| --- | --- |", "| x\\|y | z |"]
