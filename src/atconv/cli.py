"""The commands, made from the registry of tasks. Each parses its options and calls one typed function."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from atconv.command_line import Fill, Parser, add_function, add_options, add_positional
from atconv.engine.tables import Table
from atconv.error_lines import explain
from atconv.extras import name_missing_extra
from atconv.io import escape_controls, escape_row
from atconv.ops.allocator import tune_allocator
from atconv.tasks import TASKS, TaskSpec, get_task, load, open_run, task_of, train, train_or_resume
from atconv.tasks import resume as resume_run
from atconv.terminal import fail, log_to_terminal, quiet_libraries

__all__ = ["run"]

logger = logging.getLogger(__name__)

_DEVICES = ("auto", "cpu", "cuda", "mps")


Tools = Mapping[str, Mapping[str, str]]
"""one line of help for each command of each group"""


def run(arguments: Sequence[str], commands: Mapping[str, str], tools: Tools) -> None:
    """Run one command. Bad input ends with one line on stderr and exit code 2.

    Args:
        arguments: the command's name and what follows it.
        commands: one line of help for each command, those of `tools` among them.
        tools: those of groups.
    """
    tune_allocator()
    log_to_terminal()
    quiet_libraries()
    try:
        if any(argument == "" or re.fullmatch(r"--[a-z-]+=", argument) for argument in arguments):
            raise ValueError("an argument is empty: give a value, or leave it out (. is this folder)")
        with name_missing_extra():
            _parser(commands, tools).run(arguments)
    except Exception as error:
        if os.environ.get("ATCONV_DEBUG", "0") != "0":  # show tracebacks
            raise
        explain(_name(arguments, tools), error)
    except KeyboardInterrupt:
        fail(f"atconv {_name(arguments, tools)}: interrupted", code=130)


def _parser(commands: Mapping[str, str], tools: Tools) -> Parser:
    fills = _fills()
    root = Parser(prog="atconv")
    for name, text in commands.items():
        command = root.add_command(name, text, fills.get(name))
        for tool, text in tools.get(name, {}).items():
            command.add_command(tool, text, fills[f"{name} {tool}"])
    return root


def _name(arguments: Sequence[str], tools: Tools) -> str:
    """The name of a command in its arguments."""
    return " ".join(arguments[: 2 if arguments[0] in tools else 1])


def _train(spec: TaskSpec, parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
    """Two stages, as timm's script has them: the recipe sets defaults, then options are parsed."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", action="append")
    try:
        names = first.parse_known_args(arguments)[0].config or [spec.default_recipe]
    except argparse.ArgumentError as error:
        parser.error(str(error))
    recipe: dict[str, Any] = {}
    for name in names:
        recipe |= spec.read_recipe(name)
    shipped, prog = ", ".join(spec.recipe_names()), parser.prog
    usage = f"{prog} DATA [--config RECIPE] [--out RUN [--overwrite]] [--OPTION VALUE ...]"
    parser.usage = f"{usage}\n       {prog} --resume RUN [--epochs N] [--patience N]"
    parser.description = (
        f"DATA is {spec.data}. RECIPE is a YAML file or one of {shipped} (default: {spec.default_recipe}). "
        "--resume continues a run exactly, and with more --epochs trains it longer; --overwrite starts again."
    )
    add_positional(parser, "data", argparse.SUPPRESS, optional=True)  # the description says it
    parser.add_argument("--config", metavar="RECIPE", type=str, help="a YAML file or a recipe's name")
    parser.add_argument("--out", metavar="RUN", type=str, help="folder of the run (default: runs/DATA-MODEL)")
    parser.add_argument("--overwrite", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", metavar="RUN", type=str, help=argparse.SUPPRESS)
    parser.add_argument("--print-config", action="store_true", help="print the configuration and stop")
    add_options(parser, spec.config, skip={"data"}, everything="--help-all" in arguments)
    parser.set_defaults(recipe)
    return partial(_start, spec, parser, recipe)


def _start(
    spec: TaskSpec,
    parser: Parser,
    recipe: dict[str, Any],
    *,
    config: str | None,
    out: str | None,
    overwrite: bool,
    resume: str | None,
    print_config: bool,
    **options: Any,
) -> None:
    chosen = parser.chosen()
    if resume is not None:
        extends = {name: chosen[name] for name in ("epochs", "patience") if name in chosen}
        extra = [f"--{name} {value}" for name, value in chosen.items() if name not in ("resume", *extends)]
        if extra:
            text = f"got {' '.join(extra)} too: all else continues as it began"
            parser.error(f"--resume takes a run's folder, --epochs and --patience, {text}")
        _check_task(spec, resume, "train --resume")
        resume_run(resume, **extends)
        return
    if options["data"] is None and not print_config:
        parser.error(f"DATA is missing: give {spec.data}")
    changes = {name: options[name] for name in options.keys() & chosen}
    configuration = spec.config.from_recipe(recipe, **changes | {"data": options["data"] or ""})
    if print_config:
        print(yaml.safe_dump(json.loads(json.dumps(asdict(configuration))), sort_keys=False), end="")
        return
    train(configuration, out, overwrite=overwrite, chosen=set(chosen))


def _evaluate(spec: TaskSpec, parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
    parser.description = "Evaluate a run's best model on DATA; writes to RUN/evaluation/."
    add_positional(parser, "run", "the run's folder")
    add_positional(parser, "data", "DATA as in training; default: the run's own", optional=True)
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="where to run")
    add_function(parser, spec.predictor_class().evaluate, skip={"self", "data"})

    def evaluate(run: str, data: str | None, device: str, **options: Any) -> None:
        from atconv.tasks.common.report import evaluate_run

        _check_task(spec, run, "evaluate")
        evaluate_run(load(run).to(device), data, **options)

    return evaluate


def _predict(spec: TaskSpec, parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
    kind: Any = spec.predictor_class()
    parser.description = (
        "Predict images with a run's best model. A name of no file ends it before; files that cannot be read "
        "are named at the end and left out."
    )
    add_positional(parser, "run", "the run's folder")
    add_positional(parser, "images", "image files, folders or globs", several=True)
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="where to run")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON, and no table")
    parser.add_argument("--csv", dest="as_csv", action="store_true", help="print CSV, and no table")
    if kind.draws:
        parser.add_argument("--out", metavar="FOLDER", type=str, help="folder to draw in (RUN/predictions)")
    add_function(parser, kind.infer, skip={"self", "images", "names"})
    return partial(_print_predictions, spec, parser)


def _print_predictions(
    spec: TaskSpec,
    parser: Parser,
    *,
    run: str,
    images: list[str],
    device: str,
    as_json: bool,
    as_csv: bool,
    out: str | None = None,
    **options: Any,
) -> None:
    from atconv.data.listing import find_images
    from atconv.engine.progress import progress

    if as_json and as_csv:
        parser.error("--json and --csv exclude each other: give one of them")
    if out is not None and Path(out).is_file():
        parser.error(f"--out {out} is a file: give a folder")
    files = find_images(images)
    _check_task(spec, run, "predict")
    predictor: Any = load(run).to(device)
    folder = Path(out) if out is not None else predictor.run.path / "predictions"
    results = progress(predictor.predict(files, **options), "predicting", len(files))
    done = predictor.save_predictions(results, folder, protected=files) if predictor.draws else list(results)
    good = [result for result in done if result.error is None]
    if as_json:
        print(json.dumps([result.to_dict() for result in done], indent=1, ensure_ascii=False))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(predictor.csv_columns)
        writer.writerows(escape_row(row) for result in good for row in result.csv_rows())
    elif good:
        rows = [row for result in good for row in result.rows()]
        columns = good[0].columns()
        logger.info(Table(f"{len(good)} images", columns, rows, text_columns=len(columns)))
        if predictor.draws:
            logger.info("drawn in %s", folder)
    for result in done:
        if result.error is not None:
            logger.error("%s: %s", parser.prog, escape_controls(result.error))
    if not good:
        fail(f"{parser.prog}: none of the images could be read")


def _check_task(spec: TaskSpec, name: str, tool: str) -> None:
    """Raise ValueError where a run is of another task than the command."""
    other = task_of(open_run(name))
    if other.name == spec.name:
        return
    command = f"atconv {other.command}".strip()
    fitting = f" {tool}" if tool.split()[0] in other.tools else f" ({', '.join(other.tools)})"
    raise ValueError(f"{name} is a {other.name} run, not a {spec.name} run: use {command}{fitting}")


def _export(parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
    from atconv.tasks.common.export import export

    add_positional(parser, "run", "the run's folder")
    add_function(parser, export, skip={"exporter"})

    def write(run: str, **options: Any) -> None:
        for table in load(run).export(**options).tables():
            logger.info(table)

    return write


def _check_data(parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
    from atconv.tasks.check import CheckOptions, check

    unused = {"val_fraction", "test_fraction", "check_images", "max_skipped"}
    add_positional(parser, "data", "DATA as in training, of any task")
    add_options(parser, CheckOptions, skip={"data", *unused}, everything="--help-all" in arguments)
    add_function(parser, check, skip={"options"})

    def call(out: str | None, **options: Any) -> None:
        check(CheckOptions(**options), out)

    return call


def _sample(parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
    from atconv.tasks.generation.commands import sample_run
    from atconv.tasks.generation.sampling import SamplerConfig

    add_options(parser, SamplerConfig)
    add_function(parser, sample_run, ["run"], skip={"options"})
    return partial(_with_sampler, parser, SamplerConfig, sample_run)


def _evaluate_samples(parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
    from atconv.tasks.generation.commands import evaluate_samples
    from atconv.tasks.generation.evaluation import EvaluationConfig
    from atconv.tasks.generation.sampling import SamplerConfig

    parser.description = "Compare samples with real images."
    add_positional(parser, "samples", "a generation run, an .npz file or a folder of samples")
    text = "DATA as in training, or an .npz file of real images; default: the run's own"
    add_positional(parser, "data", text, optional=True)
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="where models run")
    add_options(parser, SamplerConfig)
    add_options(parser, EvaluationConfig)
    return partial(_with_sampler, parser, SamplerConfig, evaluate_samples)


def _with_sampler(parser: Parser, config: type, function: Callable[..., Any], **options: Any) -> None:
    run: str = options["run"] if "run" in options else options["samples"]
    if "run" in options or (Path(run) / "config.yaml").is_file():
        _check_task(get_task("generation"), run, parser.prog.rpartition(" ")[2])
    sampler = config(**{field.name: options.pop(field.name) for field in fields(config)})
    function(options=sampler, **options)


def _function(path: str, *positional: str, task: str = "", **fixed: Any) -> Fill:
    """A command that calls one function, whose parameters are its options.

    Args:
        path: of the function, which is imported when it is needed.
        positional: parameters that are given without a flag.
        task: that the `run` must be of.
        fixed: parameters that are no options.
    """

    def fill(parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
        function = resolve_name(path)
        add_function(parser, function, positional, skip=fixed)

        def call(**options: Any) -> None:
            if task:
                _check_task(get_task(task), options["run"], parser.prog.rpartition(" ")[2])
            function(**options, **fixed)

        return call

    return fill


def _fills() -> dict[str, Fill]:
    """What fills the parser of each command, by its name."""
    fills: dict[str, Fill] = {
        "models": _function("atconv.tasks.classification.family:list_models"),
        "data check": _check_data,
        "data lmdb": _function("atconv.data.sources.pack:pack_folder", "folder", "out"),
        "study": _function("atconv.tasks.classification.study:study", "config", train=train_or_resume),
        "analyze": _function(
            "atconv.tasks.classification.analyze:analyze", "run", "images", task="classification"
        ),
        "embed": _function("atconv.tasks.classification.embedding:embed", "model", "images"),
        "neighbors": _function("atconv.tasks.classification.neighbors:neighbors", "model", "images"),
        "probe": _function("atconv.tasks.classification.probing:probe", "model", "data"),
        "app": _function("atconv.app.server:app", "runs"),
        "export": _export,
        "publish": _function("atconv.tasks.publish:publish", "run"),
        "generate sample": _sample,
        "generate evaluate": _evaluate_samples,
        "generate encode": _function("atconv.tasks.generation.encode:encode", "data"),
    }
    tools = {"train": _train, "evaluate": _evaluate, "predict": _predict}
    for spec in map(get_task, TASKS):
        for name in tools.keys() & set(spec.tools):
            fills.setdefault(f"{spec.command} {name}".strip(), partial(tools[name], spec))
    return fills
