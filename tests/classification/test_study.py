"""A study: matched sizes, every run once, paired differences, and a table and figure of what is there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from rich.console import Console

from atconv.classification.study import costs, running, study
from atconv.classification.study.costs import pilot_study, smallest_difference, time_study
from atconv.classification.study.plan import multiply_adds, read_study
from atconv.classification.study.report import report_study, summarise
from atconv.classification.study.running import run_study
from atconv.training.checkpoint import read_rows, write_rows
from training.tiny import reset_accelerate, tiny_config

QUIET = Console(quiet=True)


def described(path: Path, **changes: Any) -> Path:
    """A study of two mixers on digits that trains in seconds."""
    named = ("data", "model", "model_args", "image_size", "in_chans", "epochs", "batch_size", "lr_batch")
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


MIXERS = {
    "ATConv": {"token_mixer": "atconv"},
    "attention": {"token_mixer": "attention"},
    "depthwise": {"token_mixer": "depthwise7"},
    "reduction": {"token_mixer": "spatial_reduction_attention"},
    "ATConv 7×7": {"token_mixer": "atconv", "mixer_args": {"kernel_size": 7}},
}


def test_parameters_agree_within_two_percent(tmp_path: Path) -> None:
    recipe = dict(data="digits", model="attnet_xxs", image_size=28, in_chans=1,
                  model_args=dict(stem_stride=2, depths=[1, 1, 3, 1], widths=[32, 64, 96, 128]))  # fmt: skip
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
    rows = read_rows(tmp_path / "results.csv")
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("ATConv", "0"),
        ("pooling", "0"),
        ("ATConv", "1"),
    ]
    assert all(0 <= float(row["top1"]) <= 100 for row in rows)
    assert int(rows[0]["multiply_adds"]) == multiply_adds(found, found.variants[0])
    report_study(found, tmp_path, QUIET)
    assert (tmp_path / "results.png").stat().st_size > 1000


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
    rows = [
        {"variant": name, "seed": str(seed), "top1": str(top), "parameters": "5", "multiply_adds": "7"}
        for (name, seed), top in tops.items()
    ]
    a, b, c = summarise(rows, "a")
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
    }
    found = read_study(described(tmp_path / "study.yaml", seeds=8, variants=variants))
    with pytest.raises(ValueError, match="seconds of ATConv, pooling, identity are not measured yet"):
        pilot_study(found, tmp_path, QUIET)
    times = {"ATConv": 2.0, "pooling": 1.0, "identity": 0.5}
    write_rows(tmp_path / "timing.csv", [{"variant": n, "training_step": t} for n, t in times.items()])
    tops = {"ATConv": [90.0, 91.0, 92.0], "pooling": [89.0, 91.0, 90.0]}
    asked: list[tuple[str, int]] = []

    def ran(study: Any, out: Path, console: Console, jobs: list[tuple[Any, int]]) -> Path:
        asked.extend((variant.name, seed) for variant, seed in jobs)
        rows = [{"variant": n, "seed": s, "top1": tops[n][s], "seconds": 180} for n, s in asked]
        write_rows(out / "results.csv", rows)
        return out / "results.csv"

    with mock.patch.object(costs, "run_study", ran):
        rows = {row["variant"]: row for row in read_rows(pilot_study(found, tmp_path, QUIET))}
    assert asked == [(name, seed) for seed in range(3) for name in ("ATConv", "pooling")]
    assert [float(row["seconds_a_run"]) for row in rows.values()] == [180, 90, 45]
    assert [float(row["hours"]) for row in rows.values()] == [0.4, 0.2, 0.01]
    # Differences −1, 0, −2 have deviation 1; t with 7 degrees of freedom: 2.3646 and 0.8960.
    assert float(rows["pooling"]["smallest_difference"]) == pytest.approx(3.2606 / 8**0.5, abs=0.01)
    assert rows["ATConv"]["smallest_difference"] == rows["identity"]["smallest_difference"] == ""


def test_the_smallest_difference_falls_with_more_pairs() -> None:
    assert smallest_difference(1, 8) == pytest.approx(1.1528, rel=1e-3)
    assert smallest_difference(2, 8) == pytest.approx(2 * smallest_difference(1, 8))
    assert smallest_difference(1, 3) > 2 * smallest_difference(1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(reference="attention"), "the reference 'attention' is not among the variants"),
        (dict(variants={"x": {}}), "does not describe a study"),
        (dict(variants=[]), "does not describe a study"),
        (dict(recipe={"colour": 3}), "the recipe has no colour"),
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
