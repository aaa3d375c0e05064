"""Names with line breaks and control characters, as files and classes may have them, stay in their row."""

from __future__ import annotations

import pytest

from atconv.engine.tables import Table
from atconv.io import escape_controls, first_few, read_rows, write_rows
from atconv.terminal import printable

NAMES = ["a\nb", "a\tb", "a\rb", "a\x00b", "a\x1b[31mb", "a\x9bb", "a\u2028b", "a\u202eb"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_one_line_of_visible_characters(name: str) -> None:
    escaped = escape_controls(name)
    assert escaped.isprintable()
    assert len(escaped.splitlines()) == 1
    assert escaped[0] + escaped[-1] == "ab"
    assert escaped == first_few([name])


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_row_of_a_table_is_a_line(name: str, tmp_path) -> None:
    lines = str(Table("classes", ("class", "images"), [(name, "3"), ("plain", "4")])).split("\n")
    assert len(lines) == 5
    assert lines[3].endswith("       3") or lines[3].rstrip().endswith("3")
    assert all(line.isprintable() for line in lines)
    write_rows(tmp_path / "t.csv", [{"class": name, "images": 3}, {"class": "plain", "images": 4}])
    content = (tmp_path / "t.csv").read_bytes()
    assert (content.count(b"\n"), content.count(b"\r")) == (3, 0)
    assert [row["images"] for row in read_rows(tmp_path / "t.csv")] == ["3", "4"]


def test_lines_of_messages_stay_lines() -> None:
    assert printable("two\nlines\tand a tab\x1b") == "two\nlines\tand a tab\\x1b"
