"""Pages for people: one self-contained HTML file each. All text is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from atconv.io import escape_controls

__all__ = ["embedded_image", "html_table", "write_page"]

_STYLE = """
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif;
  color: #1b1b1f; background: #fff }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem }
p { max-width: 46rem } nav a { margin-right: 1rem } img { max-width: 100%; height: auto; display: block }
table { border-collapse: collapse; margin: .8rem 0; font-size: .8rem; display: block; overflow-x: auto }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap } th { vertical-align: bottom }
.text { text-align: left }
.finding { border-left: 4px solid #3b6ea8; padding-left: .8rem }
.images { display: flex; flex-wrap: wrap; gap: 1rem; align-items: end }
figure { margin: 0; max-width: 17rem; font-size: .8rem; overflow-wrap: anywhere }
figure div { display: flex; gap: 4px }
"""


def write_page(path: Path, title: str, introduction: str, sections: Iterable[tuple[str, str]]) -> Path:
    """Write a page of sections, each a title and its HTML, with links to them.

    Bytes of file names that are not UTF-8 are written as escapes.
    """
    shown = escape(escape_controls(title))
    numbered = list(enumerate(sections, 1))
    links = "".join(f'<a href="#s{i}">{escape(title)}</a> ' for i, (title, _) in numbered)
    page = [
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{shown}</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{shown}</h1><p>{escape(introduction)}</p><nav>{links}</nav>",
        *(f"<section id='s{i}'><h2>{i}. {escape(t)}</h2>{html}</section>" for i, (t, html) in numbered),
        "</body></html>",
    ]
    path.write_text("\n".join(page), encoding="utf-8", errors="backslashreplace")
    return path


def embedded_image(content: bytes, text: str, kind: str = "png") -> str:
    """An image as part of the page."""
    data = base64.b64encode(content).decode()
    return f"<img alt='{escape(escape_controls(text))}' src='data:image/{kind};base64,{data}'>"


def html_table(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table, whose first row is the header, the first columns text and the others numbers; empty for no
    rows."""

    def line(row: Sequence[str], tag: str) -> str:
        kinds = [" class='text'" if i < text_columns else "" for i in range(len(row))]
        cells = zip(kinds, map(escape, row), strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in cells)}</tr>"

    if not rows:
        return ""
    body = "".join(line(row, "td") for row in rows[1:])
    return f"<table><thead>{line(rows[0], 'th')}</thead><tbody>{body}</tbody></table>"
