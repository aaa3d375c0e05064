from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

from atconv_command import COMMANDS, TOOLS, main

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
MARKDOWN = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("studies/*/README.md")])


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_repository_lead_to_files(page: Path) -> None:
    targets = [a or b for a, b in LINK.findall(page.read_text(encoding="utf-8"))]
    files = [t.partition("#")[0] for t in targets if not t.startswith(("http", "#"))]
    assert [f for f in files if not (page.parent / f).exists()] == []


def test_options_that_texts_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in [name for name in COMMANDS if name not in TOOLS]:
        print_help(command)
    for command, tools in TOOLS.items():
        for tool in tools:
            print_help(command, tool)
    others = {
        "--resume",
        "--cpu",
        "--num_processes",
        "--no-deps",
        "--wheel-dir",
    }  # of the front door and other tools
    known = set(OPTION.findall(capsys.readouterr().out)) | others
    pages = [ROOT / "README.md", *(ROOT / "docs" / "guides").glob("*.md")]
    code = [span for page in pages for span in CODE.findall(page.read_text(encoding="utf-8"))]
    assert {option for span in code for option in OPTION.findall(span)} - known == set()


def print_help(*command: str) -> None:
    option = "--help-all" if command[-1] == "train" else "--help"
    with (
        mock.patch.object(sys, "argv", ["atconv", *command, option]),
        contextlib.suppress(SystemExit),
    ):
        main()


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    commands = [name for name in COMMANDS if name not in TOOLS]
    commands += [f"{name} {tool}" for name, tools in TOOLS.items() for tool in tools]
    assert [command for command in commands if not re.search(rf"<!-- help(-all)?: {command} -->", page)] == []


def test_workflows_run_what_the_makefile_has() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    workflows = [yaml.safe_load(p.read_text()) for p in (ROOT / ".github/workflows").glob("*.yml")]
    steps = [step.get("run", "") for w in workflows for job in w["jobs"].values() for step in job["steps"]]
    called = [step.removeprefix("make ") for step in steps if step.startswith("make ")]
    assert set(called) >= {"lint", "docs", "test"}
    assert set(called) <= set(targets)
