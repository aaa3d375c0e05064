"""What `mkdocs build` makes itself: pages of files that live elsewhere, and the help of every command.

- Each README of `studies/`, CONTRIBUTING.md and CHANGELOG.md becomes a page, with the files it links to.
- `<!-- help: train -->` on a page becomes the output of `atconv train --help`; `help-all` likewise.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
import sys
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PAGES = {
    "contributing/index.md": "CONTRIBUTING.md",
    "contributing/changelog.md": "CHANGELOG.md",
    "results/speed.md": "docs/results/speed.md",  # its plots lie in benchmarks/
    **{
        f"results/{readme.parent.name}.md": str(readme.relative_to(ROOT))
        for readme in sorted((ROOT / "studies").glob("*/README.md"))
    },
}
SHIPPED = (".png", ".svg", ".csv", ".yaml", ".json")  # linked files that come along
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
HELP = re.compile(r"<!-- (help|help-all): ([a-z ]*?) *-->")

NotebookClient.coalesce_streams = True  # a command prints in one piece
os.environ["COLUMNS"] = "100"  # of the help
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # notebooks show text, not widgets


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for page, source in PAGES.items():
        text, linked = _relink((ROOT / source).read_text(encoding="utf-8"), page, source)
        if own := files.get_file_from_path(page):
            files.remove(own)
        files.append(File.generated(config, page, content=text))
        for target in linked:
            uri = _site_uri(target)
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    return HELP.sub(lambda found: f"```text\n{command_help(found[2].split(), found[1])}\n```", markdown)


def command_help(command: list[str], option: str = "help") -> str:
    """What `atconv COMMAND --OPTION` prints."""
    from atconv_command import main

    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["atconv", *command, f"--{option}"]),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main()
    if not printed.getvalue().strip():
        raise RuntimeError(f"atconv {' '.join(command)} --{option} printed nothing")
    return printed.getvalue().rstrip()


def _relink(text: str, page: str, source: str) -> tuple[str, list[str]]:
    """Links of a repository's file, as they are from a page of the site; and the files that must come along.

    A link to a file that is not on the site becomes its path, as code.
    """
    linked: list[str] = []
    folder = posixpath.dirname(page)

    def replaced(found: re.Match[str]) -> str:
        image, label, target, anchor = found.groups()
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        pages = {source: page for page, source in PAGES.items()}
        if path in pages:
            wanted = pages[path]
        elif path.startswith("docs/"):
            wanted = path.removeprefix("docs/")
        elif path.endswith(SHIPPED) and (ROOT / path).is_file():
            linked.append(path)
            wanted = _site_uri(path)
        else:
            return f"{label} (`{path}`)" if label.strip("`") != path else f"`{path}`"
        return f"{image}[{label}]({posixpath.relpath(wanted, folder)}{anchor or ''})"

    return LINK.sub(replaced, text), linked


def _site_uri(path: str) -> str:
    """Where a file of the repository lies on the site."""
    return f"results/files/{path}"
