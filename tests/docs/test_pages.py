from __future__ import annotations

from pathlib import Path

import pytest

from support.doc_pages import PAGES, ROOT, has_slow_blocks, run_page


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_page_runs(page: Path) -> None:
    run_page(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", filter(has_slow_blocks, PAGES), ids=_name)
def test_page_runs_with_its_slow_blocks(page: Path) -> None:
    run_page(page, slow=True)
