"""A study: every run once, paired differences, and a table of what is there."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from filelock import FileLock

from atconv import load
from atconv.engine import distributed
from atconv.engine.recipes import continued_config, write_config
from atconv.engine.run import Run
from atconv.engine.trainer import Trainer
from atconv.io import read_rows
from atconv.tasks import get_task, train_or_resume, training
from atconv.tasks.classification.study import Study, prepare_sweep, read_study, study
from atconv.tasks.classification.study_report import read_results, report_study, summarize
from atconv.tasks.common.sweep import Job
from support.tiny import reset_accelerate, tiny_config
from support.tiny_study import TWO, result, study_file, write_results


def run_study(described: Study, out: Path) -> None:
    prepare_sweep(described, out, train_or_resume).run(described.jobs)


def test_every_run_is_made_once_seed_by_seed(tmp_path: Path) -> None:
    two_mixers = read_study(study_file(tmp_path / "study.yaml"))
    made: list[Path] = []
    train = training.train

    def interrupted_once(config: Any, run: Path) -> Path:
        reset_accelerate()
        made.append(run)
        if len(made) == 2:
            raise KeyboardInterrupt
        return train(config, run)

    with mock.patch.object(training, "train", interrupted_once):
        with pytest.raises(KeyboardInterrupt):
            run_study(two_mixers, tmp_path)
        assert len(read_rows(tmp_path / "results.csv")) == 1
        run_study(two_mixers, tmp_path)
    assert [run.name for run in made] == ["ATConv-0", "pooling-0", "pooling-0", "ATConv-1"]
    rows, results = read_rows(tmp_path / "results.csv"), read_results(tmp_path / "results.csv")
    assert [(each.variant, each.seed) for each in results] == [("ATConv", 0), ("pooling", 0), ("ATConv", 1)]
    assert [(row["device"], row["precision"]) for row in rows] == [("cpu", "fp32")] * 3
    for each in results:
        run = tmp_path / "runs" / f"{each.variant}-{each.seed}"
        assert each.top1 == json.loads((run / "metrics.json").read_text())["top1"]
        model: Any = load(run).model
        assert each.parameters == sum(p.numel() for p in model.parameters())
        assert each.macs == model.macs(two_mixers.recipe.image_size, two_mixers.recipe.image_size)
        assert each.dims == "8 16 24 32"


def test_processes_share_the_runs_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_mixers, made = read_study(study_file(tmp_path / "study.yaml")), []

    def noting(config: Any, run: Path) -> None:
        made.append(run.name)
        run.mkdir(parents=True)
        (run / "metrics.json").write_text('{"top1": 90}')

    with mock.patch.object(training, "train", noting):
        (tmp_path / "runs").mkdir()
        with FileLock(tmp_path / "runs" / "ATConv-0.lock"), caplog.at_level(logging.INFO):
            run_study(two_mixers, tmp_path)
            assert made == ["pooling-0", "ATConv-1"]
            assert "1 of the runs were left to other processes" in caplog.text
        run_study(two_mixers, tmp_path)
    assert made == ["pooling-0", "ATConv-1", "ATConv-0"]


def test_the_report_has_means_spreads_and_intervals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_mixers = read_study(study_file(tmp_path / "study.yaml"))
    tops = {"pooling": [89.0, 90.0, 94.0], "ATConv": [90.0, 92.0, 94.0]}
    results = [result(name, seed, top) for name, values in tops.items() for seed, top in enumerate(values)]
    write_results(tmp_path / "results.csv", results)
    seconds = {"ms to train": {"pooling": "17"}}
    with caplog.at_level(logging.INFO):
        report_study(tmp_path, two_mixers.variants, two_mixers.reference, seconds)
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert all(f" {cell}" in caplog.text for cell in ("91.00 ± 2.65", "-1.00 ± 2.48"))
    reference, other = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert reference == ["ATConv", "3", "92.00 ± 2.00", "", "1,234", "5.6", ""]
    # Differences −1, −2, 0: mean −1, deviation 1; t(0.975, 2 degrees of freedom) = 4.303 over √3.
    assert other == ["pooling", "3", "91.00 ± 2.65", "-1.00 ± 2.48", "1,234", "5.6", "17"]
    assert len({line.count("|") for line in lines}) == 1


def test_an_interrupted_run_is_continued(tmp_path: Path) -> None:
    one_mixer = study_file(tmp_path / "study.yaml", seeds=1, variants={"ATConv": {"token_mixer": "atconv"}})
    described = read_study(one_mixer)
    reset_accelerate()
    training.train(described.config(described.variants["ATConv"]), tmp_path / "runs" / "ATConv-0")
    reset_accelerate()
    with mock.patch.object(training, "train", side_effect=AssertionError("trained again")):
        run_study(described, tmp_path)
    assert len(read_rows(tmp_path / "results.csv")) == 1


def test_a_run_goes_on_where_it_is_asked_for_and_as_it_was_begun(tmp_path: Path) -> None:
    config = replace(tiny_config(), epochs=2)
    reset_accelerate()
    with mock.patch.object(Trainer, "fit", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        train_or_resume(config, tmp_path / "run")
    reset_accelerate()
    make = distributed.make_accelerator
    with mock.patch.object(distributed, "make_accelerator", side_effect=make) as made:
        train_or_resume(replace(config, workers=1), tmp_path / "run")
    assert [call.args[0].workers for call in made.call_args_list] == [1]
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 2
    with pytest.raises(ValueError, match=r"run was begun with another recipe \(lr: .*\): name another"):
        train_or_resume(replace(config, lr=2 * config.lr), tmp_path / "run")


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation", "generation"])
def test_a_run_of_every_task_is_of_the_recipe_it_was_begun_with(task: str, tmp_path: Path) -> None:
    config = get_task(task).make_config("small", data="images", betas=(0.8, 0.9), workers=2)
    run = Run.create(tmp_path / "run")
    write_config(config, task, run)
    elsewhere = replace(config, workers=0, device="cuda")
    continued = continued_config(run, elsewhere, task)
    assert (continued.workers, continued.device) == (0, "cuda")
    assert asdict(continued) == asdict(elsewhere)


@pytest.mark.parametrize(("asked", "kept"), [("find_lr", "lr"), ("auto_find_batch_size", "batch_size")])
def test_what_a_search_found_is_no_other_recipe(tmp_path: Path, asked: str, kept: str) -> None:
    config = tiny_config()
    found = replace(config, **{kept: 2 * getattr(config, kept)})
    run = Run.create(tmp_path / "run")
    write_config(found, "classification", run)
    assert continued_config(run, replace(config, **{asked: True}), "classification") == found
    with pytest.raises(ValueError, match=f"{kept}: "):
        continued_config(run, config, "classification")


def test_a_run_that_was_killed_before_its_config_was_written_starts_again(tmp_path: Path) -> None:
    described = read_study(study_file(tmp_path / "study.yaml", seeds=1, variants=TWO, reference="pooling"))
    left = tmp_path / "runs" / "pooling-0" / ".writing-config.yaml"
    left.parent.mkdir(parents=True)
    left.write_text("data: dig")
    reset_accelerate()
    prepare_sweep(described, tmp_path, train_or_resume).run([Job("pooling", 0)])
    assert len(read_rows(tmp_path / "results.csv")) == 1
    assert not left.exists()


def test_differences_are_paired_by_seed() -> None:
    tops = {("a", 0): 90.0, ("a", 1): 80.0, ("a", 2): 70.0, ("b", 0): 91.0, ("b", 1): 83.0, ("c", 2): 60.0}
    a, b, c = summarize([result(name, seed, top) for (name, seed), top in tops.items()], "a")
    assert (a.seeds, a.mean, a.deviation, a.difference) == (3, 80, 10, None)
    assert b.difference == pytest.approx(2)
    # Two differences, 1 and 3: t(0.975, 1 degree of freedom) = 12.706 times √2 / √2.
    assert b.half_width == pytest.approx(12.706, rel=1e-4)
    assert (c.seeds, c.deviation, c.difference, c.half_width) == (1, 0, -10, None)
    assert math.isclose(c.mean, 60)


def test_a_table_holds_rows_of_one_recipe(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"

    def check(**changes: Any) -> Study:
        """All that a study does before its first run."""
        described = read_study(study_file(path, **changes))
        prepare_sweep(described, tmp_path, train_or_resume)
        return described

    check(variants={"ATConv": {"token_mixer": "pooling"}})  # no run has begun: nothing to compare with
    described = check()
    for job in described.jobs:
        config = described.config(described.variants[job.variant], job.seed)
        write_config(config, "classification", Run.create(tmp_path / "runs" / job.folder))
    check(seeds=3)
    check(variants={"ATConv": {"token_mixer": "atconv"}, "identity": {"token_mixer": "identity"}})
    recipe = described.recipe
    given = {
        name: getattr(recipe, name) for name in ("data", "model", "model_args", "image_size", "in_chans")
    }
    with pytest.raises(ValueError, match=r"begun with another recipe .*epochs: 1 → 30,.*name another folder"):
        check(recipe=given)
    with pytest.raises(ValueError, match=r"ATConv-0 was begun with another recipe .*kernel_size"):
        check(variants={"ATConv": {"token_mixer": "atconv", "mixer_args": {"kernel_size": 5}}})
    with pytest.raises(ValueError, match=r"pooling-0 was begun with another recipe"):
        check(variants={"ATConv": {"token_mixer": "atconv"}, "pooling": {"token_mixer": "identity"}})
    dims = {"token_mixer": "pooling", "dims": [8, 8, 8, 8]}
    with pytest.raises(ValueError, match=r"pooling-0 was begun with another recipe .*8, 8, 8, 8"):
        check(variants={"ATConv": {"token_mixer": "atconv"}, "pooling": dims})
    check()
    elsewhere = yaml.safe_load(path.read_text())["recipe"]
    check(recipe=elsewhere | {"workers": 1})  # where a run is made does not change what is made


def test_rows_of_one_table_have_one_precision(tmp_path: Path) -> None:
    dims = {name: {**options, "dims": [8, 8, 8, 8]} for name, options in TWO.items()}
    two_mixers = read_study(study_file(tmp_path / "study.yaml", variants=dims))
    write_results(tmp_path / "results.csv", [result("ATConv", 0, 90.0)], "bf16")
    with pytest.raises(ValueError, match="rows trained in bf16, this machine trains in fp32"):
        run_study(two_mixers, tmp_path)


def test_a_broken_configuration_of_a_run_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "ATConv-0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{")
    with pytest.raises(ValueError, match=r"ATConv-0/config\.yaml"):
        run_study(read_study(study_file(tmp_path / "study.yaml")), tmp_path)


HEADER = "variant,seed,top1,parameters,macs,seconds,dims,precision"
ROW = "ATConv,0,90.5,10,20,30,8 8 8 8,fp32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n{ROW}\n{ROW}\n", "line 3: ATConv, seed 0 has a row already"),
        (f"{HEADER}\n{ROW}\nATConv,1,abc,10,20,30,8,fp32\n", "line 3 is not a row of a study: .*abc"),
        (f"{HEADER}\n{ROW}\nATConv,1,90.5,10\n", "line 3 is not a row of a study"),
        ("what,is\nthis,?\n", "line 2 is not a row of a study: KeyError"),
    ],
)
def test_broken_and_duplicate_rows_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        report_study(tmp_path, ["ATConv"], "ATConv")


def test_variants_may_have_dots_in_their_names(tmp_path: Path) -> None:
    variants = {name: {"token_mixer": "pooling"} for name in ("v1.5", "v1.7")}
    described = read_study(study_file(tmp_path / "study.yaml", seeds=1, reference="v1.5", variants=variants))
    began: list[str] = []

    def train(config: Any, run: Path) -> None:
        began.append(run.name)
        raise FloatingPointError("enough")

    (tmp_path / "runs").mkdir()
    with (
        FileLock(tmp_path / "runs" / "v1.5-0.lock"),
        mock.patch.object(training, "train", train),
        pytest.raises(FloatingPointError),
    ):
        run_study(described, tmp_path)
    assert began == ["v1.7-0"]


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path: Path) -> None:
    described, began = read_study(study_file(tmp_path / "study.yaml", seeds=1, variants=TWO)), []

    def train(config: Any, run: Path) -> Path:
        began.append(run.name)
        raise FloatingPointError("the loss is nan")

    with (
        mock.patch.object(training, "train", train),
        pytest.raises(
            FloatingPointError, match=r"2 runs have no row\. ATConv, seed 0: the loss is nan; pooling"
        ),
    ):
        run_study(described, tmp_path / "out")
    assert began == ["ATConv-0", "pooling-0"]


def test_mixers_may_differ_by_stage(tmp_path: Path) -> None:
    mixed = {
        "token_mixer": ["atconv", "atconv", "attention", "attention"],
        "mixer_args": [{"kernel_size": 5}, {}, {}, {"head_dim": 16}],
    }
    described = read_study(
        study_file(tmp_path / "study.yaml", variants={"ATConv": {"token_mixer": "atconv"}, "m": mixed})
    )
    model: Any = described.build(described.variants["m"])
    mixers = [stage.blocks[0].token_mixer for stage in model.stages]
    assert [type(mixer).__name__ for mixer in mixers] == ["ATConv2d"] * 2 + ["SelfAttention"] * 2
    assert mixers[0].kernel_size == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(reference="attention"), "the reference 'attention' is not among the variants"),
        (dict(variants={"x": {}}), "does not describe a study"),
        (dict(variants=[]), "does not describe a study"),
        (dict(recipe={"color": 3}), "the recipe has no color"),
        (dict(seed=3), "the study has no seed; there are recipe, reference, seeds, variants"),
        (dict(seeds="three"), "must have 1 seed or more, a whole number, got three"),
        (dict(seeds=0), "must have 1 seed or more"),
        (
            dict(variants={"K5": {"token_mixer": "atconv", "mixer_arg": {}}}),
            "the variant 'K5' has no mixer_arg",
        ),
        (dict(variants={"x": {"token_mixer": "atconf"}}), "did you mean atconv"),
        (dict(recipe={"data": "digits", "model": "resnet18"}), "takes a model among attnet_xxs"),
        (dict(recipe={"data": "digits", "model_args": None}), "model_args must be a mapping"),
        (
            dict(reference="a b", variants={n: {"token_mixer": "atconv"} for n in ("a b", "a-b")}),
            "two variants share a folder",
        ),
    ],
)
def test_files_that_describe_no_study_are_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(study_file(tmp_path / "study.yaml", **changes))


def test_a_report_of_nothing_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows yet"):
        study(
            str(study_file(tmp_path / "study.yaml")), str(tmp_path / "out"), "report", train=train_or_resume
        )
