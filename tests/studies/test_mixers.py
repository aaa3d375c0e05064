"""The mixers study: networks of equal size, λ in the rows, seconds, a pilot, and a plot."""

from __future__ import annotations

import math
import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import atconv as atconv_package
from atconv.io import read_rows, write_rows
from atconv.modules import ATConv2d
from atconv.tasks import train_or_resume
from atconv.tasks.classification.data import open_split
from atconv.tasks.classification.study import prepare_sweep, read_study
from atconv.tasks.classification.study_report import read_results, summarize
from atconv.tasks.common.sweep import Job
from studies.harness import smallest_difference
from studies.mixers.costs import pilot_study, time_study
from studies.mixers.matching import match_dims
from studies.mixers.plots import _spread_out, compare_variants, plot_inhibition
from studies.mixers.recipes import try_recipes
from studies.mixers.routing import top1_with_other_kernels
from studies.mixers.study import inhibition_of, make_sweep, read_set, report
from support.tiny import reset_accelerate, tiny_config
from support.tiny_study import TWO, result, study_file, write_results

STUDIES = Path(__file__).parents[2] / "studies" / "mixers"
MIXERS = {
    "ATConv": {"token_mixer": "atconv"},
    "attention": {"token_mixer": "attention"},
    "depthwise": {"token_mixer": "depthwise", "mixer_args": {"kernel_size": 7}},
    "reduction": {"token_mixer": "spatial_reduction_attention"},
    "ATConv 7×7": {"token_mixer": "atconv", "mixer_args": {"kernel_size": 7}},
}


@pytest.mark.slow
def test_parameters_agree_within_two_percent(tmp_path: Path) -> None:
    recipe = dict(data="digits", model="attnet_xxs", image_size=28, in_chans=1,
                  model_args=dict(stem_stride=2, depths=[1, 1, 3, 1], dims=[32, 64, 96, 128]))  # fmt: skip
    matched = match_dims(read_study(study_file(tmp_path / "study.yaml", recipe=recipe, variants=MIXERS)))
    sizes = {name: matched.cost(variant)[0] for name, variant in matched.variants.items()}
    assert matched.dims(matched.variants["ATConv"]) == [32, 64, 96, 128]
    for name, size in sizes.items():
        assert abs(size / sizes["ATConv"] - 1) <= 0.02, name
    config = matched.config(matched.variants["attention"], seed=3)
    assert config.seed == 3
    assert config.model_args["token_mixer"] == "attention"
    assert config.model_args["depths"] == [1, 1, 3, 1]
    assert config.model_args["dims"] == matched.dims(matched.variants["attention"])


def test_token_mixers_alone_are_in_networks_without_another_convolution() -> None:
    both, alone = (read_set(name) for name in ("natural", "natural_alone"))
    assert alone.variants == both.variants
    assert alone.recipe == replace(both.recipe, model_args=both.recipe.model_args | {"glu_conv": False})
    with pytest.raises(FileNotFoundError, match="animals"):
        read_set("animals_alone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fashion_mnist", [1, 2, 3, 3, 3, 4]),
        ("cued_garments", [1, 2, 3, 3, 3, 4]),
        ("natural", [1, 2, 3, 3, 3, 5]),
        ("natural_alone", [1, 2, 4, 4, 4, 4]),
    ],
)
def test_the_committed_studies_match_parameters_and_heads(name: str, expected: list[int]) -> None:
    described = read_set(name)
    vars(described)["num_classes"] = 10  # without the data
    target = described.cost(described.variants[described.reference])[0]
    matched = match_dims(described)
    vars(matched)["num_classes"] = 10
    rows = {row.variant: row.dims for row in read_results(STUDIES / name / "results.csv")}
    for variant in matched.variants.values():
        assert abs(matched.cost(variant)[0] / target - 1) <= 0.02, variant.name
        own = " ".join(map(str, matched.dims(variant)))
        assert rows.get(variant.name, own) == own
        heads = [getattr(m, "num_heads", None) for m in matched.build(variant).modules()]
        assert [h for h in heads if h] in ([], expected), variant.name
        shifts = [m.shift for m in matched.build(variant).modules() if hasattr(m, "shift")]
        assert variant.token_mixer != "window_attention" or any(shifts)


@pytest.mark.parametrize("name", ["fashion_mnist", "cued_garments", "natural", "natural_alone"])
def test_the_committed_tables_are_those_of_the_rows(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for table in ("results.csv", "timing.csv"):
        if (STUDIES / name / table).is_file():
            shutil.copy(STUDIES / name / table, folder)
    report(Namespace(data=name, out=tmp_path, device=torch.device("cpu"), workers=None))
    assert (folder / "results.md").read_text() == (STUDIES / name / "results.md").read_text()
    assert (folder / "results.png").stat().st_size > 10_000


def test_every_set_alone_has_a_plot(tmp_path: Path) -> None:
    for name in ("fashion_mnist", "cued_garments"):
        folder = tmp_path / f"{name}_alone"
        folder.mkdir()
        shutil.copy(STUDIES / name / "results.csv", folder)
        report(Namespace(data=folder.name, out=tmp_path, device=torch.device("cpu"), workers=None))
        assert (folder / "results.png").stat().st_size > 10_000


def test_rows_have_the_inhibition_after_the_last_epoch(tmp_path: Path) -> None:
    channels = [(1, "900 100"), (1, "900"), (2, "200 400"), (2, "600")]
    write_rows(tmp_path / "inhibition.csv", [{"epoch": e, "layer": "x", "channels": c} for e, c in channels])
    means, deviation = inhibition_of(tmp_path)
    assert means == pytest.approx([1.9 / 3, 0.4], abs=1e-4)
    assert deviation == pytest.approx(math.sqrt((0.04 + 0 + 0.04) / 3), abs=1e-4)
    assert inhibition_of(tmp_path / "no run") == ([], None)


def test_only_variants_with_inhibition_have_it_in_their_rows(tmp_path: Path) -> None:
    two_mixers = read_study(study_file(tmp_path / "study.yaml", seeds=1, variants=TWO))
    reset_accelerate()
    make_sweep(two_mixers, tmp_path, tmp_path / "runs").run(two_mixers.jobs)
    atconv, pooling = read_rows(tmp_path / "results.csv")
    assert pooling["inhibition"] == pooling["inhibition_spread"] == ""
    assert abs(float(atconv["inhibition"]) - 0.5) < 0.1
    assert 0 < float(atconv["inhibition_spread"]) < 0.1
    assert atconv["inhibition_by_epoch"] == f"{float(atconv['inhibition']):.4f}"
    plot_inhibition([atconv, pooling], ["ATConv", "pooling"], "title", tmp_path / "inhibition.png")
    assert Image.open(tmp_path / "inhibition.png").width > 400
    assert pooling["top1_averaged_kernels"] == pooling["top1_another_images_kernels"] == ""


def test_other_kernels_are_averages_over_all_test_images_or_another_images(tmp_path: Path) -> None:
    reset_accelerate()
    trained = tmp_path / "run"
    train_or_resume(tiny_config(), trained)
    weights = load_file(trained / "model.safetensors")
    torch.manual_seed(0)
    save_file(
        {name: torch.randn_like(each) if "weight" in name else each for name, each in weights.items()},
        trained / "model.safetensors",
    )
    predictor = atconv_package.load(trained)
    routed = predictor.evaluate(split="test").top1
    _, split = open_split(predictor.run, predictor.config, predictor.classes, None, "test", None)
    images = torch.stack([predictor.transform(split.read(i, "L")) for i in range(len(split))])
    layers = [each for each in predictor.model.modules() if isinstance(each, ATConv2d)]
    swapped = top1_with_swapped_kernels(predictor.model, layers, images, torch.as_tensor(split.labels))
    kernels: dict[nn.Module, torch.Tensor] = {}

    def keep(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        kernels[layer] = layer.raw_kernels(inputs[0])[0].mean(0)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    with torch.inference_mode():
        predictor.model(images)
        for handle, layer in zip(handles, layers, strict=True):
            handle.remove()
            layer.routing, layer.static_kernel = False, nn.Parameter(kernels[layer])
        right = predictor.model(images).argmax(1) == torch.as_tensor(split.labels)
    other = top1_with_other_kernels(trained)
    averaged = other["top1_averaged_kernels"]
    assert averaged == pytest.approx(100 * right.double().mean().item(), abs=0.4)  # an image of 269
    assert abs(averaged - routed) > 1
    assert other["top1_another_images_kernels"] == pytest.approx(swapped, abs=0.4)
    assert abs(swapped - routed) > 1


def top1_with_swapped_kernels(
    model: nn.Module, layers: Sequence[ATConv2d], images: torch.Tensor, labels: torch.Tensor
) -> float:
    """All images in one batch, which makes kernels first, and then uses them in the order of the study."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    made: dict[nn.Module, torch.Tensor] = {}

    def keep_or_swap(generator: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return made[generator][order] if generator in made else made.setdefault(generator, output)

    handles = [layer.kernel_gen.register_forward_hook(keep_or_swap) for layer in layers]
    with torch.inference_mode():
        model(images)
        right = model(images).argmax(1) == labels
    for handle in handles:
        handle.remove()
    return 100 * right.double().mean().item()


def test_recipes_are_tried_with_a_static_kernel_on_held_out_images(tmp_path: Path) -> None:
    variants = {"ATConv": {"token_mixer": "atconv"}, "depthwise 7×7": {"token_mixer": "depthwise"}}
    described = read_study(study_file(tmp_path / "study.yaml", seeds=1, variants=variants))
    recipes = {"as it is": {}, "more": {"mixup": 0.2, "model_args": {"stem_stride": 2}}}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(recipes))
    reset_accelerate()
    sweep, jobs = try_recipes(described, tmp_path / "recipes.yaml", tmp_path, tmp_path / "runs")
    sweep.run(jobs)
    rows = read_rows(tmp_path / "recipes.csv")
    assert [row["recipe"] for row in rows] == ["as it is", "more"]
    for row, mixup, stride in zip(rows, (0.0, 0.2), (1, 2), strict=True):
        run = tmp_path / "runs" / "recipes" / Job(row["recipe"], 0).folder
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["mixup"] == mixup
        assert config["model_args"]["stem_stride"] == stride
        assert config["model_args"]["token_mixer"] == "depthwise"
        assert row["val_top1"] == read_rows(run / "metrics.csv")[0]["val_top1"]


def test_seconds_are_measured_for_every_variant(tmp_path: Path) -> None:
    two_mixers = read_study(study_file(tmp_path / "study.yaml"))
    rows = read_rows(time_study(two_mixers, tmp_path))
    assert [row["variant"] for row in rows] == ["ATConv", "pooling"]
    assert all(float(row["training_step"]) > float(row["inference_batch"]) > 0 for row in rows)


def test_a_pilot_says_what_all_runs_take_and_can_show(tmp_path: Path) -> None:
    variants = {
        "ATConv": {"token_mixer": "atconv"},
        "pooling": {"token_mixer": "pooling", "dims": [8, 16, 24, 36]},
        "identity": {"token_mixer": "identity", "dims": [8, 16, 24, 36], "seeds": 1},
        "grid": {"token_mixer": "atconv", "mixer_args": {"context_grid": True}},
    }
    four_mixers = read_study(study_file(tmp_path / "study.yaml", seeds=8, variants=variants))
    sweep, asked = prepare_sweep(four_mixers, tmp_path, train_or_resume), []
    tops = {"ATConv": [90.0, 91.0, 92.0], "pooling": [89.0, 91.0, 90.0], "grid": [90.5, 91.4, 92.6]}

    def run(jobs: Sequence[Job]) -> None:
        asked.extend((job.variant, job.seed) for job in jobs)
        write_results(sweep.table, [result(name, seed, tops[name][seed]) for name, seed in asked])

    with pytest.raises(ValueError, match="seconds of ATConv, pooling, identity, grid are not measured yet"):
        pilot_study(four_mixers, sweep, run)
    times = {"ATConv": 2.0, "pooling": 1.0, "identity": 0.5, "grid": 2.0}
    write_rows(tmp_path / "timing.csv", [{"variant": n, "training_step": t} for n, t in times.items()])
    rows = {row["variant"]: row for row in read_rows(pilot_study(four_mixers, sweep, run))}
    assert asked == [(name, seed) for seed in range(3) for name in ("ATConv", "pooling", "grid")]
    assert [float(row["seconds_a_run"]) for row in rows.values()] == [180, 90, 45, 180]
    assert [float(row["hours"]) for row in rows.values()] == [0.4, 0.2, 0.01, 0.4]
    # Differences −1, 0, −2 have deviation 1; those of the variant of ATConv's own dims, 0.5, 0.4, 0.6, 0.1.
    assert [rows[name]["deviation"] for name in ("pooling", "grid")] == ["1.00", "0.10"]
    assert float(rows["grid"]["smallest_difference"]) == pytest.approx(smallest_difference(0.1, 8), abs=0.005)
    assert float(rows["pooling"]["smallest_difference"]) == pytest.approx(
        smallest_difference(1, 8), abs=0.005
    )
    assert rows["ATConv"]["smallest_difference"] == rows["identity"]["smallest_difference"] == ""


def test_a_pilot_whose_runs_another_process_makes_has_to_wait(tmp_path: Path) -> None:
    two_mixers = read_study(study_file(tmp_path / "study.yaml", variants=TWO))
    sweep = prepare_sweep(two_mixers, tmp_path, train_or_resume)
    write_rows(tmp_path / "timing.csv", [{"variant": name, "training_step": 1} for name in TWO])

    def run(jobs: Sequence[Job]) -> None:
        rows = [result(job.variant, job.seed, 90.0) for job in jobs]
        write_results(sweep.table, [row for row in rows if (row.variant, row.seed) != ("ATConv", 0)])

    with pytest.raises(ValueError, match="another process has some of the pilot's runs"):
        pilot_study(two_mixers, sweep, run)


def test_only_positions_that_coincide_are_moved_apart() -> None:
    moved = _spread_out([10.0, 13.0, 10.0, 20.0, 13.4])
    assert moved[1] == 13.0
    assert moved[3] == 20.0
    assert moved[4] == 13.4
    assert sorted([moved[0], moved[2]]) == pytest.approx([9.925, 10.075])


def test_a_difference_without_a_pair_is_not_plotted(tmp_path: Path) -> None:
    summaries = summarize([result("a", 0, 90.0), result("b", 1, 91.0), result("c", 0, 92.0)], "a")
    with mock.patch("studies.mixers.plots.save") as saved:
        compare_variants(summaries, "a", "title", tmp_path / "x.png")
    right = saved.call_args.args[0].axes[1]
    shown = [(line.get_xdata()[0], line.get_ydata()[0]) for line in right.lines if line.get_marker() in "os"]
    assert shown == [(0, 0), (2.0, 2)]


def test_the_plot_is_written(tmp_path: Path) -> None:
    rows: Any = [result(name, seed, 90.0 + seed + len(name)) for name in "ab" for seed in range(2)]
    compare_variants(summarize(rows, "a"), "a", "title", tmp_path / "results.png")
    with Image.open(tmp_path / "results.png") as plot:
        assert min(plot.size) > 400
