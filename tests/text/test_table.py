import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.text.table import Table, aligned, escape_latex, latex, markdown

TABLE = Table(
    "t",
    "Share & <title>",
    ("method", "F.Q.", "M.U.", "F.Q."),
    [["a|b", "4.3e-25 (1e-26–0.1)", "50 %", "1"], ["x_y", "–", "−0.1", "2"]],
    groups=(("", 1), ("ours", 2), ("the paper", 1)),
    strong=frozenset({0}),
    faded=frozenset({3}),
    notes=["lr #1: 100 % of {all}"],
)


@given(st.lists(st.lists(st.text("a|\\\n ", max_size=6), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_table_for_terminals_has_its_rows_and_columns_whatever_stands_in_it(rows: list[list[str]]):
    head, _, *lines = aligned(["a", "b|c", "d"], rows)
    assert len(lines) == len(rows) and {len(line) for line in lines} == {len(head)}
    assert all(len(re.findall(r" \| ", f" {line} ".replace(r"\|", ""))) == 4 for line in lines)


def test_markdown_has_a_line_for_each_row_and_no_bar_or_tag_of_its_own():
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "## Share & &lt;title>"
    assert lines[2] == "| method | F.Q. | M.U. | F.Q. (the paper) |"
    assert lines[4] == r"| **a\|b** | **4.3e-25 (1e-26–0.1)** | **50 %** | 1 |"
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:6]}) == 1


def test_latex_has_booktabs_rules_and_escapes():
    text = latex(TABLE)
    assert r"\toprule" in text and r"\midrule" in text and r"\bottomrule" in text
    assert r"\multicolumn{2}{c}{ours}" in text and r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    assert r"x\_y & -- & $-$0.1 & 2 \\" in text
    assert r"\textbf{$4.3\times10^{-25}$ ($1\times10^{-26}$--0.1)} & \textbf{50 \%} & 1 \\" in text
    assert r"lr \#1: 100 \% of \{all\}" in text


def test_latex_is_balanced_and_every_row_as_wide_as_the_table():
    text = latex(TABLE)
    bare = re.sub(r"\\[{}%&#_$]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert text.count(r"\begin{") == text.count(r"\end{")
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [3, 3]


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40))
def test_no_text_breaks_out_of_latex(text: str):
    bare = re.sub(r"\\[{}%&#_$]", "", escape_latex(text))
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert not re.search(r"[%&#_]", bare)


def test_an_exponent_is_a_power_of_ten_and_a_name_is_not():
    assert escape_latex("1e-7") == r"$1\times10^{-7}$"
    assert escape_latex("model1e7b v2e") == "model1e7b v2e"


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="2 texts"):
        Table("t", "", ("a", "b"), [["1"]])
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", "", ("a", "b"), [], groups=(("x", 3),))
