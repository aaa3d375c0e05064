"""The files of a look at DATA: a page with thumbnails, and all findings as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw

from atconv.data.checks.check import FINDINGS, DataReport
from atconv.data.checks.images import Finding
from atconv.engine.progress import progress
from atconv.html_page import embedded_image, html_table, write_page
from atconv.io import count_of, escape_controls, write_json, write_rows

__all__ = ["MARKER", "write_report"]

MARKER = "check.json"
_THUMBNAILS = 200
_SIDE = 128


def write_report(report: DataReport, folder: Path) -> Path:
    """Write index.html, findings.csv and check.json to a folder; returns index.html."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "findings.csv").unlink(missing_ok=True)
    write_rows(folder / "findings.csv", [finding.to_dict() for finding in report.findings])
    write_json(folder / MARKER, report.to_dict())
    _, columns, rows, _ = report.table()
    overview = html_table([columns, *rows]) + _class_table(report)
    sections = [("What there is", overview)]
    counts = report.counts
    share = _THUMBNAILS // max(len(counts), 1)
    for kind in progress(counts, "drawing thumbnails"):
        found = [finding for finding in report.findings if finding.kind == kind]
        sections.append((f"{kind} ({len(found)})", _section(report, found, FINDINGS[kind], share)))
    total = count_of(len(report.findings), "finding")
    introduction = f"{total}, to be looked at by a person. All are in findings.csv. Nothing was changed."
    return write_page(folder / "index.html", f"A look at {report.data}", introduction, sections)


def _class_table(report: DataReport) -> str:
    """How many images or boxes of each class are in each split."""
    if not report.occurrences:
        return ""
    first = next(iter(report.occurrences.values()))
    amounts = zip(*(each.totals.tolist() for each in report.occurrences.values()), strict=True)
    rows = [[name, *map(str, row)] for name, row in zip(first.classes, amounts, strict=True)]
    unit = "boxes" if first.unit == "box" else "images"
    return html_table([["class", *(f"{unit} in {name}" for name in report.occurrences)], *rows])


def _section(report: DataReport, found: Sequence[Finding], text: str, share: int) -> str:
    """Thumbnails of the first findings, as far as a share of all thumbnails allows."""
    figures: list[str] = []
    left = share
    for finding in found:
        shown = [(finding.split, finding.index)] if finding.index is not None else []
        shown += [finding.other] if finding.other else []
        left -= max(len(shown), 1)
        if left < 0:
            break
        images = "".join(_thumbnail(report, split, i, finding.boxes) for split, i in shown if i is not None)
        caption = escape(escape_controls(f"{finding.split}/{finding.file}: {finding.detail}"))
        figures.append(f"<figure><div>{images}</div><figcaption>{caption}</figcaption></figure>")
    more = len(found) - len(figures)
    note = f"<p>{more} more in findings.csv.</p>" if more else ""
    return f"<p>{escape(text)}</p><div class='images'>{''.join(figures)}</div>{note}"


def _thumbnail(report: DataReport, split: str, index: int, boxes: Sequence[Sequence[float]]) -> str:
    """An image as part of the page, with boxes; empty where it cannot be read."""
    facts = report.facts[split]
    if not facts.kinds[index]:
        return ""
    image = facts.images.read(index, "RGB")
    image.thumbnail((_SIDE, _SIDE))
    if max(image.size) < _SIDE:
        factor = _SIDE / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes:
        corners = [left * image.width, top * image.height, right * image.width, bottom * image.height]
        draw.rectangle(
            [corners[0] - 2, corners[1] - 2, corners[2] + 2, corners[3] + 2], outline="red", width=2
        )
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return embedded_image(content.getvalue(), facts.images.name(index), "jpeg")
