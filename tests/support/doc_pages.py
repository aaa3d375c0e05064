"""Pages of the documentation, run from top to bottom.

| block | what happens |
| --- | --- |
| `python` | runs in the namespace of the page |
| `bash` | each command is run or checked, see `run_line` |
| any, with `title="NAME"` | is written to NAME |
| `yaml` | must be readable |
| `text` | is output, not run |

A comment before a block changes that: `<!-- test: slow -->` leaves it to `make test-all`, and
`<!-- test: not run: REASON -->` to nobody; the page says so too.

A page runs in an empty folder. What it names and does not make is made for it (`doc_samples.py`). Every
AttNet and SiT that is built by name is a small one, and commands get the options of `doc_commands.py`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import yaml
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from atconv.mixers import MIXERS
from support.doc_commands import run_line, small
from support.doc_samples import provide

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

_FENCES = RawFencedCodeBlockLexer(re.compile(r" *(?P<language>\w*) *(?P<options>[^\n]*)\n"))
_COMMENT = re.compile(r"<!-- test: (?P<what>slow|not run: [^>]+) -->\s*\Z")
_TITLE = re.compile(r'title="([^"]+)"')
_run_python = PythonEvaluator()


def run_page(path: Path, slow: bool = False) -> None:
    """Run the blocks of a page in the current folder, those marked slow only if `slow`."""
    document = parse(path)
    document.namespace["slow"] = slow
    with small(), mock.patch.dict(MIXERS):  # a page may add one
        for example in document.examples():
            example.evaluate()


def has_slow_blocks(path: Path) -> bool:
    return "<!-- test: slow -->" in path.read_text(encoding="utf-8")


def parse(path: Path) -> Document:
    return Sybil([_blocks]).parse(path)


def _blocks(document: Document) -> Iterable[Region]:
    for region in _FENCES(document):
        region.parsed = region.lexemes["source"]
        region.evaluator = _evaluate
        yield region


def _evaluate(example: Example) -> str | None:
    language, source = example.region.lexemes["language"], str(example.parsed)
    comment = _COMMENT.search(example.document.text[: example.region.start])
    if comment is not None and (comment["what"] != "slow" or not example.namespace["slow"]):
        return None
    if title := _TITLE.search(example.region.lexemes["options"]):
        provide(source)
        Path(title[1]).write_text(_smaller(source), encoding="utf-8")
    elif language == "python":
        provide(source)
        _run_python(example)
    elif language == "bash":
        for line in _lines(source):
            provide(line)
            run_line(shlex.split(line, comments=True), example.namespace["slow"])
    elif language == "yaml":
        yaml.safe_load(source)
    elif language != "text":
        return f"a block of {language!r}: the tests know python, bash, yaml and text"
    return None


def _lines(source: str) -> list[str]:
    """Commands of a block, those that end with a backslash continued."""
    joined = source.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def _smaller(source: str) -> str:
    """A study that takes a minute in place of hours."""
    source = source.replace("seeds: 8", "seeds: 3").replace("epochs: 20", "epochs: 1, warmup_epochs: 0")
    return source.replace("image_size: 64", "image_size: 32, workers: 0, precision: fp32")
