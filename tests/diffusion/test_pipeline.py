"""The pipeline: labels, sizes, outputs, and a VAE behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from atconv.diffusion import SiTPipeline
from support.helpers import assert_close
from support.tiny import start_process
from support.tiny_sit import generation_run, preload, tiny_sit, unconditional_run
from support.tiny_vae import tiny_vae


def pipeline_of(vae: Any = None, **model: Any) -> SiTPipeline:
    channels = 1 if vae is None else 2
    sit = tiny_sit(**({"in_channels": channels, "learn_sigma": False} | model))
    pipeline = SiTPipeline(sit, vae=vae, sample_size=[8, 8], latent_scale=0.5, latent_shift=0.25)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: SiTPipeline, *arguments: Any, **options: Any) -> Tensor:
    found = pipeline(*arguments, **({"num_inference_steps": 3, "output_type": "latent"} | options)).images
    assert isinstance(found, Tensor)
    return found


# Labels.


def named() -> SiTPipeline:
    names = ["cat", "dog", "2", *(f"c{i}" for i in range(7))]
    pipeline = SiTPipeline(tiny_sit(in_channels=1), sample_size=[8, 8], class_names=names)
    assert pipeline.class_names == names
    return pipeline


def test_labels_are_numbers_or_names() -> None:
    pipeline = named()
    assert pipeline.check_labels(["dog", 3, "4", "2", "c0"]) == [1, 3, 4, 2, 3]
    assert pipeline.check_labels("cat") == [0]
    assert pipeline.check_labels(7) == [7]
    assert torch.equal(latents(pipeline, ["dog", 0]), latents(pipeline, [1, "cat"]))


@pytest.mark.parametrize("label", [10, -1, "bird", "10", "-1", ""])
def test_a_label_out_of_range_is_refused(label: Any) -> None:
    with pytest.raises(ValueError, match=r"no class .*: the model has 10, 0 \(cat\) to 9 \(c6\)"):
        named()([label])


def test_labels_are_asked_for_where_there_are_classes_and_refused_where_not() -> None:
    with pytest.raises(ValueError, match="give class_labels: numbers from 0 to 9"):
        named()()
    pipeline = pipeline_of(num_classes=0)
    with pytest.raises(ValueError, match="no classes: give num_images"):
        pipeline([1])
    assert latents(pipeline, num_images=3).shape == (3, 1, 8, 8)
    assert latents(pipeline).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="set guidance to 1"):
        pipeline(num_images=1, guidance_scale=2.0)


# Images.


def test_an_image_is_made_from_its_seed_and_place_alone() -> None:
    pipeline = pipeline_of()
    whole = latents(pipeline, [3, 7, 1], guidance_scale=2.0)
    assert_close(latents(pipeline, [3, 7, 1], guidance_scale=2.0, batch_size=1), whole, 1e-5)
    assert_close(latents(pipeline, [3], guidance_scale=2.0), whole[:1], 1e-5)
    assert not torch.allclose(latents(pipeline, [3], seed=1), latents(pipeline, [3]))


@pytest.mark.parametrize("channels", [1, 3])
def test_output_types_are_one_set_of_images(channels: int) -> None:
    pipeline = pipeline_of(in_channels=channels)
    samples = latents(pipeline, [1, 2])
    pixels = pipeline([1, 2], num_inference_steps=3, output_type="np").images
    assert isinstance(pixels, np.ndarray)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, 8, 8, channels))
    expected = ((samples.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels, expected)
    assert len(np.unique(pixels)) > 20
    pictures = pipeline([1, 2], num_inference_steps=3).images
    assert [picture.mode for picture in pictures] == [{1: "L", 3: "RGB"}[channels]] * 2
    assert isinstance(pictures[0], Image.Image)
    assert np.array_equal(np.asarray(pictures[1]).reshape(8, 8, channels), pixels[1])


def test_evaluations_are_told() -> None:
    assert pipeline_of()([1], num_inference_steps=5, sampler="heun", guidance_scale=3.0).evaluations == 10
    assert pipeline_of()([1], num_inference_steps=5, sampler="sde_euler").evaluations == 6


def test_other_sizes_are_drawn_where_the_patch_divides_them() -> None:
    pipeline = pipeline_of()
    assert latents(pipeline, [1], height=12).shape == (1, 1, 12, 8)
    assert latents(pipeline, [1], height=4, width=10).shape == (1, 1, 4, 10)
    for wrong in (7, 0, -2):
        with pytest.raises(ValueError, match=rf"sides that 2 divides \(patches of 2\), got {wrong}"):
            pipeline([1], width=wrong)


def test_sampler_options_reach_the_sampler() -> None:
    pipeline = pipeline_of()
    plain = latents(pipeline, [1], sampler="sde_euler")
    assert not torch.allclose(latents(pipeline, [1], sampler="sde_euler", last_step="none"), plain)
    with pytest.raises(ValueError, match="no sampler option stepz; there are atol"):
        pipeline([1], stepz=3)
    with pytest.raises(ValueError, match="no sampler 'ddim'"):
        pipeline([1], sampler="ddim")


def test_drawing_leaves_no_gradients_and_the_model_in_eval_mode() -> None:
    pipeline = pipeline_of()
    pipeline.transformer.train()
    assert not latents(pipeline, [1]).requires_grad
    assert not pipeline.transformer.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_dtypes_draw_nearly_the_same(dtype: torch.dtype) -> None:
    pipeline = pipeline_of()
    options: dict[str, Any] = dict(num_inference_steps=4, guidance_scale=2.0, output_type="latent")
    expected = pipeline([1, 2], **options).images
    drawn = pipeline.to(dtype)([1, 2], **options).images
    assert drawn.dtype == torch.float32
    assert_close(drawn, expected, 0.05)


def test_labels_may_be_a_tensor_or_an_array() -> None:
    pipeline = pipeline_of()
    assert pipeline.check_labels(torch.tensor([3, 7])) == pipeline.check_labels(np.array([3, 7])) == [3, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(class_labels=[]), "there must be an image"),
        (dict(class_labels=[1], batch_size=0), "there must be an image, and one in a batch"),
        (dict(class_labels=[1], num_images=3), "num_images is for models without classes"),
        (dict(class_labels=[1], output_type="pill"), "output_type must be pil, np or latent, got 'pill'"),
        (dict(class_labels=[1], steps=3), "no sampler option steps"),
        (dict(class_labels=[1], guidance_channels=0), "guidance_channels must be at least 1"),
    ],
)
def test_calls_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline_of()(**options)


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(ValueError, match="no path 'cosine'"):
        SiTPipeline(tiny_sit(), path="cosine")


# A VAE.


def test_latents_are_scaled_and_shifted_back_before_they_are_decoded() -> None:
    vae = tiny_vae()
    pipeline = pipeline_of(vae)
    samples = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        expected = vae.decode(samples / 0.5 + 0.25).sample
    pixels = pipeline.decode(samples)
    assert pixels.shape == (2, 16, 16, 3)
    expected = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)
    assert np.abs(pixels - expected.numpy()).max() <= 1  # rounding at .5


def test_sizes_are_of_images_and_not_of_latents() -> None:
    pipeline = pipeline_of(tiny_vae())
    pixels = pipeline([1], height=12, width=24, num_inference_steps=1, output_type="np").images
    assert pixels.shape == (1, 12, 24, 3)
    with pytest.raises(ValueError, match=r"4 divides \(patches of 2, 2 pixels a latent\), got 10"):
        pipeline([1], height=10)


# Saved and opened.


@pytest.mark.parametrize("with_vae", [False, True])
def test_a_saved_pipeline_opens_with_the_same_images(with_vae: bool, tmp_path: Path) -> None:
    pipeline = pipeline_of(tiny_vae() if with_vae else None, token_mixer="hybrid")
    pipeline.save_pretrained(tmp_path)
    opened = SiTPipeline.from_pretrained(tmp_path)
    assert isinstance(opened.transformer, nn.Module)
    assert (opened.vae is not None) == with_vae
    options: dict[str, Any] = dict(num_inference_steps=3, output_type="np")
    assert np.array_equal(opened([1, 5], **options).images, pipeline([1, 5], **options).images)


def draw_elsewhere(run: Path, out: Path) -> None:
    images = SiTPipeline.from_pretrained(run)([3, 7], guidance_scale=2.0, num_inference_steps=4).images
    np.save(out, np.stack([np.asarray(image) for image in images]))


def test_a_run_opens_in_another_process_with_the_same_images(tmp_path: Path) -> None:
    preload()
    process = start_process(draw_elsewhere, generation_run(), tmp_path / "elsewhere.npy")
    process.join(120)
    assert process.exitcode == 0
    draw_elsewhere(generation_run(), tmp_path / "here.npy")
    assert np.array_equal(np.load(tmp_path / "elsewhere.npy"), np.load(tmp_path / "here.npy"))


def test_a_run_without_classes_draws_as_many_images_as_asked() -> None:
    pipeline = SiTPipeline.from_pretrained(unconditional_run())
    assert len(pipeline(num_images=3, num_inference_steps=2).images) == 3
    with pytest.raises(ValueError, match="no classes"):
        pipeline([0])
