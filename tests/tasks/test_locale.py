"""A run on files and classes of any name, under any locale: it trains, resumes and has all its plots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.tiny import image_folder, tiny_options

NAMES = (b"caf\xe9", "猫".encode(), b"tab\there")  # Latin-1, Chinese, a control character


def atconv_in_c_locale(*arguments: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "atconv", *map(os.fsencode, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)


@pytest.mark.slow
def test_names_of_any_encoding_under_the_c_locale(tmp_path: Path) -> None:
    folder, data = tmp_path / "data", os.fsencode(tmp_path / "data")
    image_folder(folder, {"a": 20, "b": 20, "c": 20})
    try:
        for plain, name in zip(("a", "b", "c"), NAMES, strict=True):
            (folder / plain / "0.png").rename(folder / plain / os.fsdecode(b"scan-" + name + b".png"))
            os.rename(folder / plain, os.path.join(data, name))
    except OSError:
        pytest.skip("the file system takes no such names")
    run = tmp_path / "run"
    options = tiny_options(in_chans=3, test_fraction=0.3)
    for arguments in (
        ["train", data, *options, f"--out={run}"],
        ["train", "--resume", run],
        ["evaluate", run, data, "--workers=0"],
    ):
        ended = atconv_in_c_locale(*arguments)
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")[-2000:]
        assert b"Traceback" not in ended.stderr
        if arguments[0] == "train" and "--resume" not in arguments:
            (run / "metrics.json").unlink()  # as if the run had ended before its report
            for name in ("curves.png", "confusion.png", "mistakes.png"):
                (run / name).unlink()
    [evaluation] = (run / "evaluation").iterdir()
    for result in (run, evaluation):
        for name in ("confusion.png", "mistakes.png"):
            assert min(Image.open(result / name).size) > 200
        assert len(rows(result / "per_class.csv")) == 3
    assert (run / "curves.png").is_file()
    assert (run / "metrics.json").is_file()


def rows(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()[1:]
