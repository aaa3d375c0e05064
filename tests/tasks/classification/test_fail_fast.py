"""What is wrong with an option is said before data is read; batches are large enough for batch norm."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from atconv.models.backbone import min_batch
from atconv.tasks.classification import task
from atconv.tasks.classification.model import check_model
from support.tiny import TINY_ARGS, image_folder, read_rows, tiny_config, train_tiny, trained_run


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Weights that cannot be read, and a run, by name."""
    run = Path(shutil.copytree(trained_run(), tmp_path / "spoiled"))
    (run / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "weights.pth").write_bytes(b"damaged")
    return {"run": str(run), "file": str(tmp_path / "weights.pth"), "trained": str(trained_run())}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "attnet_t9"}, "timm knows no model 'attnet_t9'"),
        ({"model_args": {"stem": 3}}, "does not take model_args"),
        ({"model_args": {"stem_stride": 3}}, "stem_stride must be 4, 2 or 1"),
        ({"auto_augment": "nosuch"}, "timm does not take auto_augment 'nosuch'"),
        ({"in_chans": 2}, r"in_chans must be 3 \(color\) or 1 \(gray\), got 2"),
        ({"checkpoint": "none.pth"}, r"no such file or run: none\.pth"),
        ({"checkpoint": "run"}, "is damaged"),
        ({"checkpoint": "file"}, r"weights\.pth"),
        ({"distill": "soft", "teacher": "nosuch"}, "teacher 'nosuch' cannot be loaded"),
        ({"distill": "soft", "teacher": "run"}, "is damaged"),
        ({"distill": "soft", "teacher": "trained", "in_chans": 3}, "reads 1 channels, the student 3"),
        ({"model": "vit_tiny_patch16_224", "model_args": {}}, "does not take images of 8 × 8 pixels"),
        ({"model": "resnet10t", "model_args": {}, "checkpoint": "file"}, "is a run's folder"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_said_before_data_is_read(
    tmp_path: Path,
    weights: dict[str, str],
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def touched(*_: Any) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(task, "open_splits", touched)
    for name in {"checkpoint", "teacher"} & set(changes):
        changes = changes | {name: weights.get(changes[name], changes[name])}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_tiny(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("attnet_xxs", TINY_ARGS),
        ("attnet_xxs", TINY_ARGS | {"stem_stride": 4}),
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 64}),
        ("levit_128s", {}),
    ],
)
def test_a_batch_is_too_small_where_torch_says_so(name: str, arguments: dict[str, Any], size: int) -> None:
    shape = (3, size, size)
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    real = timm.create_model(name, **arguments).train()
    try:
        real(torch.zeros(2, *shape))
    except Exception:  # whatever the model raises
        with pytest.raises(ValueError, match=f"{name} does not take images of {size} × {size} pixels"):
            min_batch(model.train(), name, shape)
        return
    if min_batch(model.train(), name, shape) == 1:
        real(torch.zeros(1, *shape))
        return
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        real(torch.zeros(1, *shape))


def test_frozen_batch_norm_takes_one_image() -> None:
    options: dict[str, Any] = {"model": "resnet10t", "model_args": {}}
    assert check_model(tiny_config(**options), load_weights=True) == 2
    assert check_model(tiny_config(**options, freeze_bn=True), load_weights=True) == 1
    assert check_model(tiny_config(**options, freeze_backbone=True), load_weights=True) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_one_image_a_micro_batch_is_too_few_for_batch_norm(
    tmp_path: Path, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "atconv")
    data = image_folder(tmp_path / "data", {"ant": 8, "bee": 8})
    options: dict[str, Any] = {"data": str(data), "in_chans": 3, "model": "resnet10t", "model_args": {}}
    options |= {"test_fraction": 0.2, "batch_size": batch_size, "base_batch_size": 4}
    run = train_tiny(tmp_path / "run", **options)
    assert len(read_rows(run / "metrics.csv")) == 1
    said = "batch norm needs 2 images in a micro-batch, batch_size is 1" in caplog.text
    assert said == (batch_size == 1)


def test_weights_of_the_release_are_read_before_data_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("attnet_xxs", **TINY_ARGS, in_chans=1, num_classes=5)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    check_model(tiny_config(checkpoint=str(tmp_path / "weights.pth")), load_weights=True)
    assert not caplog.text
