"""Commands of the documentation, run small."""

from __future__ import annotations

import contextlib
import glob
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image
from sklearn.datasets._base import load_digits  # all of them, whatever other tests use
from sklearn.utils import Bunch

from atconv.models import attnet, sit

ROOT = Path(__file__).parents[2]
SMALL_ATTNET = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "mlp_ratios": (2, 2, 2, 2)}
SMALL_SIT = {"depth": 2, "hidden_size": 32, "num_heads": 2}

# Options that are added to commands, the first that fits. They come last, so they win.
DETECTOR = '{"rpn_post_nms_top_n_test":20,"rpn_post_nms_top_n_train":20,"box_detections_per_img":5}'
LOOP = "--epochs 1 --warmup-epochs 0 --batch-size 8 --workers 0 --device cpu --tracker none"
ADDED = {
    "train digits": f'{LOOP} --model-args {{"stem_stride":1}}',
    "train photos/ --checkpoint runs/photos-attnet_xxs": f"{LOOP} --image-size 32 --epochs 4",  # in stages
    "train": f"{LOOP} --image-size 32",
    "detect train": f"{LOOP} --min-size [64] --max-size 96 --channels 16 --detector-args {DETECTOR}",
    "segment train": f"{LOOP} --short-side 64 --crop [64,64]",
    "generate train digits": f"{LOOP} --sample-every 0",
    "generate train": f"{LOOP} --image-size 8 --sample-every 0",
    "generate evaluate": "--images 8 --steps 2",
}


def run_line(words: list[str], slow: bool) -> None:
    """Run one line of a block, or check what cannot be run inside a test.

    An export takes half a minute: unless `slow`, only its options are checked. So are those of a
    page, which stays open.
    """
    program, *arguments = words
    stays_open = arguments[0] == "app" and "--export" not in arguments
    if program == "atconv" and (stays_open or (arguments[0] == "export" and not slow)):
        check_options(arguments)
    elif program == "atconv":
        run_atconv(_expanded(arguments))
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), f"the Makefile has no target {arguments}"
    elif program == "pip":
        check_install(arguments)
    elif program in ("python", "torchrun"):
        run_script(program, _expanded(arguments))
    else:
        raise AssertionError(f"the tests do not know how to run {program}")


def run_atconv(arguments: list[str]) -> None:
    """Run `atconv ARGUMENT...` in this process."""
    from atconv_command import main
    from support.tiny import reset_accelerate

    reset_accelerate()
    with mock.patch.object(sys, "argv", ["atconv", *added(arguments)]):
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        assert code == 0, f"atconv {' '.join(arguments)} ended with {code}"


def check_options(arguments: list[str]) -> None:
    """The command has all options that are given."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_atconv([arguments[0], "--help"])
    known = set(re.findall(r"--[a-z][\w-]*", printed.getvalue()))
    unknown = {argument for argument in arguments if argument.startswith("--")} - known
    assert not unknown, f"atconv {arguments[0]} has no options {unknown}"


def added(arguments: list[str]) -> list[str]:
    if "--resume" in arguments or "--help" in arguments:
        return arguments
    command = " ".join(arguments) + " "
    extra = next((extra for start, extra in ADDED.items() if command.startswith(f"{start} ")), "")
    return [*arguments, *extra.split()]


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Every AttNet and SiT that is built by name is a small one, the digits are few, plots are empty."""
    digits = load_digits()
    few = Bunch(**digits | {"images": digits.images[::6], "target": digits.target[::6]})
    with contextlib.ExitStack() as stack:
        for variants, changes in ((attnet.VARIANTS, SMALL_ATTNET), (sit.VARIANTS, SMALL_SIT)):
            values: dict[str, Any] = {name: {**arguments, **changes} for name, arguments in variants.items()}
            stack.enter_context(mock.patch.dict(variants, values))
        stack.enter_context(mock.patch("sklearn.datasets.load_digits", return_value=few))
        stack.enter_context(mock.patch("matplotlib.figure.Figure.savefig", _save_nothing))
        yield


def _save_nothing(figure: Any, file: Any, **options: Any) -> None:
    Image.new("L", (1, 1)).save(file, "PNG")


def check_install(arguments: list[str]) -> None:
    """The extras are those of pyproject.toml."""
    extras = set(metadata("atconv").get_all("Provides-Extra") or [])
    for names in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        assert set(names.split(",")) <= extras, f"the package has no extra {names}"


def run_script(program: str, arguments: list[str]) -> None:
    """A script of the repository, or a command in several processes."""
    if program == "torchrun":
        command = arguments[arguments.index("atconv") + 1 :]
        arguments = ["-m", "torch.distributed.run", *arguments, *added(command)[len(command) :]]
    elif arguments[0].endswith(".py"):
        arguments = [str(ROOT / arguments[0]), *arguments[1:]]
    subprocess.run([sys.executable, *arguments], check=True)


def _expanded(arguments: list[str]) -> list[str]:
    """What a shell makes of patterns of files. `atconv` takes them too, where they were quoted."""
    return [path for argument in arguments for path in sorted(glob.glob(argument)) or [argument]]
