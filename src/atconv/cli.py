"""The commands. Each parses its options and calls one typed function; no logic of its own."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, get_type_hints

from atconv.ops.allocator import tune_allocator

try:
    import yaml
    from jsonargparse import ArgumentParser, set_parsing_settings
    from rich.console import Console

    from atconv.engine.progress import make_table, plain_console, track
except ImportError as error:
    print(f"atconv: {error.name} is missing: pip install 'atconv[train]'", file=sys.stderr)
    raise SystemExit(2) from None

__all__ = ["run"]

_EXTRAS = {"generate": "generation", "export": "train,export", "detect": "dense", "segment": "dense"}
_DATA = "an image folder, an LMDB file, a timm dataset name (torch/..., hfds/..., wds/...) or digits"

_BOXES = "a folder with images/ and train.json, val.json (COCO's format), or annotations.json"
_MASKS = "a folder with images/, masks/ and classes.txt"


class Parser(ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        told = " ".join(lines)[:600]
        if re.match(r"(error: )?unrecognized arguments: [^-]", told, re.IGNORECASE):
            told += ": give it before the options"
        fail(f"{self.prog}: {told} (see {self.prog} --help)")


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one command. Bad input ends with one line on stderr and exit code 2."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    tune_allocator()
    if os.environ.get("ATCONV_DEBUG", "0") != "0":  # show tracebacks
        _COMMANDS[command]([_underscored(a) for a in arguments])
        return
    try:
        _COMMANDS[command]([_underscored(a) for a in arguments])
    except ImportError as error:
        extra = _EXTRAS.get(command, "train")
        fail(f"atconv {command}: {error}: pip install 'atconv[{extra}]'")
    except (ValueError, TypeError, FileNotFoundError, FloatingPointError, RuntimeError) as error:
        fail(f"atconv {command}: {' '.join(str(error).split())}")
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        hint = ": free some space; complete checkpoints are untouched" if full else ""
        fail(f"atconv {command}: {' '.join(str(error).split())}{hint}")
    except KeyboardInterrupt:
        fail(f"atconv {command}: interrupted", code=130)


def fail(line: str, code: int = 2) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code)


def train(arguments: Sequence[str]) -> None:
    from atconv.tasks.classification import config

    def start(options: dict[str, Any], folder: str | None, chosen: set[str]) -> None:
        from atconv.tasks.classification.train import train

        train(config.ClassificationConfig(**options), folder, chosen=chosen)

    def proceed(folder: str) -> None:
        from atconv.tasks.classification.train import resume

        resume(folder)

    _train("atconv train", arguments, config, config.ClassificationConfig, start, proceed)


def evaluate(arguments: Sequence[str]) -> None:
    from atconv.tasks.classification.evaluation import evaluate as evaluate_run

    parser = Parser(prog="atconv evaluate", description="Evaluate a run's best model on DATA.")
    parser.add_argument("run", type=str, help="the run's folder")
    parser.add_argument("data", type=str, help="DATA as in training")
    parser.add_function_arguments(evaluate_run, as_group=False, skip={"run", "data", "console"})
    evaluate_run(**parser.parse_args(list(arguments)).as_dict())


def predict(arguments: Sequence[str]) -> None:
    from atconv.data.images import find_images
    from atconv.tasks.classification.prediction import Prediction
    from atconv.tasks.classification.prediction import predict as predict_images

    parser = Parser(prog="atconv predict", description="Classify pictures with a run's best model.")
    parser.add_argument("run", type=str, help="the run's folder")
    parser.add_argument("images", type=str, nargs="+", help="picture files, folders or globs")
    parser.add_argument("--top", type=int, default=5, help="classes shown for each picture")
    parser.add_argument(
        "--device", type=Literal["auto", "cpu", "cuda", "mps"], default="auto", help="where to run"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--csv", action="store_true", help="print CSV")
    options = parser.parse_args(list(arguments))
    found = list(predict_images(options.run, find_images(options.images), options.top, device=options.device))
    bad = [p for p in found if p.error is not None]
    good = [p for p in found if p.error is None]

    def cells(p: Prediction) -> list[str]:
        return [f"{c} {100 * q:.1f} %" for c, q in zip(p.classes, p.probabilities, strict=True)]

    if options.json:
        print(json.dumps([vars(p) for p in found], indent=1, ensure_ascii=False))
    elif options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "probability"])
        for p in good:
            for rank, (c, q) in enumerate(zip(p.classes, p.probabilities, strict=True), 1):
                writer.writerow([p.image, rank, c, f"{q:.6f}"])
    elif good:
        titles = ["image", *(str(i + 1) for i in range(len(good[0].classes)))]
        plain_console().print(
            make_table(f"{len(good)} pictures", titles, [[p.image, *cells(p)] for p in good], len(titles))
        )
    for p in bad:
        print(f"atconv predict: {p.error}", file=sys.stderr)
    if not good:
        fail("atconv predict: none of the pictures could be read")


def models(arguments: Sequence[str]) -> None:
    import torch

    from atconv.models.attnet import PUBLISHED_TOP1, VARIANTS, AttNet

    Parser(prog="atconv models", description="The AttNet family.").parse_args(list(arguments))
    rows = []
    for name in VARIANTS:
        with torch.device("meta"):
            model = AttNet(**VARIANTS[name])
        count = sum(p.numel() for p in model.parameters())
        published = PUBLISHED_TOP1.get(name)
        top1 = "–" if published is None else f"{published:.1f} %"
        rows.append((name, f"{count:,}", f"{model.macs(224, 224) / 1e9:.3f}", "3 × 224 × 224", top1))
    console = plain_console()
    console.print(
        make_table("AttNet", ("model", "parameters", "GMACs", "input", "ImageNet-1K top-1, published"), rows)
    )
    console.print(
        "GMACs: multiply-adds of convolutions and linear layers for one image. Published: by the paper's "
        "authors (arXiv 2510.20092), not measured by this project.",
        soft_wrap=True,
    )


def data(arguments: Sequence[str]) -> None:
    from atconv.data.preparation import build_lmdb_from_folder

    if not arguments or arguments[0] != "lmdb":
        wanted = arguments[0] if arguments else "nothing"
        if wanted in ("-h", "--help"):
            print("usage: atconv data lmdb FOLDER OUT")
            return
        fail(f"atconv data: {wanted!r} is not among lmdb (see atconv data --help)")
    parser = Parser(prog="atconv data lmdb")
    parser.add_function_arguments(build_lmdb_from_folder, as_group=False, as_positional=True)
    print(f"written to {build_lmdb_from_folder(**parser.parse_args(list(arguments[1:])).as_dict())}")


def study(arguments: Sequence[str]) -> None:
    from atconv.tasks.classification.study import study as run_study

    parser = Parser(prog="atconv study", description="Compare token mixers, as a YAML file says.")
    parser.add_argument("config", type=str, help="the study's YAML file")
    parser.add_function_arguments(run_study, as_group=False, skip={"config", "console"})
    run_study(**parser.parse_args(list(arguments)).as_dict())


def analyze(arguments: Sequence[str]) -> None:
    from atconv.analysis.report import analyze as analyze_run

    parser = Parser(prog="atconv analyze", description="See what the operator of a run's model does.")
    parser.add_argument("run", type=str, help="the run's folder")
    parser.add_argument("images", type=str, nargs="+", help="picture files, folders or globs")
    parser.add_argument("--beside", type=str, nargs="+", default=[], help="other runs, shown beside it")
    parser.add_function_arguments(analyze_run, as_group=False, skip={"run", "images", "beside", "console"})
    analyze_run(**parser.parse_args(list(arguments)).as_dict())


def export(arguments: Sequence[str]) -> None:
    from atconv.tasks.classification.export import export as export_run

    parser = Parser(prog="atconv export", description="Write a run's best model as a file for elsewhere.")
    parser.add_argument("run", type=str, help="the run's folder")
    parser.add_function_arguments(export_run, as_group=False, skip={"run", "console"})
    export_run(**parser.parse_args(_bare(arguments, {"int8"})).as_dict())


def generate(arguments: Sequence[str]) -> None:
    tools = {
        "train": (_generate_train, "train a SiT on pictures or latents"),
        "sample": (_generate_sample, "draw samples: a grid, PNG files or an .npz file"),
        "evaluate": (_generate_evaluate, "FID or its kin, precision, recall, cost of samples"),
        "encode": (_generate_encode, "pictures to latents of a VAE, once"),
    }
    _dispatch("generate", tools, arguments)


def detect(arguments: Sequence[str]) -> None:
    tools = {
        "train": (_detect_train, "train a detector on boxes or masks in COCO's format"),
        "evaluate": (_detect_evaluate, "mean average precision, by class, and pictures"),
        "predict": (_detect_predict, "find objects in pictures, and draw them"),
    }
    _dispatch("detect", tools, arguments)


def _detect_train(arguments: Sequence[str]) -> None:
    from atconv.tasks.detection import config

    def start(options: dict[str, Any], folder: str | None, chosen: set[str]) -> None:
        from atconv.tasks.detection.train import train

        train(config.DetectionConfig(**options), folder, chosen=chosen)

    def proceed(folder: str) -> None:
        from atconv.tasks.detection.train import resume

        resume(folder)

    _train("atconv detect train", arguments, config, config.DetectionConfig, start, proceed, _BOXES)


def _detect_evaluate(arguments: Sequence[str]) -> None:
    from atconv.tasks.detection.evaluation import evaluate as evaluate_run

    _evaluate("detect", "Evaluate a detector's best model on DATA.", evaluate_run, arguments)


def _detect_predict(arguments: Sequence[str]) -> None:
    from atconv.tasks.detection.prediction import Detections
    from atconv.tasks.detection.prediction import predict as predict_images

    def rows(found: Detections) -> list[tuple[str, ...]]:
        each = zip(found.classes, found.scores, found.boxes, strict=True)
        told = [(f"{name} {score:.2f}", " ".join(f"{x:.0f}" for x in box)) for name, score, box in each]
        return [(found.image, *row) for row in told or [("nothing", "")]]

    heads = ("image", "found", "left top right bottom")
    _predict("detect", "Find objects in pictures.", predict_images, rows, heads, arguments)


def segment(arguments: Sequence[str]) -> None:
    tools = {
        "train": (_segment_train, "train a segmenter on pictures and masks"),
        "evaluate": (_segment_evaluate, "intersection over union, by class, and pictures"),
        "predict": (_segment_predict, "a class for every pixel of pictures, drawn"),
    }
    _dispatch("segment", tools, arguments)


def _segment_train(arguments: Sequence[str]) -> None:
    from atconv.tasks.segmentation import config

    def start(options: dict[str, Any], folder: str | None, chosen: set[str]) -> None:
        from atconv.tasks.segmentation.train import train

        train(config.SegmentationConfig(**options), folder, chosen=chosen)

    def proceed(folder: str) -> None:
        from atconv.tasks.segmentation.train import resume

        resume(folder)

    _train("atconv segment train", arguments, config, config.SegmentationConfig, start, proceed, _MASKS)


def _segment_evaluate(arguments: Sequence[str]) -> None:
    from atconv.tasks.segmentation.evaluation import evaluate as evaluate_run

    _evaluate("segment", "Evaluate a segmenter's best model on DATA.", evaluate_run, arguments)


def _segment_predict(arguments: Sequence[str]) -> None:
    from atconv.tasks.segmentation.prediction import Segments
    from atconv.tasks.segmentation.prediction import predict as predict_images

    def rows(found: Segments) -> list[tuple[str, ...]]:
        told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found.shares.items())
        return [(found.image, told)]

    heads = ("image", "share of the picture")
    _predict("segment", "Segment pictures.", predict_images, rows, heads, arguments)


def _evaluate(command: str, description: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Parse the options of a dense task's evaluation, and evaluate."""
    parser = Parser(prog=f"atconv {command} evaluate", description=description)
    parser.add_argument("run", type=str, help="the run's folder")
    parser.add_argument("data", type=str, help="DATA as in training")
    parser.add_function_arguments(function, as_group=False, skip={"run", "data", "console"})
    function(**parser.parse_args(list(arguments)).as_dict())


def _predict(
    command: str,
    description: str,
    function: Callable[..., Any],
    rows: Callable[[Any], list[tuple[str, ...]]],
    heads: tuple[str, ...],
    arguments: Sequence[str],
) -> None:
    """Parse the options of a dense task's prediction, and print what it finds."""
    from atconv.data.images import find_images

    parser = Parser(prog=f"atconv {command} predict", description=description)
    parser.add_argument("run", type=str, help="the run's folder")
    parser.add_argument("images", type=str, nargs="+", help="picture files, folders or globs")
    parser.add_function_arguments(function, as_group=False, skip={"run", "images"})
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(list(arguments)).as_dict()
    as_json, images = options.pop("json"), find_images(options.pop("images"))
    found = list(track(function(images=images, **options), Console(stderr=True), "predicting", len(images)))
    good = [one for one in found if one.error is None]
    if as_json:
        print(json.dumps([vars(one) for one in found], indent=1, ensure_ascii=False))
    elif good:
        cells = [row for one in good for row in rows(one)]
        plain_console().print(make_table(f"{len(good)} pictures", heads, cells, len(heads)))
        print(f"drawn in {Path(good[0].picture).parent}")
    for one in found:
        if one.error is not None:
            print(f"atconv {command} predict: {one.error}", file=sys.stderr)
    if not good:
        fail(f"atconv {command} predict: none of the pictures could be read")


def _dispatch(
    command: str, tools: Mapping[str, tuple[Callable[[Sequence[str]], None], str]], arguments: Sequence[str]
) -> None:
    """Run one of a command's tools."""
    if not arguments or arguments[0] not in tools:
        wanted = arguments[0] if arguments else "nothing"
        if wanted in ("-h", "--help"):
            print(f"usage: atconv {command} COMMAND ...\n")
            print("\n".join(f"  {name:<9} {text}" for name, (_, text) in tools.items()))
            return
        fail(f"atconv {command}: {wanted!r} is not among {', '.join(tools)} (see atconv {command} --help)")
    tools[arguments[0]][0](arguments[1:])


def _generate_train(arguments: Sequence[str]) -> None:
    from atconv.tasks.generation import config

    def start(options: dict[str, Any], folder: str | None, chosen: set[str]) -> None:
        from atconv.tasks.generation.train import train

        train(config.GenerationConfig(**options), folder, chosen=chosen)

    def proceed(folder: str) -> None:
        from atconv.tasks.generation.train import resume

        resume(folder)

    _train("atconv generate train", arguments, config, config.GenerationConfig, start, proceed)


def _generate_sample(arguments: Sequence[str]) -> None:
    from atconv.diffusion.samplers import SamplerConfig
    from atconv.tasks.generation.samples import sample_run

    parser = Parser(prog="atconv generate sample", description="Draw samples from a generation run.")
    parser.add_argument("run", type=str, help="the run's folder")
    parser.add_class_arguments(SamplerConfig, as_group=False)
    parser.add_function_arguments(sample_run, as_group=False, skip={"run", "options", "console"})
    given = parser.parse_args(list(arguments)).as_dict()
    options = {name: given.pop(name) for name in _field_names(SamplerConfig)}
    sample_run(given.pop("run"), options=SamplerConfig(**options), **given)


def _generate_evaluate(arguments: Sequence[str]) -> None:
    from atconv.diffusion.samplers import SamplerConfig
    from atconv.tasks.generation.evaluation import evaluate as evaluate_samples

    parser = Parser(prog="atconv generate evaluate", description="Compare samples with real images.")
    parser.add_argument("samples", type=str, help="a generation run, an .npz file or a folder of samples")
    parser.add_argument("data", type=str, help="DATA as in training, or an .npz file of real images")
    parser.add_class_arguments(SamplerConfig, as_group=False)
    parser.add_function_arguments(
        evaluate_samples, as_group=False, skip={"samples", "data", "options", "console"}
    )
    given = parser.parse_args(_bare(arguments, {"copies"})).as_dict()
    options = {name: given.pop(name) for name in _field_names(SamplerConfig)}
    evaluate_samples(options=SamplerConfig(**options), **given)


def _generate_encode(arguments: Sequence[str]) -> None:
    from atconv.tasks.generation.latents import encode

    parser = Parser(
        prog="atconv generate encode", description="Encode the pictures of DATA with a VAE, to train on."
    )
    parser.add_argument("data", type=str, help="DATA as in training")
    parser.add_function_arguments(encode, as_group=False, skip={"data", "console"})
    encode(**parser.parse_args(list(arguments)).as_dict())


def _train(
    prog: str,
    arguments: Sequence[str],
    recipes: Any,
    kind: type,
    start: Callable[[dict[str, Any], str | None, set[str]], None],
    proceed: Callable[[str], None],
    data: str = _DATA,
) -> None:
    """Parse the options of a training command. `recipes` is the task's config module."""
    if any(a.split("=")[0] == "--resume" for a in arguments):
        proceed(_resumed_folder(prog, arguments))
        return
    parser = Parser(
        prog=prog,
        usage=f"{prog} DATA [--config RECIPE] [--model NAME] [--out FOLDER] [--OPTION VALUE ...]\n"
        f"       {prog} --resume FOLDER",
        description=f"DATA is {data}. RECIPE is a YAML file or one of "
        f"{', '.join(recipes.recipe_names())} (default: {recipes.DEFAULT_RECIPE}).",
        epilog="--resume FOLDER continues an interrupted run exactly, as it was configured.",
    )
    parser.add_argument("--config", action="config", help="recipe: a YAML file or a recipe's name")
    parser.add_argument("--out", type=str | None, help="folder of the run (default: runs/DATA-MODEL)")
    parser.add_class_arguments(kind, as_group=False)
    given, rest = _take_data(arguments)
    rest = _switched_on(rest, kind)
    chosen = {a[2:].split("=")[0] for a in rest if a.startswith("--")}
    if "config" not in chosen:
        parser.set_defaults(yaml.safe_load(recipes.recipe_path(recipes.DEFAULT_RECIPE).read_text()))
    options = parser.parse_args(_recipes_first(rest, recipes.recipe_path)).as_dict()
    options.pop("config")
    folder = options.pop("out")
    if given is not None:
        options["data"] = given
    if not options.get("data"):
        parser.error(f"DATA is missing: {data}")
    start(options, folder, chosen)


def _resumed_folder(prog: str, arguments: Sequence[str]) -> str:
    """The folder after --resume, which must stand alone."""
    given = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--resume=") else [a])]
    folder = given[given.index("--resume") + 1 :][:1]
    others = [a for a in given if a not in ("--resume", *folder)]
    if not folder or others:
        told = f", got {' '.join(others)} too: a run goes on as it began" if others else ""
        fail(f"{prog}: --resume takes a run's folder and nothing else{told}")
    return folder[0]


def _field_names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _underscored(argument: str) -> str:
    """--batch-size is --batch_size."""
    match = re.match(r"--[a-z][a-z0-9-]*", argument)
    return argument if match is None else "--" + match[0][2:].replace("-", "_") + argument[match.end() :]


def _take_data(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The leading positional argument, and the rest."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def _switched_on(arguments: Sequence[str], kind: type) -> list[str]:
    """--compile is --compile=true, for every field of `kind` that is true or false."""
    return _bare(arguments, {name for name, hint in get_type_hints(kind).items() if hint is bool})


def _bare(arguments: Sequence[str], names: set[str]) -> list[str]:
    """--NAME alone is --NAME=true."""
    switches = {f"--{name}" for name in names}
    return [
        f"{argument}=true" if argument in switches and after.startswith("-") else argument
        for argument, after in pairwise([*arguments, "--"])
    ]


def _recipes_first(arguments: Sequence[str], recipe_path: Callable[[str], Path]) -> list[str]:
    """Recipes' names become files, and come before all other options, which so win wherever they stand."""
    found: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        value = value or (next(rest, "") if name == "--config" else "")
        if name == "--config" and value:
            found.append(f"--config={recipe_path(value)}")
        else:
            others.append(argument)
    return found + others


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "models": models,
    "data": data,
    "study": study,
    "analyze": analyze,
    "export": export,
    "generate": generate,
    "detect": detect,
    "segment": segment,
}

if __name__ == "__main__":
    from atconv_command import main

    main()
