from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from atconv.engine.recipes import write_config
from atconv.engine.run import Run
from atconv.tasks import get_task
from atconv.tasks.classification import ClassificationConfig
from support.tiny import atconv, tiny_config

TASK = get_task("classification")
RANDAUGMENT = "rand-m9-mstd0.5-inc1"

# weight decay, drop path, mixup, random erase, RandAugment
PUBLISHED = {
    "attnet_xxs": (0.015, 0.0, 0.05, 0.0, None),
    "attnet_xs": (0.025, 0.02, 0.1, 0.0, None),
    "attnet_s": (0.025, 0.05, 0.3, 0.0, RANDAUGMENT),
    "attnet_t1": (0.025, 0.1, 0.6, 0.15, RANDAUGMENT),
    "attnet_t2": (0.05, 0.2, 0.8, 0.25, RANDAUGMENT),
    "attnet_t3": (0.05, 0.4, 0.8, 0.25, RANDAUGMENT),
    "attnet_t4": (0.05, 0.5, 0.8, 0.25, RANDAUGMENT),
}

SHARED = {
    "image_size": 224,
    "in_chans": 3,
    "epochs": 300,
    "base_batch_size": 4096,
    "global_batch_size": None,
    "optimizer": "adamw",
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "lr": 4e-3,
    "warmup_epochs": 5,
    "warmup_lr": 1e-6,
    "schedule": "cosine",
    "min_lr": 1e-6,
    "label_smoothing": 0.1,
    "cutmix": 1.0,
    "mix_prob": 1.0,
    "mix_switch_prob": 0.5,
    "repeats": 3,
    "crop_scale": [0.08, 1.0],
    "interpolation": "bicubic",
    "hflip": 0.5,
    "color_jitter": 0.0,
    "mean": None,
    "std": None,
    "ema_decay": 0.99995,
    "ema_warmup": False,
    "crop_pct": 224 / 256,
    "precision": "fp16",
    "clip_grad": None,
    "layer_decay": None,
}


def printed(recipe: str | Path, *options: str) -> dict[str, Any]:
    ended = atconv("train", f"--config={recipe}", *options, "--print-config")
    assert ended.code == 0, ended.err
    return yaml.safe_load(ended.out)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_imagenet_recipes_are_those_published(name: str) -> None:
    config = printed(name)
    decay, drop_path_rate, mixup, erase, augment = PUBLISHED[name]
    assert config["model"] == name
    assert {k: config[k] for k in SHARED} == SHARED
    assert (config["weight_decay"], config["drop_path_rate"], config["mixup"]) == (
        decay,
        drop_path_rate,
        mixup,
    )
    assert (config["erase_prob"], config["auto_augment"]) == (erase, augment)
    assert config["distill"] == "none"


def test_there_are_recipes_for_imagenet_small_data_and_fine_tuning() -> None:
    assert set(TASK.recipe_names()) >= {*PUBLISHED, "small", "finetune", "digits", "fashion_mnist"}


@pytest.mark.parametrize("name", TASK.recipe_names())
def test_every_recipe_is_a_configuration(name: str) -> None:
    recipe = yaml.safe_load(TASK.recipe_path(name).read_text())
    config = printed(name)
    assert set(recipe) <= set(config)
    assert {k: v for k, v in config.items() if k in recipe} == recipe
    ClassificationConfig(**{k: v for k, v in config.items() if k != "out"})


def test_fine_tuning_decays_by_layer() -> None:
    assert 0 < printed("finetune")["layer_decay"] < 1


def test_any_field_of_a_recipe_may_be_overridden() -> None:
    config = printed(
        "attnet_t2", "--epochs=7", "--batch-size=3", "--model-args.stem_stride=2", "--crop-scale=[0.5,1]"
    )
    assert (config["epochs"], config["batch_size"]) == (7, 3)
    assert config["model_args"] == {"stem_stride": 2}
    assert config["crop_scale"] == [0.5, 1.0]
    assert config["mixup"] == 0.8


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 3\nmodel: attnet_s\n")
    config = printed(tmp_path / "mine.yaml")
    assert (config["epochs"], config["model"]) == (3, "attnet_s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3\nlr: 0.1\nepochs: 4", "not valid YAML in line 3, column 1: epochs stands twice"),
        ("model_args: {stem_stride: 2, stem_stride: 1}", "stem_stride stands twice"),
        ("lr: 1:30", "lr in the recipe .* must be a number, got '1:30'"),
        ("epochs: 010", "epochs in the recipe .* must be a whole number, got '010'"),
        (
            f"seed: 0x{'f' * 5000}",
            "seed in the recipe .* must be at most .* got a number of thousands of digits",
        ),
    ],
)
def test_a_recipe_means_what_it_says(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        TASK.read_recipe(str(tmp_path / "mine.yaml"))


def test_defaults_give_way_to_what_is_chosen() -> None:
    chosen = ["--config=attnet_t2", "--lr=1e-12"]
    printed = yaml.safe_load(atconv("train", "digits", *chosen, "--print-config").out)
    assert float(printed["min_lr"]) == float(printed["warmup_lr"]) == 1e-12
    assert "min_lr must be at most lr" in atconv("train", "digits", *chosen, "--min-lr=1e-6").err
    for options, sizes in (("--max-size=300", ([300] * 7, 300)), ("--min-size=1500", ([1500], 2500))):
        printed = yaml.safe_load(atconv("detect", "train", "digits", options, "--print-config").out)
        assert (printed["min_size"], printed["max_size"]) == sizes


def test_python_makes_the_configuration_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("min_size: 500\nepochs: 4\nwarmup_epochs: 2\n")
    for task, recipe, changes in (
        ("classification", "finetune", {"epochs": 1, "lr": 1e-9}),
        ("detection", str(tmp_path / "mine.yaml"), {"epochs": 1, "max_size": 64}),
        ("segmentation", "small", {"epochs": 1}),
        ("generation", "small", {"lr": 1e-9}),
    ):
        spec = get_task(task)
        options = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
        command = (*spec.command.split(), "train", "digits", f"--config={recipe}", *options, "--print-config")
        printed = spec.config(**yaml.safe_load(atconv(*command).out))
        assert spec.make_config(recipe, data="digits", **changes) == printed


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epochs": "many"}, ValueError, "epochs must be a whole number, got 'many'"),
        ({"epoch": 3}, TypeError, "epoch"),
    ],
)
def test_changes_of_a_recipe_are_checked(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TASK.make_config("small", data="digits", **changes)


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'attnet_t9': give a YAML file, or one of attnet_s, "):
        TASK.recipe_path("attnet_t9")


def test_a_saved_configuration_is_read_back(tmp_path: Path) -> None:
    config = tiny_config(mean=(0.4,), betas=(0.8, 0.9), crop_scale=(0.5, 1.0), mixup=0.3, patience=4)
    run = Run.create(tmp_path / "run")
    write_config(config, "classification", run)
    assert TASK.read_config(run) == config
    assert [p.name for p in run.path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("text", ["[1, 2]", "{", "not_a_field: 3", "epochs: 0"])
def test_a_damaged_configuration_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml|epochs"):
        TASK.read_config(Run(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1, got 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must lie between 0 and 1"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"distill": "soft"}, "distillation needs both"),
        ({"teacher": "resnet50"}, "distillation needs both"),
        ({"teacher_weights": "mine.pth"}, "teacher_weights are of a teacher"),
        ({"model_args": {"num_classes": 7}}, "model_args holds num_classes: the data say how many"),
        ({"model_args": {"drop_rate": 0.5}}, "model_args holds drop_rate: give --drop-rate instead"),
        ({"class_weights": "inverse", "mixup": 0.1}, "do not go together"),
        ({"mean": (0.1, 0.2)}, "mean must have one value, or one for each of 1 channels"),
    ],
)
def test_options_that_do_not_go_together_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_channels_take_imagenets_statistics_or_one_half() -> None:
    assert tiny_config(in_chans=1).normalization() == ((0.5,), (0.5,))
    assert tiny_config(in_chans=3).normalization() == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert tiny_config(in_chans=3, mean=(0.2,)).normalization()[0] == (0.2, 0.2, 0.2)
