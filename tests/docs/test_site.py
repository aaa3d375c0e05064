from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
MARKDOWN = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("studies/*/README.md")])


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_repository_lead_to_files(page: Path) -> None:
    targets = [a or b for a, b in LINK.findall(page.read_text(encoding="utf-8"))]
    files = [t.partition("#")[0] for t in targets if not t.startswith(("http", "#"))]
    assert [f for f in files if not (page.parent / f).exists()] == []


def test_every_command_is_in_the_reference() -> None:
    from atconv_command import COMMANDS, TOOLS

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
