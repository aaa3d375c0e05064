"""A study: matched sizes, every run once, paired differences, and a table and figure of what is there."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image
from rich.console import Console
from scipy import stats

from atconv import load
from atconv.io import read_rows, write_rows
from atconv.tasks.classification.study import costs, running, study
from atconv.tasks.classification.study.costs import pilot_study, smallest_difference, time_study
from atconv.tasks.classification.study.plan import macs, read_study
from atconv.tasks.classification.study.plots import _side_by_side, compare_variants
from atconv.tasks.classification.study.report import report_study
from atconv.tasks.classification.study.results import Result, inhibition_of, read_results, write_results
from atconv.tasks.classification.study.running import run_study
from atconv.tasks.classification.study.summary import summarize
from support.tiny import reset_accelerate, tiny_config

QUIET = Console(quiet=True)


def described(path: Path, **changes: Any) -> Path:
    """A study of two mixers on digits that trains in seconds."""
    named = (
        "data",
        "model",
        "model_args",
        "image_size",
        "in_chans",
        "epochs",
        "batch_size",
        "base_batch_size",
    )
    loop = ("warmup_epochs", "workers", "device", "tracker")
    recipe = {name: getattr(tiny_config(), name) for name in named + loop}
    content = {
        "reference": "ATConv",
        "seeds": 2,
        "recipe": recipe,
        "variants": {
            "ATConv": {"token_mixer": "atconv"},
            "pooling": {"token_mixer": "pooling", "seeds": 1},
        },
    }
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def result(variant: str, seed: int, top1: float, seconds: float = 180) -> Result:
    return Result(variant, seed, top1, 1234, 5_600_000, seconds, "8 8 8 8", "fp32", None, None)


TWO = {"ATConv": {"token_mixer": "atconv"}, "pooling": {"token_mixer": "pooling"}}
MIXERS = {
    "ATConv": {"token_mixer": "atconv"},
    "attention": {"token_mixer": "attention"},
    "depthwise": {"token_mixer": "depthwise7"},
    "reduction": {"token_mixer": "spatial_reduction_attention"},
    "ATConv 7×7": {"token_mixer": "atconv", "mixer_args": {"kernel_size": 7}},
}


def test_parameters_agree_within_two_percent(tmp_path: Path) -> None:
    recipe = dict(data="digits", model="attnet_xxs", image_size=28, in_chans=1,
                  model_args=dict(stem_stride=2, depths=[1, 1, 3, 1], dims=[32, 64, 96, 128]))  # fmt: skip
    found = read_study(described(tmp_path / "study.yaml", recipe=recipe, variants=MIXERS))
    sizes = {v.name: found.parameters(v, found.widths[v.name]) for v in found.variants}
    assert found.widths["ATConv"] == [32, 64, 96, 128]
    for name, size in sizes.items():
        assert abs(size / sizes["ATConv"] - 1) <= 0.02, name
    config = found.config(found.variants[1], seed=3)
    assert config.seed == 3
    assert config.model_args["token_mixer"] == "attention"
    assert config.model_args["depths"] == [1, 1, 3, 1]


def test_every_run_is_made_once_seed_by_seed(tmp_path: Path) -> None:
    found = read_study(described(tmp_path / "study.yaml"))
    made: list[Path] = []
    train = running.train

    def noting(config: Any, run: Path) -> Path:
        reset_accelerate()
        made.append(run)
        if len(made) == 2:
            raise KeyboardInterrupt
        return train(config, run, QUIET)

    with mock.patch.object(running, "train", noting):
        with pytest.raises(KeyboardInterrupt):
            run_study(found, tmp_path, QUIET)
        assert len(read_rows(tmp_path / "results.csv")) == 1
        run_study(found, tmp_path, QUIET)
    assert [run.name for run in made] == ["ATConv-0", "pooling-0", "pooling-0", "ATConv-1"]
    results = read_results(tmp_path / "results.csv")
    assert [one.run for one in results] == [("ATConv", 0), ("pooling", 0), ("ATConv", 1)]
    variants = {variant.name: variant for variant in found.variants}
    for one in results:
        run = tmp_path / "runs" / f"{one.variant}-{one.seed}"
        assert one.top1 == json.loads((run / "metrics.json").read_text())["top1"]
        model: Any = load(run)[0]
        assert one.parameters == sum(p.numel() for p in model.parameters())
        assert one.macs == model.macs(found.recipe.image_size, found.recipe.image_size)
        assert one.macs == macs(found, variants[one.variant])
    atconv, pooling, _ = results
    assert pooling.inhibition is pooling.inhibition_spread is None
    assert abs(atconv.inhibition - 0.5) < 0.1
    assert 0 < atconv.inhibition_spread < 0.1


def test_a_row_tells_the_inhibition_after_the_last_epoch(tmp_path: Path) -> None:
    channels = [(1, "900 100"), (1, "900"), (2, "200 400"), (2, "600")]
    write_rows(tmp_path / "inhibition.csv", [{"epoch": e, "layer": "x", "channels": c} for e, c in channels])
    mean, deviation = inhibition_of(tmp_path)
    assert mean == pytest.approx(0.4)
    assert deviation == pytest.approx(math.sqrt((0.04 + 0 + 0.04) / 3), abs=1e-4)
    assert inhibition_of(tmp_path / "no run") == (None, None)


def test_processes_share_the_runs_of_a_folder(tmp_path: Path) -> None:
    found, made, told = read_study(described(tmp_path / "study.yaml")), [], io.StringIO()

    def noting(config: Any, run: Path) -> None:
        made.append(run.name)
        run.mkdir(parents=True)
        (run / "metrics.json").write_text('{"top1": 90}')

    with mock.patch.object(running, "train", noting):
        with FileLock(tmp_path / "runs" / "ATConv-0.lock"):
            run_study(found, tmp_path, Console(file=told, width=200))
            assert made == ["pooling-0", "ATConv-1"]
            assert "1 of the runs were left to other processes" in told.getvalue()
            two = read_study(described(tmp_path / "two.yaml", variants=TWO))
            write_rows(
                tmp_path / "timing.csv", [{"variant": v.name, "training_step": 1} for v in two.variants]
            )
            with pytest.raises(ValueError, match="another process has some of the pilot's runs"):
                pilot_study(two, tmp_path, QUIET)
        run_study(found, tmp_path, QUIET)
    assert made == ["pooling-0", "ATConv-1", "pooling-1", "ATConv-0"]


def test_the_report_tells_means_spreads_and_intervals(tmp_path: Path) -> None:
    found, told = read_study(described(tmp_path / "study.yaml")), io.StringIO()
    tops = {"ATConv": [90.0, 92.0, 94.0], "pooling": [89.0, 90.0, 94.0]}
    results = [result(name, seed, top) for name, values in tops.items() for seed, top in enumerate(values)]
    write_results(tmp_path / "results.csv", results)
    report_study(found, tmp_path, Console(file=told, width=200))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.getvalue().splitlines()]
    reference, other = (line for line in lines if line and line[0] in tops)
    assert reference[:6] == ["ATConv", "3", "92.00 ± 2.00", "", "1,234", "5.6"]
    # Differences −1, −2, 0: mean −1, deviation 1; t(0.975, 2 degrees of freedom) = 4.303 over √3.
    assert other[2:4] == ["91.00 ± 2.65", "-1.00 ± 2.48"]
    written = (tmp_path / "results.md").read_text().splitlines()
    assert written[3].startswith("| pooling | 3 | 91.00 ± 2.65 | -1.00 ± 2.48 | 1,234 | 5.6 |")
    assert len({line.count("|") for line in written}) == 1
    with Image.open(tmp_path / "results.png") as picture:
        assert min(picture.size) > 400


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    found = read_study(
        described(tmp_path / "study.yaml", seeds=1, variants={"ATConv": {"token_mixer": "atconv"}})
    )
    reset_accelerate()
    running.train(found.config(found.variants[0]), tmp_path / "runs" / "ATConv-0", QUIET)
    reset_accelerate()
    with mock.patch.object(running, "train", side_effect=AssertionError("trained anew")):
        run_study(found, tmp_path, QUIET)
    assert len(read_rows(tmp_path / "results.csv")) == 1


def test_differences_are_paired_by_seed() -> None:
    tops = {("a", 0): 90.0, ("a", 1): 80.0, ("a", 2): 70.0, ("b", 0): 91.0, ("b", 1): 83.0, ("c", 2): 60.0}
    a, b, c = summarize([result(name, seed, top) for (name, seed), top in tops.items()], "a")
    assert (a.seeds, a.mean, a.deviation, a.difference) == (3, 80, 10, None)
    assert b.difference == pytest.approx(2)
    # Two differences, 1 and 3: t(0.975, 1 degree of freedom) = 12.706 times √2 / √2.
    assert b.half_width == pytest.approx(12.706, rel=1e-4)
    assert (c.seeds, c.deviation, c.difference, c.half_width) == (1, 0, -10, None)
    assert math.isclose(c.mean, 60)


def test_seconds_are_measured_for_every_variant(tmp_path: Path) -> None:
    found = read_study(described(tmp_path / "study.yaml"))
    rows = read_rows(time_study(found, tmp_path, QUIET))
    assert [row["variant"] for row in rows] == ["ATConv", "pooling"]
    assert all(float(row["training_step"]) > float(row["inference_batch"]) > 0 for row in rows)


def test_a_pilot_says_what_all_runs_take_and_can_show(tmp_path: Path) -> None:
    variants = {
        "ATConv": {"token_mixer": "atconv"},
        "pooling": {"token_mixer": "pooling"},
        "identity": {"token_mixer": "identity", "seeds": 1},
        "grid": {"token_mixer": "atconv_grid"},
    }
    found = read_study(described(tmp_path / "study.yaml", seeds=8, variants=variants))
    with pytest.raises(ValueError, match="seconds of ATConv, pooling, identity, grid are not measured yet"):
        pilot_study(found, tmp_path, QUIET)
    times = {"ATConv": 2.0, "pooling": 1.0, "identity": 0.5, "grid": 2.0}
    write_rows(tmp_path / "timing.csv", [{"variant": n, "training_step": t} for n, t in times.items()])
    tops = {"ATConv": [90.0, 91.0, 92.0], "pooling": [89.0, 91.0, 90.0], "grid": [90.5, 91.4, 92.6]}
    asked: list[tuple[str, int]] = []

    def ran(study: Any, out: Path, console: Console, jobs: list[tuple[Any, int]]) -> Path:
        asked.extend((variant.name, seed) for variant, seed in jobs)
        write_results(out / "results.csv", [result(name, seed, tops[name][seed]) for name, seed in asked])
        return out / "results.csv"

    with mock.patch.object(costs, "run_study", ran):
        rows = {row["variant"]: row for row in read_rows(pilot_study(found, tmp_path, QUIET))}
    assert asked == [(name, seed) for seed in range(3) for name in ("ATConv", "pooling", "grid")]
    assert [float(row["seconds_a_run"]) for row in rows.values()] == [180, 90, 45, 180]
    assert [float(row["hours"]) for row in rows.values()] == [0.4, 0.2, 0.01, 0.4]
    # Differences −1, 0, −2 have deviation 1; those of the variant of ATConv's own widths, 0.5, 0.4, 0.6, 0.1.
    assert [rows[name]["deviation"] for name in ("pooling", "grid")] == ["1.00", "0.10"]
    assert float(rows["grid"]["smallest_difference"]) == pytest.approx(smallest_difference(0.1, 8), abs=0.005)
    assert float(rows["pooling"]["smallest_difference"]) == pytest.approx(
        smallest_difference(1, 8), abs=0.005
    )
    assert rows["ATConv"]["smallest_difference"] == rows["identity"]["smallest_difference"] == ""


@pytest.mark.parametrize("pairs", [2, 3, 8])
def test_the_smallest_difference_is_found_four_times_in_five(pairs: int) -> None:
    shift = smallest_difference(1.5, pairs)
    samples = np.random.default_rng(0).normal(shift, 1.5, (20_000, pairs))
    found = stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_a_table_holds_rows_of_one_recipe(tmp_path: Path) -> None:
    path, table = tmp_path / "study.yaml", tmp_path / "results.csv"

    def keep(**changes: Any) -> None:
        """All that `run_study` does before its first run."""
        run_study(read_study(described(path, **changes)), tmp_path, QUIET, jobs=[])

    keep(variants={"ATConv": {"token_mixer": "pooling"}})  # no run has begun: nothing to compare with
    keep()
    (tmp_path / "runs" / "ATConv-0").mkdir(parents=True)
    (tmp_path / "runs" / "ATConv-0" / "config.yaml").touch()
    keep(seeds=3)
    keep(variants={"ATConv": {"token_mixer": "atconv"}, "identity": {"token_mixer": "identity"}})
    recipe = read_study(path).recipe
    given = {
        name: getattr(recipe, name) for name in ("data", "model", "model_args", "image_size", "in_chans")
    }
    with pytest.raises(ValueError, match=r"begun with another recipe .*epochs: 1 → 30,.*name another folder"):
        keep(recipe=given)
    changed = {"ATConv": {"token_mixer": "atconv", "mixer_args": {"kernel_size": 5}}}
    with pytest.raises(ValueError, match=r"begun with another recipe .*ATConv: .*kernel_size"):
        keep(variants=changed)
    with pytest.raises(ValueError, match=r"begun with another recipe .*pooling"):
        keep(variants={"ATConv": {"token_mixer": "atconv"}, "pooling": {"token_mixer": "identity"}})
    assert not table.exists()
    keep(variants=TWO)
    write_results(table, [result("pooling", 0, 90.0)])
    with pytest.raises(ValueError, match=r"begun with another recipe .*pooling: 8 8 8 8 → "):
        keep(variants=TWO, reference="pooling")


def test_rows_of_one_table_have_one_precision(tmp_path: Path) -> None:
    found = read_study(described(tmp_path / "study.yaml"))
    write_results(tmp_path / "results.csv", [replace(result("ATConv", 0, 90.0), precision="bf16")])
    with pytest.raises(ValueError, match="rows trained in bf16, this machine trains in fp32"):
        run_study(found, tmp_path, QUIET, jobs=[])


def test_a_broken_recipe_is_named(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", [result("ATConv", 0, 90.0)])
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match=r"recipe\.json is not the recipe of a study"):
        run_study(read_study(described(tmp_path / "study.yaml")), tmp_path, QUIET, jobs=[])


HEAD = "variant,seed,top1,parameters,macs,seconds,widths,precision,inhibition,inhibition_spread"
ROW = "ATConv,0,90.5,10,20,30,8 8 8 8,fp32,0.5,"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}\n{ROW}\n{ROW}\n", "line 3: ATConv, seed 0 has a row already"),
        (f"{HEAD}\n{ROW}\nATConv,1,abc,10,20,30,8,fp32,,\n", "line 3 is not a row of a study: .*abc"),
        (f"{HEAD}\n{ROW}\nATConv,1,90.5,10\n", "line 3 is not a row of a study"),
        ("what,is\nthis,?\n", "line 2 is not a row of a study: KeyError"),
    ],
)
def test_rows_that_are_broken_or_double_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        report_study(read_study(described(tmp_path / "study.yaml")), tmp_path, QUIET)


def test_variants_may_have_dots_in_their_names(tmp_path: Path) -> None:
    variants = {name: {"token_mixer": "pooling"} for name in ("v1.5", "v1.7")}
    found = read_study(described(tmp_path / "study.yaml", seeds=1, reference="v1.5", variants=variants))
    began: list[str] = []

    def train(config: Any, run: Path) -> None:
        began.append(run.name)
        raise FloatingPointError("enough")

    (tmp_path / "runs").mkdir()
    with (
        FileLock(tmp_path / "runs" / "v1.5-0.lock"),
        mock.patch.object(running, "train", train),
        pytest.raises(FloatingPointError),
    ):
        run_study(found, tmp_path, QUIET)
    assert began == ["v1.7-0"]


def test_a_run_that_diverges_does_not_hold_up_the_others(tmp_path: Path) -> None:
    found, began = read_study(described(tmp_path / "study.yaml", seeds=1, variants=TWO)), []

    def train(config: Any, run: Path) -> Path:
        began.append(run.name)
        raise FloatingPointError("the loss is nan")

    with (
        mock.patch.object(running, "train", train),
        pytest.raises(
            FloatingPointError, match=r"2 runs have no row\. ATConv, seed 0: the loss is nan; pooling"
        ),
    ):
        run_study(found, tmp_path / "out", QUIET)
    assert began == ["ATConv-0", "pooling-0"]


def test_mixers_may_differ_by_stage(tmp_path: Path) -> None:
    mixed = {
        "token_mixer": ["atconv", "atconv", "attention", "attention"],
        "mixer_args": [{"kernel_size": 5}, {}, {}, {"head_dim": 16}],
    }
    found = read_study(
        described(tmp_path / "study.yaml", variants={"ATConv": {"token_mixer": "atconv"}, "m": mixed})
    )
    model: Any = found.build(found.variants[1])
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
        (dict(recipe={"data": "digits", "model_args": None}), "model_args as a mapping"),
        (
            dict(reference="a b", variants={n: {"token_mixer": "atconv"} for n in ("a b", "a-b")}),
            "two variants share a folder",
        ),
    ],
)
def test_files_that_describe_no_study_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(described(tmp_path / "study.yaml", **changes))


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows yet"):
        study(str(described(tmp_path / "study.yaml")), str(tmp_path / "out"), "report", QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_mnist", "cued_garments"])
def test_the_committed_studies_match_parameters_and_heads(name: str) -> None:
    found = read_study(Path(__file__).parents[3] / "studies" / "mixers" / f"{name}.yaml")
    vars(found)["classes"] = 10  # without the data
    target = found.parameters(found.variants[0], found.widths[found.reference])
    for variant in found.variants:
        widths = found.widths[variant.name]
        assert abs(found.parameters(variant, widths) / target - 1) <= 0.02, variant.name
        heads = [getattr(m, "num_heads", None) for m in found.build(variant).modules()]
        assert [h for h in heads if h] in ([], [1, 2, 3, 3, 3, 4]), variant.name
        shifts = [m.shift for m in found.build(variant).modules() if hasattr(m, "shift")]
        assert variant.token_mixer != "window_attention" or any(shifts)


def test_only_places_that_coincide_are_moved_apart() -> None:
    moved = _side_by_side([10.0, 13.0, 10.0, 20.0, 13.4])
    assert moved[1] == 13.0
    assert moved[3] == 20.0
    assert moved[4] == 13.4
    assert sorted([moved[0], moved[2]]) == pytest.approx([9.925, 10.075])


def test_a_difference_without_a_pair_is_not_drawn(tmp_path: Path) -> None:
    found = summarize([result("a", 0, 90.0), result("b", 1, 91.0), result("c", 0, 92.0)], "a")
    with mock.patch("atconv.tasks.classification.study.plots.save") as saved:
        compare_variants(found, "a", "title", tmp_path / "x.png")
    right = saved.call_args.args[0].axes[1]
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for line in right.lines if line.get_marker() in "os"]
    assert drawn == [(0, 0), (2.0, 2)]
