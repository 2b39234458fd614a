import io
import re

import matplotlib
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from odd_names import BROKEN_NAMES, ODD_NAMES

from melanoma_fair_xai.base.tables import (
    Markdown,
    csv_text,
    figure_text,
    markdown_block,
    markdown_code,
    markdown_table,
    markdown_text,
    number,
    plain_cells,
    write_csv,
)

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


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


def shown(markdown: str) -> list[str]:
    """The texts between the tags of a page, none of which may be another than those of paragraphs and tables."""
    page = MARKDOWN.render(markdown)
    tags = set(re.findall(r"</?([a-z0-9]+)", page))
    assert tags <= {"p", "table", "thead", "tbody", "tr", "th", "td"}, page
    unescape = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&"}
    texts = [text for text in re.split(r"<[^>]*>|\n", page) if text]
    return [re.sub("&lt;|&gt;|&quot;|&amp;", lambda match: unescape[match[0]], text) for text in texts]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_in_markdown_shows_its_letters_and_does_nothing(name):
    table = markdown_table([name, "n"], [[name, "0.912 [0.880, 0.940]"]])
    assert shown(table) == [name, "n", name, "0.912 [0.880, 0.940]"]
    assert shown(markdown_text(name)) == [name]
    assert not re.search(r"!\[|\w://\w|(?<!\\)\$", markdown_text(name))  # neither a figure's link nor GitHub's own


@pytest.mark.parametrize("name", BROKEN_NAMES)
def test_a_name_stays_on_its_line(name):
    text = markdown_text(name)
    assert text.isprintable() and shown(markdown_table(["a"], [[name]]))[1] == text.strip()


def test_what_is_markdown_already_is_left_as_it_is():
    assert markdown_table(["a"], [[Markdown("**x**")]]).endswith("| **x** |")
    assert markdown_text(markdown_text("a|b")) == "a\\|b"
    assert markdown_text("fitzpatrick_group V-VI, < 0.001, −0.5 [−0.7, −0.2], -10 to 0") == (
        "fitzpatrick_group V-VI, < 0.001, −0.5 [−0.7, −0.2], -10 to 0"
    )


@pytest.mark.parametrize("name", ["sex", "a`b", "``", "*x* <b>", "a\nb"])
def test_code_shows_its_letters(name):
    page = MARKDOWN.render(f"x {markdown_code(name)} y")
    inside = re.fullmatch(r"<p>x <code>(.*)</code> y</p>\n", page)[1]
    assert inside.replace("&lt;", "<").replace("&gt;", ">") == name.replace("\n", " ")


def test_a_block_ends_where_it_ends():
    page = MARKDOWN.render(markdown_block("echo 'x\n```\ny'", "sh") + "\n\nafter")
    assert page == "<pre><code class=\"language-sh\">echo 'x\n```\ny'\n</code></pre>\n<p>after</p>\n"


def test_names_come_back_from_a_csv_as_they_were(tmp_path):
    names = [*ODD_NAMES, *BROKEN_NAMES, "-", "-5", "-1e-5", "", "''=y", "'plain", "＝x", "\rx"]
    table = pd.DataFrame({"=group": names, "value": [-1.5] * len(names)})
    for kind in (str, object, "category"):
        write_csv(table.astype({"=group": kind}), tmp_path / "names.csv")
        for engine in ("c", "python"):  # the file is a plain CSV
            read = pd.read_csv(tmp_path / "names.csv", dtype={"'=group": str}, keep_default_na=False, engine=engine)
            # What a spreadsheet computes begins so, unless it is a number.
            texts = [*read.columns, *read["'=group"]]
            assert not [t for t in texts if re.match(r"[=+@\t\r\n＝-]\D", t)] and {"-5", "-1e-5"} <= set(texts)
            pd.testing.assert_frame_equal(plain_cells(read), table)


def test_a_csv_of_plain_names_is_what_pandas_writes():
    table = pd.DataFrame(
        {"group": ["I-II", "under 40", None], "value": [-0.25, 1e-7, None], "yes": [True, False, True]}
    )
    assert csv_text(table) == table.to_csv(index=False)
    assert csv_text(table.head(0)) == "group,value,yes\n"
    pd.testing.assert_frame_equal(plain_cells(pd.read_csv(io.StringIO(csv_text(table)))), table)


@pytest.mark.parametrize("name", ["$x$", "a $5 and $6", r"$\frac$", "_hidden", "plain", "x" * 300])
def test_a_figure_shows_the_letters_of_a_name(name):
    figure = Figure()
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], label=figure_text(name))
    (text,) = axis.legend().get_texts()
    figure.canvas.draw()  # a formula that is none fails here
    wanted, is_formula = text._preprocess_math(text.get_text())
    assert not is_formula and wanted.strip() == (name if len(name) < 100 else "x" * 79 + "…")
    assert matplotlib.rcParams["text.parse_math"]  # nobody else's figures change
