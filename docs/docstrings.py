"""Examples of docstrings as blocks of code: lines that begin with `>>>`, and what follows up to a blank."""

from __future__ import annotations

import textwrap
from typing import Any

from griffe import Extension, Object


class FencedExamples(Extension):
    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fence_examples(obj.docstring.value)


def fence_examples(text: str) -> str:
    """A docstring with its examples in fences of Markdown."""
    lines: list[str] = []
    example: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith(">>>") or (example and line.strip()):
            example.append(line)
            continue
        if example:
            indent = example[0][: len(example[0]) - len(example[0].lstrip())]
            code = textwrap.dedent("\n".join(example)).splitlines()
            lines += [indent + part for part in ("```pycon", *code, "```")]
            example = []
        lines.append(line)
    return "\n".join(lines[:-1])
