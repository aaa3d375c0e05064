"""`atconv publish`: what leaves opens elsewhere, tells what was measured, and nothing of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants
from PIL import Image

import atconv
from atconv.diffusion import SiTPipeline
from atconv.tasks import get_task
from atconv.tasks.common.intervals import wilson_interval
from atconv.tasks.hub import upload
from atconv.tasks.model_card import CardContent, model_card
from atconv.tasks.publish import publish
from atconv.tasks.segmentation.metrics import RESAMPLES
from support.hub_server import TOKEN, Hub, hub_server
from support.tiny import atconv as command
from support.tiny import trained_run
from support.tiny_dense import detection_run, segmentation_run
from support.tiny_sit import generation_run

RUNS = {
    "classification": trained_run,
    "detection": detection_run,
    "segmentation": segmentation_run,
    "generation": generation_run,
}


@pytest.fixture(scope="module", params=RUNS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of each task, and the folder that it is published in."""
    run, folder = RUNS[request.param](), tmp_path_factory.mktemp("published") / "new" / "model"
    assert publish(run, str(folder), license="mit") == str(folder)
    return run, folder


def test_the_folder_opens_as_the_run_does(published: tuple[Path, Path]) -> None:
    run, folder = published
    before, after = atconv.load(run), atconv.load(folder)
    assert (after.task, after.classes) == (before.task, before.classes)
    state = before.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in after.model.state_dict().items())
    if before.task == "generation":
        first, second = (p.sample([3], seed=1).images for p in (before, after))
        assert (first == second).all()
    else:
        image = Image.effect_noise((40, 56), 90)
        assert before(image) == after(image)


def test_the_card_is_one_that_hugging_face_reads(published: tuple[Path, Path]) -> None:
    run, folder = published
    card, about = ModelCard.load(folder / "README.md"), get_task(atconv.load(run).task).publication
    data = card.data.to_dict()
    assert (data["license"], data["pipeline_tag"], data["library_name"]) == (
        "mit",
        about.pipeline_tag,
        about.library,
    )
    metrics = json.loads((run / "metrics.json").read_text())
    values = {**metrics, **metrics.get("coco", {})}
    names = [name for name in about.metrics if isinstance(values.get(name), float)]
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {about.metrics[name][0]: pytest.approx(values[name], abs=1e-4) for name in names}
    assert set(data["metrics"]) == set(results)
    split = json.loads((run / "split.json").read_text())
    assert f"| train | {len(split['train']):,} |" in card.text
    assert all(f"]({path.name})" in card.text for path in folder.glob("*.png"))
    assert (f"by bootstrap over images, {RESAMPLES} resamples" in card.text) == ("miou" in metrics)


def test_nothing_of_this_machine_or_of_the_data_leaves(published: tuple[Path, Path]) -> None:
    run, folder = published
    task = get_task(atconv.load(run).task)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    model = {name for name in task.publication.files if (run / name).is_file()}
    plots = {name for name in task.publication.plots if (run / name).is_file()}
    own = {"README.md", "recipe.yaml", *(["per_class.csv"] if (run / "per_class.csv").is_file() else [])}
    assert files == model | plots | own
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(place.encode() in content for place in (str(run.parent), str(Path.cwd()), "/tmp/"))
    recipe = task.read_recipe(str(folder / "recipe.yaml"))
    options = yaml.safe_load((run / "config.yaml").read_text())
    assert recipe == {k: v for k, v in options.items() if k not in ("task", "data", "data_root", "images")}


def test_libraries_open_a_folder(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp
    from transformers import AutoModelForImageClassification

    runs = {task: RUNS[task]() for task in ("classification", "segmentation", "generation")}
    folders = {task: publish(run, str(tmp_path / task), license="mit") for task, run in runs.items()}
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = atconv.load(runs["classification"]).model(images)
        opened = timm.create_model(f"local-dir:{folders['classification']}", pretrained=True).eval()
        assert torch.equal(opened(images), expected)
        opened = AutoModelForImageClassification.from_pretrained(folders["classification"]).eval()
        torch.testing.assert_close(opened(images).logits, expected)
        images = torch.randn(1, 1, 64, 64)
        opened = smp.from_pretrained(folders["segmentation"]).eval()
        torch.testing.assert_close(opened(images), atconv.load(runs["segmentation"]).model(images))
    pipes = [SiTPipeline.from_pretrained(place) for place in (runs["generation"], folders["generation"])]
    first, second = (
        p([3], generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="pt").images
        for p in pipes
    )
    assert torch.equal(first, second)


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    run, folder = Path(shutil.copytree(trained_run(), tmp_path / "run")), tmp_path / "model"
    publish(run, str(folder), with_images=True)
    assert (folder / "mistakes.png").is_file()
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"is not empty: give --overwrite"):
        publish(run, str(folder))
    with pytest.raises(ValueError, match="is the run itself"):
        publish(run, str(run), overwrite=True)
    (run / "model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(ValueError, match="has no model yet"):
        publish(run, str(folder), overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "weights").rename(run / "model.safetensors")
    publish(generation_run(), str(folder), overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "mistakes.png").exists()
    assert atconv.load(folder).task == "generation"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model"}


def test_paths_and_names_of_people_do_no_harm(tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run(), tmp_path / "run"))
    weights = tmp_path / "secret" / "weights"
    weights.mkdir(parents=True)
    options = yaml.safe_load((run / "config.yaml").read_text())
    changes = {"data": str(tmp_path / "se*cret" / "photos"), "checkpoint": os.path.relpath(weights)}
    (run / "config.yaml").write_text(
        yaml.safe_dump(
            options
            | changes
            | {"extended_at": 1}
            | {"distill": "soft", "teacher": "resnet18", "teacher_weights": r"C:\people\me\teacher.pth"}
        )
    )
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["per_class"][0]["class"] = name = "a | b\n# <img src=x onerror=y>`"
    (run / "metrics.json").write_text(json.dumps(metrics))
    for file, key in (("config.json", "label_names"), ("split.json", "classes")):
        content = json.loads((run / file).read_text())
        content[key][0] = name
        (run / file).write_text(json.dumps(content))
    folder = Path(publish(run, str(tmp_path / "model")))
    texts = (folder / "README.md").read_text() + (folder / "recipe.yaml").read_text()
    assert not any(word in texts for word in ("secret", "se*cret", "people"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (recipe["checkpoint"], recipe["teacher_weights"]) == ("weights", "teacher.pth")
    images = metrics["per_class"][0]["images"]
    assert rf"| a \| b \# \<img src=x onerror=y\>\` | {images} |" in texts
    assert "Started from: the weights weights" in texts
    assert (
        "recipe.yaml --checkpoint WEIGHTS --teacher-weights WEIGHTS\n```\n\nThe run was extended at epoch 1"
        in texts
    )
    assert "**photos**" in texts
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "to-be-filled"
    assert card.data.eval_results[0].dataset_name == "photos"


def test_the_card_tells_what_was_measured_and_what_not() -> None:
    spec = get_task("classification")
    rows = [
        {"class": "cat", "images": 40, "precision": 90.0, "recall": 75.0, "f1": 81.8},
        {"class": "fox", "images": 3, "precision": 0.0, "recall": 0.0, "f1": 0.0},
    ]
    metrics = {
        "split": "val", "images": 43, "top1": 69.77, "top1_interval": [54.9, 81.4], "calibration_error": 4.2,
        "per_class": rows,
    }  # fmt: skip
    content = CardContent(
        spec, "me/pets", "mit", "me/photos", ["cat", "fox"], 123456, {"model": "attnet_t2"}, {"train": 1000},
        metrics,
    )  # fmt: skip
    card = model_card(content)
    assert r"| top-1 | 69.77 % \[54.9, 81.4\] |" in card.text
    low, high = wilson_interval(30, 40)
    assert f"| cat | 40 | 90.0 | 75.0 | 81.8 | {low:.1f} – {high:.1f} |" in card.text
    assert "chose the best epoch" in card.text
    assert "fewer than 20 images: fox." in card.text
    assert 'timm.create_model("hf-hub:me/pets", pretrained=True)' in card.text
    assert card.data.datasets == ["me/photos"]
    unmeasured = model_card(CardContent(spec, "pets", None, "photos", ["cat"], 1, {}, {}, {}))
    assert "Not measured." in unmeasured.text
    assert unmeasured.data.eval_results is None


def test_evaluations_on_other_data_stand_under_its_name(tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run(), tmp_path / "run"))
    metrics = json.loads((run / "metrics.json").read_text())
    for name, change in {
        "streets-test": {"top1": 12.5},
        "streets-test-2": {"top1": 13.5, "tta": "flip"},
    }.items():
        (run / "evaluation" / name).mkdir(parents=True)
        (run / "evaluation" / name / "metrics.json").write_text(json.dumps(metrics | change))
    card = ModelCard.load(Path(publish(run, str(tmp_path / "model"), dataset="photos")) / "README.md")
    top1 = [(r.dataset_name, r.metric_value) for r in card.data.eval_results if r.metric_type == "accuracy"]
    assert top1 == [("photos", round(metrics["top1"], 4)), ("streets-test", 12.5)]
    assert "images, test-time augmentation: flip" in card.text


def test_evaluations_with_a_verdict_are_in_the_card(tmp_path: Path) -> None:
    run = Path(shutil.copytree(generation_run(), tmp_path / "run"))
    measured = {"split": "train", "images": 500, "features": "Inception", "frechet_distance": 12.5}
    for name, more in (
        ("digits-train", {}),
        ("other-train", {"no_verdict": "poor", "frechet_distance": 9.0}),
    ):
        (run / "evaluation" / name).mkdir(parents=True)
        (run / "evaluation" / name / "metrics.json").write_text(json.dumps(measured | more))
    folder = Path(publish(run, str(tmp_path / "model")))
    card = ModelCard.load(folder / "README.md")
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["fid"] == 12.5
    assert "digits-train: train split, 500 images" in card.text
    assert "other-train" not in card.text


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in in place of Hugging Face."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_a_repository_is_made_and_opens_by_its_name(hub: Hub) -> None:
    ended = command("publish", trained_run(), "--to=hub:me/digits", "--license=mit", "--private")
    assert ended.code == 0, ended.err
    assert f"published to {hub.address}/me/digits" in ended.out + ended.err
    assert hub.private == {"me/digits"}
    assert set(hub.repositories["me/digits"]) == {
        "README.md", "recipe.yaml", "config.json", "model.safetensors", "per_class.csv", "confusion.png",
        "curves.png",
    }  # fmt: skip
    opened: Any = timm.create_model("hf-hub:me/digits", pretrained=True).eval()
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(opened(images), atconv.load(trained_run()).model(images))
    ended = command("publish", trained_run(), "--to=hub:me/digits", "--license=apache-2.0")
    assert (ended.code, TOKEN in ended.err) == (2, False)
    assert "hub:me/digits was not made: it exists already: --overwrite uploads into it" in ended.err
    ended = command("publish", trained_run(), "--to=hub:me/digits", "--license=apache-2.0", "--overwrite")
    assert ended.code == 0, ended.err
    assert b"license: apache-2.0" in hub.repositories["me/digits"]["README.md"]


@pytest.mark.parametrize("task", RUNS)
def test_every_block_of_a_card_runs(
    task: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(RUNS[task](), "hub:me/model", license="mit")
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 56), 90).save("image.jpg")
    text = hub.repositories["me/model"]["README.md"].decode()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spaces: list[dict[str, Any]] = [{} for _ in blocks]
    for (language, block), space in zip(blocks, spaces, strict=True):
        if language == "python":
            exec(block, space)
        else:
            program, *words, data, config, _ = block.split()
            assert (program, data) == ("atconv", "DATA")
            assert config in command(*words, "--help").out
    assert [language for language, _ in blocks][-1] == "bash"
    own, *libraries, _ = spaces
    assert len(libraries) == len(get_task(task).publication.libraries)
    predictor = atconv.load(RUNS[task]())
    if task == "generation":
        expected = [each.pixels.tobytes() for each in predictor()]
        assert [image.tobytes() for image in own["images"]] == expected
    else:
        assert own["results"] == predictor("image.jpg")
    if task == "classification":
        [result] = predictor("image.jpg")
        name, probability = capsys.readouterr().out.split()[-2:]  # after what was logged
        assert (name, float(probability)) == (
            result.classes[0],
            pytest.approx(result.probabilities[0], abs=1e-3),
        )
    if task in ("classification", "segmentation"):
        state = predictor.model.state_dict()
        found = libraries[0]["model"].state_dict()
        assert set(found) == set(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


def test_what_the_hub_rejects_is_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(trained_run(), str(tmp_path / "model"))
    with pytest.raises(RuntimeError, match=r'files were not uploaded.*"license" must be one of'):
        upload(tmp_path / "model", "me/unlicensed", private=False, overwrite=False)
    arguments = ("publish", trained_run(), "--to=hub:me/x", "--license=mit")
    for part, status, message in (
        ("create", 401, "was not made: the token is not accepted: log in again with hf auth login"),
        ("create", 403, "was not made: the token may not write there"),
        ("create", 500, "was not made: 500, the stand-in says 500"),
        ("preupload", 403, "is there, but the files were not uploaded (--overwrite tries again): the token"),
    ):
        hub.fails = {part: status}
        ended = command(*arguments)
        assert ended.code == 2
        assert message in ended.err
        assert len(ended.err.strip().splitlines()) == 1
        assert TOKEN not in ended.err
        hub.repositories.pop("me/x", None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ended = command(*arguments)
    assert ended.code == 2
    assert "was not made: " in ended.err
    assert "(asked http://127.0.0.1:9)" in ended.err
    monkeypatch.delenv("HF_TOKEN")
    ended = command(*arguments)
    assert "there is no token of Hugging Face: log in with hf auth login, or set HF_TOKEN" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to=hub:me/x"], "a repository needs --license, such as apache-2.0"),
        (["--to=hub:x", "--license=mit"], "a repository is named hub:USER/NAME, got hub:x"),
        (["--to=hub:a/b/c", "--license=mit"], "is no name of a repository"),
        (["--to=folder", "--private"], "private is for hub:USER/NAME, got --to folder"),
        ([f"--to={__file__}"], "is a file"),
        ([], "--to is missing: give a folder, or hub:USER/NAME"),
    ],
)
def test_bad_options_get_one_line(hub: Hub, options: list[str], message: str) -> None:
    ended = command("publish", trained_run(), *options)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert hub.asked == []
