"""A self-contained HTML page: text, pictures inside it, and tables."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

__all__ = ["Section", "Table", "write_page"]

_STYLE = """
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif;
  color: #1b1b1f; background: #fff }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem }
p { max-width: 46rem } nav a { margin-right: 1rem } img { max-width: 100%; height: auto; display: block }
table { border-collapse: collapse; margin: .8rem 0; font-size: .8rem; display: block; overflow-x: auto }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap } th { vertical-align: bottom }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
.finding { border-left: 4px solid #3b6ea8; padding-left: .8rem } footer { color: #555; font-size: .85rem }
"""


@dataclass(frozen=True)
class Table:
    """Rows of text below their heads; the first two columns are names."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One thing to see: what it is, what was found here, and the picture."""

    title: str
    text: str
    finding: str = ""
    pictures: Sequence[Path] = field(default_factory=tuple)
    table: Table | None = None


def write_page(title: str, introduction: str, sections: Sequence[Section], path: Path) -> None:
    """Write the page. Pictures go into the file itself: it can be sent around alone."""
    links = "".join(f'<a href="#{_anchor(i)}">{escape(s.title)}</a> ' for i, s in enumerate(sections))
    parts = [
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(introduction)}</p><nav>{links}</nav>",
        *(_section(i, section) for i, section in enumerate(sections)),
        "</body></html>",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _section(index: int, section: Section) -> str:
    finding = f"<p class='finding'>{escape(section.finding)}</p>" if section.finding else ""
    pictures = "".join(_picture(path, section.title) for path in section.pictures)
    table = "" if section.table is None else _table(section.table)
    return (
        f"<section id='{_anchor(index)}'><h2>{index + 1}. {escape(section.title)}</h2>"
        f"<p>{escape(section.text)}</p>{finding}{pictures}{table}</section>"
    )


def _picture(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='{escape(title, quote=True)}' src='data:image/png;base64,{data}'>"


def _table(table: Table) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in table.heads)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _anchor(index: int) -> str:
    return f"s{index + 1}"
