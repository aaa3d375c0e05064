"""The `atconv` command's front door: answers --help at once, without importing torch.

Importing the package registers models with timm, which takes seconds; this module stands outside it.
"""

from __future__ import annotations

import os
import sys
import warnings

COMMANDS = {
    "train": "train a classifier",
    "evaluate": "accuracy, calibration, per-class metrics and plots of a trained model",
    "predict": "classify images",
    "models": "the AttNet family: parameters, multiply-adds, published accuracy",
    "data": "look at data and prepare it: check, lmdb",
    "study": "compare token mixers on your data: same network, recipe and budget",
    "analyze": "see what the operator does with images: a page of plots",
    "embed": "images as vectors: the features of a run or of any timm model",
    "neighbors": "the images of DATA that are most like others",
    "probe": "how well a backbone's features tell classes apart: neighbors, linear probe",
    "app": "a web page to try runs in a browser, or a Hugging Face Space of it",
    "export": "ONNX, OpenVINO (both int8 too), a web page, torch.export, AOTInductor, ExecuTorch, Core ML",
    "publish": "a folder or repository that timm, diffusers and atconv.load open, with a model card",
    "generate": "diffusion models: train, sample, evaluate, encode",
    "detect": "boxes and masks of objects: train, evaluate, predict",
    "segment": "a class for every pixel: train, evaluate, predict",
}

# Commands that are groups of commands.
TOOLS = {
    "data": {
        "check": "copies, wrong labels, boxes, masks: a page of what to look at before training",
        "lmdb": "pack an image folder into one LMDB file",
    },
    "generate": {
        "train": "train a SiT on images or latents",
        "sample": "sample images: a grid, PNG files or an .npz file",
        "evaluate": "FID or its family, precision, recall, cost of samples",
        "encode": "images to latents of a VAE, once",
    },
    "detect": {
        "train": "train a detector on boxes or masks (COCO, YOLO, Pascal VOC)",
        "evaluate": "mean average precision, by class, and plots",
        "predict": "find objects in images, and draw them",
    },
    "segment": {
        "train": "train a segmenter on images and masks",
        "evaluate": "intersection over union, by class, and plots",
        "predict": "a class for every pixel of images, drawn",
    },
}


def main() -> None:
    """Run a command; exit 2 with one line for bad input."""
    try:
        try:
            _answer(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage("atconv", COMMANDS))
        raise SystemExit(0 if arguments else 2)
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(f"atconv {version('atconv')}")
    elif arguments[0] in TOOLS and arguments[1:2] in (["-h"], ["--help"]):
        print(_usage(f"atconv {arguments[0]}", TOOLS[arguments[0]]))
    else:
        if os.environ.get("ATCONV_DEBUG", "0") == "0" and not sys.warnoptions:
            warnings.simplefilter("ignore")  # they are for developers, and hide the one line about bad input
        try:
            from atconv.extras import name_missing_extra

            with name_missing_extra():
                from atconv.cli import run
        except (ValueError, ImportError) as error:
            # An extra is missing, or the environment asks for what is not there.
            if not any(word in str(error) for word in ("pip install", "ATCONV_BACKEND")):
                raise
            print(f"atconv: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        run(arguments, COMMANDS, TOOLS)


def _usage(prog: str, commands: dict[str, str]) -> str:
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in commands.items())
    return (
        f"usage: {prog} COMMAND ...\n\n"
        "Attentive convolution: attention's expressivity at convolution's cost.\n\n"
        f"commands:\n{lines}\n\n'{prog} COMMAND --help' shows a command's options."
    )


if __name__ == "__main__":
    main()
