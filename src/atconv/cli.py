"""The commands, made from the registry of tasks. Each parses its options and calls one typed function."""

from __future__ import annotations

import argparse
import csv
import difflib
import errno
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from atconv.ops.allocator import tune_allocator
from atconv_command import TOOLS

try:
    import yaml

    from atconv.command_line import Parser, add_function, add_options
    from atconv.engine.options import check_value
    from atconv.engine.reading import read_yaml
    from atconv.tasks import TASKS, TaskSpec, get_task, load, resume, task_of, train, train_or_resume
except ImportError as error:
    print(f"atconv: {error.name} is missing: pip install 'atconv[train]'", file=sys.stderr)
    raise SystemExit(2) from None

__all__ = ["run"]

_EXTRAS = {"generate": "generation", "export": "train,export", "detect": "dense", "segment": "dense"}
_DEVICES = ("auto", "cpu", "cuda", "mps")
Command = Callable[[str, Sequence[str]], None]
"""(the command as it was called, its arguments)"""


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one command. Bad input ends with one line on stderr and exit code 2."""
    tune_allocator()
    _log_to_terminal()
    _quiet_libraries()
    if any(argument == "" or re.fullmatch(r"--[a-z-]+=", argument) for argument in arguments):
        fail(f"atconv {command}: an argument is empty: give a value, or leave it out (. is this folder)")
    try:
        _commands()[command](f"atconv {command}", list(arguments))
    except Exception as error:
        if os.environ.get("ATCONV_DEBUG", "0") != "0":  # show tracebacks
            raise
        _explain(command, error)
    except KeyboardInterrupt:
        fail(f"atconv {command}: interrupted", code=130)


def _explain(command: str, error: Exception) -> None:
    """End with one line that says what was wrong, if it is the kind of error that users can do something
    about."""
    line = f"atconv {command}: {' '.join(str(error).split())}{_command_for(error)}"
    if isinstance(error, ImportError):
        fail(f"{line}: pip install 'atconv[{_EXTRAS.get(command.split()[0], 'train')}]'")
    if isinstance(error, BrokenPipeError):  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename:
        fail(f"atconv {command}: {error.filename} is a file where a folder is needed: give another --out")
    elif isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        fail(line + (": free some space; complete checkpoints are untouched" if full else ""))
    elif isinstance(error, (ValueError, TypeError, FileNotFoundError, FloatingPointError, RuntimeError)):
        fail(line)
    else:
        raise error


def _command_for(error: Exception) -> str:
    """The command that fits DATA which is recognized as something else than was needed."""
    if "timm cannot open torch/fashion_mnist" in str(error):
        return " (python -m studies.datasets.fashion_mnist ROOT, in a checkout, unpacks Debian's files)"
    formats = sys.modules.get("atconv.data.formats")  # where it is not loaded, the error is not from there
    if formats is None or not isinstance(error, formats.UnfitData):
        return ""
    found, needed = error.found, error.needed
    if found.annotation in (None, needed):
        return ""
    command = {"labels": "train", "boxes": "detect train", "masks": "segment train"}[found.annotation]
    alone = "; to use the images alone, give their folder" if needed == "labels" else ""
    return f"{', and' if found.advice else ':'} use `atconv {command}`{alone}"


def fail(line: str, code: int = 2) -> NoReturn:
    print(_printable(line), file=sys.stderr)
    raise SystemExit(code)


def _printable(text: str) -> str:
    """Text whose control characters, such as those in names of files, are escaped."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)


class _TerminalHandler(logging.Handler):
    """Information to stdout, warnings to stderr, as they are. Looks both up at each line: bars redirect
    them."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno > logging.INFO else sys.stdout
        print(_printable(record.getMessage()), file=stream, flush=True)


def _quiet_libraries() -> None:
    """What libraries warn of is for developers, and stands in the way of the one line about bad input."""
    if os.environ.get("ATCONV_DEBUG", "0") == "0" and not sys.warnoptions:
        warnings.simplefilter("ignore")
        for name in ("torch", "timm", "accelerate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read when those are imported
            os.environ.setdefault(name, "error")


def _log_to_terminal() -> None:
    logger = logging.getLogger("atconv")
    for stream in (sys.stdout, sys.stderr):  # names of files and classes may not fit the locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    main_process = os.environ.get("RANK", "0") == "0"
    logger.setLevel(logging.INFO if main_process else logging.WARNING)
    if not any(isinstance(handler, _TerminalHandler) for handler in logger.handlers):
        logger.addHandler(_TerminalHandler())


def _train(spec: TaskSpec, prog: str, arguments: Sequence[str]) -> None:
    """Two stages, as timm's script has them: the recipe sets defaults, then options are parsed."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=prog, exit_on_error=False)
    first.add_argument("--resume", metavar="RUN", nargs="?", const="")
    first.add_argument("--config", metavar="RECIPE", action="append")
    try:
        early, rest = first.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        fail(f"{prog}: {error} (see {prog} --help)")
    if early.resume is not None:
        if not early.resume or early.config or rest:
            others = [*rest, *(early.config or [])]
            text = f", got {' '.join(others)} too: a run continues as it began" if others else ""
            fail(f"{prog}: --resume takes a run's folder and nothing else{text}")
        _check_task(spec, early.resume, "train --resume")
        resume(early.resume)
        return
    recipe: dict[str, Any] = {}
    for name in early.config or [spec.default_recipe]:
        recipe |= _read_recipe(spec, name)
    names = ", ".join(spec.recipe_names())
    parser = Parser(
        prog=prog,
        usage=f"{prog} DATA [--config RECIPE] [--out RUN] [--OPTION VALUE ...]\n       {prog} --resume RUN",
        description=f"DATA is {spec.data}. RECIPE is a YAML file or one of {names} (default: "
        f"{spec.default_recipe}). --resume continues an interrupted run exactly, as it was configured.",
        missing={"data": f"DATA is missing: give {spec.data}"},
    )
    parser.add_argument(
        "data",
        help=argparse.SUPPRESS,  # the description says it
        metavar="DATA",
        type=str,
        nargs="?" if recipe.get("data") or "--print-config" in rest else None,
    )
    parser.add_argument("--config", metavar="RECIPE", type=str, help="a YAML file or a recipe's name")
    parser.add_argument("--out", metavar="RUN", type=str, help="folder of the run (default: runs/DATA-MODEL)")
    parser.add_argument("--print-config", action="store_true", help="print the configuration and stop")
    add_options(parser, spec.config, skip={"data"}, everything="--help-all" in arguments)
    parser.set_defaults(recipe)
    options = parser.parse_args(rest).as_dict()
    chosen = set(parser.parse_args(rest, defaults=False).as_dict())
    options.pop("config")
    if "warmup_epochs" not in chosen and options["warmup_epochs"] > options["epochs"]:
        # A recipe's warm-up gives way to fewer epochs: it keeps its share of them.
        share = options["warmup_epochs"] / recipe.get("epochs", spec.config.epochs)
        options["warmup_epochs"] = round(share * options["epochs"], 3)
    folder, printed = options.pop("out"), options.pop("print_config")
    config = spec.config(**options | {"data": options["data"] or ""})
    if printed:
        print(yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False), end="")
        return
    train(config, folder, chosen=chosen)


def _read_recipe(spec: TaskSpec, name: str) -> dict[str, Any]:
    path = spec.recipe_path(name)
    recipe = read_yaml(path)
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {path} is not a mapping of options to values")
    task = recipe.pop("task", spec.name)
    if task != spec.name:
        raise ValueError(f"the recipe {path} is one of {task}, not of {spec.name}")
    known = get_type_hints(spec.config, include_extras=True)
    for option, value in recipe.items():
        if option in known:
            check_value(f"{option} in the recipe {path}", value, known[option])
        else:
            near = difflib.get_close_matches(str(option), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"the recipe {path} has an option {option} that {spec.name} does not{hint}")
    return recipe


def _evaluate(spec: TaskSpec, prog: str, arguments: Sequence[str]) -> None:
    from atconv.tasks.common.report import evaluate_run

    parser = Parser(prog=prog, description="Evaluate a run's best model on DATA; writes to RUN/evaluation/.")
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    parser.add_argument("data", metavar="DATA", type=str, help="DATA as in training")
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="where to run")
    add_function(parser, spec.predictor_class().evaluate, skip={"self", "data"})
    options = parser.parse_args(list(arguments)).as_dict()
    predictor = _open(spec, options.pop("run"), prog).to(options.pop("device"))
    evaluate_run(predictor, options.pop("data"), **options)


def _predict(spec: TaskSpec, prog: str, arguments: Sequence[str]) -> None:

    from atconv.data.images import find_images
    from atconv.engine.progress import progress
    from atconv.engine.tables import Table

    kind: Any = spec.predictor_class()
    parser = Parser(prog=prog, description="What a run's best model says of images.")
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    parser.add_argument("images", metavar="IMAGE", type=str, nargs="+", help="image files, folders or globs")
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="where to run")
    parser.add_argument("--json", action="store_true", help="print JSON, and no table")
    parser.add_argument("--csv", action="store_true", help="print CSV, and no table")
    if kind.draws:
        parser.add_argument("--out", metavar="FOLDER", type=str, help="folder to draw in (RUN/predictions)")
    add_function(parser, kind.infer, skip={"self", "images", "names"})
    options = parser.parse_args(list(arguments)).as_dict()
    folder, device, as_json, as_csv = (options.pop(name, None) for name in ("out", "device", "json", "csv"))
    if as_json and as_csv:
        fail(f"{prog}: --json and --csv exclude each other: give one of them")
    if folder is not None and Path(folder).is_file():
        fail(f"{prog}: --out {folder} is a file: give a folder")
    name, images = options.pop("run"), find_images(options.pop("images"))
    predictor = _open(spec, name, prog).to(device)
    out = Path(folder) if folder is not None else predictor.run.path / "predictions"
    shown = progress(predictor.predict(images, **options), "predicting", len(images))
    done = predictor.save_predictions(shown, out, protected=images) if kind.draws else list(shown)
    good = [result for result in done if result.error is None]
    if as_json:
        print(json.dumps([result.to_dict() for result in done], indent=1, ensure_ascii=False))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(kind.csv_columns)
        writer.writerows(row for result in good for row in result.csv_rows())
    elif good:
        rows = [row for result in good for row in result.rows()]
        columns = good[0].columns()
        print(_printable(str(Table(f"{len(good)} images", columns, rows, text_columns=len(columns)))))
        if kind.draws:
            print(f"drawn in {out}")
    for result in done:
        if result.error is not None:
            print(_printable(f"{prog}: {result.error}"), file=sys.stderr)
    if not good:
        fail(f"{prog}: none of the images could be read")


def _open(spec: TaskSpec, name: str, prog: str) -> Any:
    """A run of a task, for a command of that task."""
    _check_task(spec, name, prog.rpartition(" ")[2])
    return load(name)


def _check_task(spec: TaskSpec, name: str, tool: str) -> None:
    """Raise ValueError where a run is of another task than the command."""
    from atconv.engine.run import Run

    other = task_of(Run.open(name))
    if other.name != spec.name:
        tools = TOOLS.get(other.command)
        fitting = tool if tools is None or tool.split()[0] in tools else ""
        command = " ".join(part for part in ("atconv", other.command, fitting) if part)
        raise ValueError(f"{name} is a {other.name} run, not a {spec.name} run: use {command}")


def _models(prog: str, arguments: Sequence[str]) -> None:
    import torch

    from atconv.engine.tables import Table
    from atconv.models.attnet import VARIANTS, AttNet
    from atconv.models.published import PUBLISHED_TOP1

    Parser(prog=prog, description="The AttNet family.").parse_args(list(arguments))
    rows = []
    for name in VARIANTS:
        with torch.device("meta"):
            model = AttNet(**VARIANTS[name])
        count = sum(p.numel() for p in model.parameters())
        top1 = f"{PUBLISHED_TOP1[name]:.1f} %" if name in PUBLISHED_TOP1 else "–"
        rows.append((name, f"{count:,}", f"{model.macs(224, 224) / 1e9:.3f}", "3 × 224 × 224", top1))
    print(Table("AttNet", ("model", "parameters", "GMACs", "input", "ImageNet-1K top-1, published"), rows))
    print(
        "GMACs: multiply-adds of convolutions and linear layers for one image. Published: by the paper's "
        "authors (arXiv 2510.20092), not measured by this project."
    )


def _lmdb(prog: str, arguments: Sequence[str]) -> None:
    from atconv.data.pack import pack_folder

    parser = Parser(prog=prog, description="Pack an image folder, as it is, into one LMDB file.")
    parser.add_argument("folder", metavar="FOLDER", type=str, help="one folder a class")
    parser.add_argument("out", metavar="OUT", type=str, help="the file to write, such as train.lmdb")
    options = parser.parse_args(list(arguments))
    print(f"written to {pack_folder(Path(options.folder), Path(options.out))}")


def _study(prog: str, arguments: Sequence[str]) -> None:
    from atconv.tasks.classification.study import study

    parser = Parser(prog=prog, description="Compare token mixers on your data, as a YAML file says.")
    parser.add_argument("config", metavar="STUDY", type=str, help="the study's YAML file")
    add_function(parser, study, skip={"config", "train"})
    study(**parser.parse_args(list(arguments)).as_dict(), train=train_or_resume)


def _analyze(prog: str, arguments: Sequence[str]) -> None:
    from atconv.tasks.classification.analyze import analyze

    parser = Parser(prog=prog, description="See what the operator of a run's model does: a page of plots.")
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    parser.add_argument("images", metavar="IMAGE", type=str, nargs="+", help="image files, folders or globs")
    parser.add_argument(
        "--compare", metavar="RUN", type=str, nargs="+", default=[], help="other runs to compare with"
    )
    add_function(parser, analyze, skip={"run", "images", "compare"})
    analyze(**parser.parse_args(list(arguments)).as_dict())


def _export(prog: str, arguments: Sequence[str]) -> None:
    from atconv.tasks.classification.export import export

    parser = Parser(prog=prog, description="Write a run's best model as a file for elsewhere.")
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    add_function(parser, export, skip={"predictor"})
    options = parser.parse_args(list(arguments)).as_dict()
    report = load(options.pop("run")).export(**options)
    for table in report.tables():
        print(table)


def _sample(prog: str, arguments: Sequence[str]) -> None:
    from atconv.tasks.generation.commands import sample_run
    from atconv.tasks.generation.sampling import SamplerConfig

    parser = Parser(prog=prog, description="Sample images from a generation run.")
    parser.add_argument("run", metavar="RUN", type=str, help="the run's folder")
    add_options(parser, SamplerConfig)
    add_function(parser, sample_run, skip={"run", "options"})
    options = parser.parse_args(list(arguments)).as_dict()
    sampler = SamplerConfig(**{name: options.pop(name) for name in _names(SamplerConfig)})
    sample_run(options.pop("run"), options=sampler, **options)


def _evaluate_samples(prog: str, arguments: Sequence[str]) -> None:
    from atconv.tasks.generation.commands import evaluate_samples
    from atconv.tasks.generation.evaluation import evaluate
    from atconv.tasks.generation.sampling import SamplerConfig

    parser = Parser(prog=prog, description="Compare samples with real images.")
    parser.add_argument(
        "samples", metavar="SAMPLES", type=str, help="a generation run, an .npz file or a folder of samples"
    )
    parser.add_argument(
        "data", metavar="DATA", type=str, help="DATA as in training, or an .npz file of real images"
    )
    add_options(parser, SamplerConfig)
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="where models run")
    add_function(parser, evaluate, skip={"samples", "data", "options", "device"})
    options = parser.parse_args(list(arguments)).as_dict()
    sampler = SamplerConfig(**{name: options.pop(name) for name in _names(SamplerConfig)})
    evaluate_samples(options=sampler, **options)


def _names(config: type) -> list[str]:
    return [field.name for field in fields(config)]


def _encode(prog: str, arguments: Sequence[str]) -> None:
    from atconv.tasks.generation.encode import encode

    parser = Parser(prog=prog, description="Encode the images of DATA with a VAE, once, to train on.")
    parser.add_argument("data", metavar="DATA", type=str, help="DATA as in training")
    add_function(parser, encode, skip={"data"})
    encode(**parser.parse_args(list(arguments)).as_dict())


def _commands() -> dict[str, Command]:
    """All commands by name: those of every task, and the others."""
    commands: dict[str, Command] = {
        "models": _models,
        "data lmdb": _lmdb,
        "study": _study,
        "analyze": _analyze,
        "export": _export,
        "generate sample": _sample,
        "generate evaluate": _evaluate_samples,
        "generate encode": _encode,
    }
    tools = {"train": _train, "evaluate": _evaluate, "predict": _predict}
    for spec in map(get_task, TASKS):
        for name in spec.tools:
            commands[f"{spec.command} {name}".strip()] = partial(tools[name], spec)
    return commands
