"""The command line: help, what it rejects and how, and that a finished run can be run again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import atconv_command
from atconv.engine.checkpoint import latest_checkpoint
from atconv.tasks import TASKS, get_task
from support.tiny import atconv, image_folder, tiny_options, train_tiny, trained_run

COMMANDS = tuple(atconv_command.COMMANDS)
TOOLS = tuple(f"{command} {tool}" for command, tools in atconv_command.TOOLS.items() for tool in tools)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_does_not_import_torch() -> None:
    ended = python(
        "import sys, atconv_command\n"
        "sys.argv = ['atconv', '--help']\n"
        "try: atconv_command.main()\n"
        "except SystemExit as error: print('code', error.code)\n"
        "print(sorted({'torch', 'timm', 'numpy', 'atconv'} & set(sys.modules)))"
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-2:] == ["code 0", "[]"]
    for command in COMMANDS:
        assert f"\n  {command} " in ended.stdout


def test_importing_the_package_imports_no_optional_part() -> None:
    heavy = {
        "accelerate",
        "jsonargparse",
        "lmdb",
        "matplotlib",
        "rich",
        "sklearn",
        "tensorboard",
        "webdataset",
    }
    # Older versions of huggingface_hub, which timm imports, bring rich along with httpx.
    ended = python(
        f"import sys, timm; before = set(sys.modules); import atconv; "
        f"print(sorted({heavy!r} & (set(sys.modules) - before)))"
    )
    assert ended.stdout.strip() == "[]", ended.stderr


@pytest.mark.parametrize("command", [*COMMANDS, *TOOLS])
def test_every_command_has_help_on_a_screen(command: str) -> None:
    ended = atconv(*command.split(), "--help")
    assert ended.code == 0
    assert f"atconv {command}" in ended.out
    assert not ended.err
    lines = ended.out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("command", atconv_command.TOOLS)
def test_help_of_a_group_describes_its_commands(command: str) -> None:
    ended = atconv(command, "--help")
    for tool, description in atconv_command.TOOLS[command].items():
        assert re.search(rf"^  {tool} +{re.escape(description)}$", ended.out, re.MULTILINE)


def train_command(task: str) -> list[str]:
    return f"{get_task(task).command} train".split()


@pytest.mark.parametrize("task", TASKS)
def test_help_of_training_is_in_groups(task: str) -> None:
    ended = atconv(*train_command(task), "--help")
    for group in ("data", "model", "training"):
        assert f"\n{group}:\n" in ended.out


@pytest.mark.parametrize("task", TASKS)
def test_help_of_training_explains_or_names_every_option(task: str) -> None:
    """--help explains the common ones and names the others; --help-all explains all."""
    command = train_command(task)
    short, full = atconv(*command, "--help").out, atconv(*command, "--help-all").out
    for field in fields(get_task(task).config):
        if field.name == "data":
            continue
        option = f"--{field.name.replace('_', '-')}"
        assert re.search(rf"{option}\b", short), option
        explained = re.search(rf"^  {option}\b([^\n]*\n( {{20,}}[^\n]*\n)*)", full, re.MULTILINE)
        assert explained is not None, option
        text = re.sub(r"\(default: .*?\)|--no-\S+|[A-Z]+|[{\[].*?[}\]]", "", explained[1])
        assert len(text.split()) >= 2, option
    assert "Also --" not in full


def test_help_of_training_explains_every_option() -> None:
    ended = atconv("train", "--help")
    for option in (
        "--mixup",
        "--layer-decay",
        "--checkpoint-steps",
        "--teacher",
        "--resume",
        "--config",
        "--out",
    ):
        assert option in ended.out
    assert "Mixup alpha" in ended.out


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    ended = atconv("--version")
    assert (ended.code, ended.out.strip()) == (0, f"atconv {version('atconv')}")


def test_the_models_are_listed_with_their_sizes() -> None:
    ended = atconv("models")
    assert ended.code == 0, ended.err
    for name, parameters, gmacs in (
        ("attnet_xxs", "2,853,556", 0.5011),
        ("attnet_xs", "5,554,902", 0.9427),
        ("attnet_s", "7,681,316", 1.2424),
        ("attnet_t1", "13,714,900", 2.2554),
        ("attnet_t2", "27,010,782", 4.7333),
        ("attnet_t3", "49,175,682", 8.7021),
        ("attnet_t4", "87,320,214", 15.5485),
    ):
        [cells] = [cells for line in ended.out.splitlines() if (cells := line.split())[0] == name]
        assert cells[1] == parameters
        assert float(cells[2]) == pytest.approx(gmacs, rel=0.005)
    assert "84.4 %" in ended.out
    assert "ublished" in ended.out


def rejected(*arguments: str | Path) -> str:
    """The line on stderr of a command that is rejected."""
    ended = atconv(*arguments)
    assert ended.code == 2, (ended.code, ended.err[-500:])
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    return ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "no command 'fly'; there are train, evaluate"),
        (["trian", "digits"], "no command 'trian'; there are train"),
        (["trian", "digits"], "did you mean train?"),
        (["data", "fly"], "atconv data: no command 'fly'; there are check, lmdb"),
        (["data"], "atconv data: no command given; there are check, lmdb"),
        (
            ["detect", "evaluat"],
            "atconv detect: no command 'evaluat'; there are train, evaluate, predict",
        ),
        (["train", "digits", "--epoch=3"], "did you mean --epochs?"),
        (["train"], "DATA is missing"),
        (["predict", "run"], "atconv predict: IMAGE is missing: give image files, folders or globs"),
        (["data", "check"], "atconv data check: DATA is missing: give DATA as in training, of any task"),
        (["data", "lmdb", "photos"], "atconv data lmdb: OUT is missing: give the file to write"),
        (["generate", "sample"], "RUN is missing: give the run's folder (see atconv generate sample --help)"),
        (["train", "digits", "more"], "more: a command's arguments come before its options"),
        (["train", "no/such/folder"], "does not exist: give an image folder"),
        (["train", "digits", "--no-such-option=3"], "--no-such-option"),
        (["train", "digits", "--epochs=many"], "epochs"),
        (["train", "digits", "--epochs=0"], "epochs must be at least 1"),
        (["train", "digits", "--epochs"], "epochs"),
        (["train", "digits", "--precision=fp8"], "precision"),
        (["train", "digits", "--config=no_such_recipe"], "no recipe 'no_such_recipe'"),
        (["train", "digits", "--config"], "config"),
        (["train", "digits", "--model=attnet_t9"], "no model 'attnet_t9'"),
        (["train", "digits", "--model-args={stem_stride: 3}"], "stem_stride"),
        (["train", "digits", "--checkpoint=none.pth"], "none.pth"),
        (["train", "digits", "--distill=soft"], "teacher"),
        (["train", "digits", "--class-weights=inverse", "--mixup=0.1"], "do not go together"),
        (["train", "digits", "--warmup-epochs=90"], "warmup_epochs"),
        (["train", "digits", "--mean=[0.1,0.2]"], "mean"),
        (["train", "digits", "--schedule=nosuch"], "nosuch"),
        (["train", "digits", "--optimizer=nosuch"], "nosuch"),
        (
            [
                "train",
                "digits",
                "--device=cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else "--device=mps",
            ],
            "device",
        ),
        (["train", "torch/fashion_mnist"], "--data-root"),
        (["train", "torch/no_such", "--data-root=."], "timm cannot open torch/no_such"),
        (["train", "torch/cifar10", "--data-root=."], "Put its files there\n"),
        (["train", "wds/images"], "WebDataset shards"),
        (["train", "--resume=no/such/run"], "no such run folder"),
        (["train", "--resume=."], "is not a run"),
        (["train", "--resume"], "resume"),
        (["evaluate"], "run"),
        (["evaluate", "no/such/run", "digits"], "no such run folder"),
        (["predict", "no/such/run"], "IMAGE is missing: give image files"),
        (["predict", ".", "none.png"], "no image at 'none.png'"),
        (["models", "attnet_t2"], "attnet_t2"),
        (["data", "lmdb", "no/such/folder", "out.lmdb"], "no such folder"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in rejected(*arguments)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not list(tmp_path.glob("runs/*"))


def test_an_auto_augment_that_timm_does_not_know_is_one_line(tmp_path: Path) -> None:
    assert "nosuch" in rejected(
        "train", "digits", *tiny_options(auto_augment="nosuch"), f"--out={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "no images in" in rejected("train", tmp_path / "data", f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    line = rejected("train", "digits", f"--out={tmp_path / 'run'}")
    assert "exists already: it is not the folder of a run; or name another with --out" in line
    assert [p.read_text() for p in (tmp_path / "run").iterdir()] == ["mine"]


def test_a_bad_option_with_some_unreadable_images_leaves_nothing(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"ant": 20, "bee": 20})
    (data / "ant" / "bad.png").write_text("text")
    rejected("train", data, "--model=attnet_t9", f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_one_line(tmp_path: Path) -> None:
    options = tiny_options(optimizer="momentum", lr=1000.0, warmup_lr=1000.0)
    line = rejected("train", "digits", *options, f"--out={tmp_path / 'run'}")
    assert "step" in line
    assert "learning rate" in line


def test_without_data_a_run_is_evaluated_on_its_own(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run")
    assert atconv("evaluate", run, "--workers=0").code == 0
    assert atconv("evaluate", run, "digits", "--workers=0").code == 0
    assert [path.name for path in (run / "evaluation").iterdir()] == ["digits-test"]


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_of_every_task_needs_no_data(task: str) -> None:
    assert " [DATA]" in atconv(*f"{get_task(task).command} evaluate --help".split()).out


@pytest.mark.parametrize(
    "arguments", ["atconv_command --help", "atconv_command detect --help", "atconv models"]
)
def test_a_reader_that_has_seen_enough_is_no_error(arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *arguments.split()]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ended.stderr == ""
    assert ended.returncode == 0


@pytest.mark.parametrize("arguments", [["--epochs=\x1b[31m"], ["--\x1b[31m=1"], ["\x9b31m"], ["a\u202eb"]])
def test_control_characters_of_arguments_are_escaped(arguments: list[str]) -> None:
    for command in (["train", "digits"], ["detect"], []):
        assert not re.search("[\x1b\x9b\u202e]", rejected(*command, *arguments))


def test_an_image_that_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("text")
    ended = atconv("predict", trained_run(), tmp_path / "bad.png")
    assert ended.code == 2
    assert not ended.out
    assert "bad.png: not a readable image" in ended.err


def test_weights_of_a_damaged_run_are_one_line(tmp_path: Path) -> None:
    for name in ("config.yaml", "config.json"):
        (tmp_path / name).write_bytes((trained_run() / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert str(tmp_path) in rejected(
        "train", "digits", *tiny_options(checkpoint=str(tmp_path)), f"--out={tmp_path / 'run'}"
    )
    assert not (tmp_path / "run").exists()


def test_a_top_of_zero_is_rejected(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert "top must be at least 1" in rejected("predict", trained_run(), tmp_path / "a.png", "--top=0")


def test_without_a_terminal_a_run_prints_a_line_an_epoch_and_no_bar(tmp_path: Path) -> None:
    command = ("train", "digits", *tiny_options(epochs=2), f"--out={tmp_path / 'run'}")
    ended = atconv(*command, own_process=True)
    assert ended.code == 0
    assert not ended.err
    lines = ended.out.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 2
    assert "\x1b" not in ended.out
    assert "\r" not in ended.out


def test_runs_are_named_and_numbered_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert atconv("train", "digits", *tiny_options()).code == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "digits-attnet_xxs",
        "digits-attnet_xxs-2",
    ]


def test_a_saved_configuration_runs_again_to_the_same_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = tiny_options(mixup=0.2, crop_scale=[0.4, 1.0], rotate=8, betas=[0.8, 0.99])
    assert atconv("train", "digits", *options, f"--out={first}").code == 0
    ended = atconv("train", f"--config={first / 'config.yaml'}", f"--out={second}")
    assert ended.code == 0, ended.err
    assert (first / "config.yaml").read_bytes() == (second / "config.yaml").read_bytes()
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    states = [latest_checkpoint(run / "checkpoints") for run in (first, second)]
    assert states[0] is not None
    assert states[1] is not None
    assert (states[0] / "state.safetensors").read_bytes() == (states[1] / "state.safetensors").read_bytes()


def test_option_names_may_have_dashes(tmp_path: Path) -> None:
    ended = atconv("train", "--batch-size=7", "--label-smoothing", "0.3", "--print-config")
    assert "batch_size: 7" in ended.out
    assert "label_smoothing: 0.3" in ended.out


def test_the_tracker_gets_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    ended = atconv("train", "digits", *tiny_options(tracker="tensorboard"), f"--out={run}")
    assert ended.code == 0, ended.err
    assert list(run.rglob("events.out.tfevents.*"))


def test_class_names_are_printed_as_they_are(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"[red]": 20, "[b]": 20})
    options = tiny_options(in_chans=3, test_fraction=0.3, batch_size=8, base_batch_size=8)
    ended = atconv("train", data, *options, f"--out={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    ended = atconv("evaluate", tmp_path / "run", data, "--workers=0")
    assert ended.code == 0, ended.err
    assert "[red]" in ended.out
    classes = json.loads((tmp_path / "run" / "config.json").read_text())["label_names"]
    assert classes == ["[b]", "[red]"]


def test_an_option_that_is_on_or_off_needs_no_value(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = atconv("train", "digits", *tiny_options(), "--freeze-bn", f"--out={run}", "--grad-checkpointing")
    assert ended.code == 0, ended.err
    config = (run / "config.yaml").read_text()
    assert "freeze_bn: true" in config
    assert "grad_checkpointing: true" in config


def test_resuming_takes_no_other_option(tmp_path: Path) -> None:
    line = rejected("train", "--resume", tmp_path, "--epochs", "5", "--lr", "1")
    assert "--epochs and --patience, got --lr 1" in line


def test_help_shows_the_defaults_that_a_run_has() -> None:
    small = yaml.safe_load(get_task("classification").recipe_path("small").read_text())
    assert re.search(rf"--epochs N .*default: {small['epochs']}\)", atconv("train", "--help").out)


def test_help_shows_the_defaults_of_the_recipe_that_is_named(tmp_path: Path) -> None:
    recipe = yaml.safe_load(get_task("classification").recipe_path("attnet_t2").read_text())
    text = atconv("train", "--config=attnet_t2", "--help").out
    for name, place in (("epochs", "N"), ("mixup", "X"), ("lr", "X"), ("auto_augment", "TEXT")):
        option = name.replace("_", "-")
        assert re.search(rf"--{option} {place} [^(]*\(default:\s+{recipe[name]}\)", text), name
    (tmp_path / "mine.yaml").write_text("weight_decay: 0.25\n")
    text = atconv("train", f"--config={tmp_path / 'mine.yaml'}", "--help").out
    assert re.search(r"--weight-decay X [^(]*\(default:\s+0.25\)", text)


def test_the_weights_of_a_run_are_for_its_user_group_and_others(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run")
    assert (run / "model.safetensors").stat().st_mode == (run / "config.json").stat().st_mode


@pytest.mark.parametrize("option", ["epoch: 3", "1: 3"], ids=["typo", "number"])
def test_a_recipe_with_an_unknown_option_is_one_line(tmp_path: Path, option: str) -> None:
    (tmp_path / "mine.yaml").write_text(option)
    line = rejected("train", "digits", f"--config={tmp_path / 'mine.yaml'}", f"--out={tmp_path / 'run'}")
    assert "mine.yaml has an option" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [("train", ""), ("predict", "run", ""), ("train", "digits", "--out=")])
def test_an_empty_argument_is_not_the_current_folder(arguments: tuple[str, ...]) -> None:
    assert "an argument is empty" in rejected(*arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("epochs: three", "epochs in the recipe mine.yaml must be a whole number, got 'three'"),
        ("precision: fp8", "precision in the recipe mine.yaml must be one of fp32, bf16, fp16, got 'fp8'"),
        ("hflip: .inf", "hflip in the recipe mine.yaml must be a number, got inf"),
        ("lr: {", "mine.yaml is not valid YAML in line"),
    ],
)
def test_a_recipe_with_a_wrong_value_says_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(option)
    assert message in rejected("train", "digits", "--config=mine.yaml")


def test_numbers_in_recipes_may_have_exponents(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 1e-3\n")
    assert "lr: 0.001" in atconv("train", f"--config={tmp_path / 'mine.yaml'}", "--print-config").out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs=three", "epochs must be a whole number, got three"),
        ("--precision=fp8", "precision must be one of fp32, bf16, fp16, got fp8"),
        ("--betas=[1,2,3]", "betas must be a list of 2 numbers"),
        ("--lr=nan", "lr must be a number, got nan"),
        ("--cutmix=inf", "cutmix must be a number, got inf"),
        (f"--warmup-epochs={10**400}", "a number is too large"),
        ("--min-lr=-1", "min_lr must not be negative, got -1"),
        ("--weight-decay=-0.1", "weight_decay must not be negative, got -0.1"),
        ("--layer-decay=-1", "layer_decay must be positive and at most 1, or be null, got -1"),
        ("--clip-grad=-1", "clip_grad must be positive, or be null, got -1"),
        ("--in-chans=0", "in_chans must be 3 (color) or 1 (gray), got 0"),
        ("--workers=-1", "workers must not be negative, got -1"),
    ],
)
def test_messages_about_values_name_types_in_words(option: str, message: str) -> None:
    assert message in rejected("train", "digits", option)


@pytest.mark.parametrize("command", ["train --help-all", "generate sample --help", "evaluate --help"])
def test_help_says_which_values_fit(command: str) -> None:
    text = atconv(*command.split()).out
    assert "≥ 1" in text
    assert not re.search(r"Literal|<class|Annotated|Rule\(|-\S+ VALUE\b(?! \.)", text)
    assert text.count("\noptions:\n") == 1


def test_json_and_csv_exclude_each_other() -> None:
    assert "--json and --csv" in rejected("predict", trained_run(), "a.png", "--json", "--csv")


def test_aliases_that_stand_for_more_than_memory_holds_are_rejected(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert "aliases" in rejected("train", "digits", f"--config={tmp_path / 'bomb.yaml'}")
    (tmp_path / "loop.yaml").write_text("a: &a [*a]")
    assert "aliases" in rejected("train", "digits", f"--config={tmp_path / 'loop.yaml'}")


def test_a_recipes_warmup_gives_way_to_fewer_epochs_and_an_explicit_one_does_not() -> None:
    assert "warmup_epochs: 0.06" in atconv("train", "--epochs=1", "--print-config").out  # 3 of 50 epochs
    assert "warmup_epochs must lie in" in rejected("train", "digits", "--epochs=1", "--warmup-epochs=2")


@pytest.mark.parametrize("link", [False, True], ids=["folder", "symlink"])
def test_a_rejected_run_leaves_a_folder_that_was_there(tmp_path: Path, link: bool) -> None:
    folder, out = tmp_path / "mine", tmp_path / "run"
    folder.mkdir()
    (folder / "skipped.csv").write_text("my own")
    out.symlink_to(folder) if link else folder.rename(out)
    assert "no model 'attnet_t9'" in rejected("train", "digits", "--model=attnet_t9", f"--out={out}")
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("skipped.csv", "my own")]
    (out / "skipped.csv").unlink()
    rejected("train", "digits", "--model=attnet_t9", f"--out={out}")
    assert out.is_dir()


def test_control_characters_and_names_that_are_not_utf8_are_escaped_in_messages(tmp_path: Path) -> None:
    bad = tmp_path / "\x1b[31mred\udcff.png"
    bad.write_text("text")
    ended = atconv("predict", trained_run(), bad)
    assert ended.code == 2
    assert "\x1b" not in ended.err
    assert "red" in ended.err
