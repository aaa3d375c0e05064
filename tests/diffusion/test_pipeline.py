"""The pipeline: labels, sizes, outputs, and a VAE behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from atconv.diffusion import Field, ODEScheduler, SDEScheduler, SiTPipeline, make_interpolant
from support.helpers import assert_close
from support.tiny import start_process
from support.tiny_sit import generation_run, tiny_sit, unconditional_run
from support.tiny_vae import tiny_vae


def pipeline_of(vae: Any = None, **model: Any) -> SiTPipeline:
    channels = 1 if vae is None else 2
    sit = tiny_sit(**({"in_channels": channels, "learn_sigma": False} | model))
    pipeline = SiTPipeline(sit, vae=vae, sample_size=[8, 8])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: SiTPipeline, *arguments: Any, **options: Any) -> Tensor:
    """Images in the model's units, each from a generator of its own."""
    options = {"num_inference_steps": 3, "output_type": "latent"} | options
    count = len(arguments[0]) if arguments else 1
    count *= options.get("num_images_per_prompt", 1)
    samples = pipeline(*arguments, **({"generator": generators(count)} | options)).images
    assert isinstance(samples, Tensor)
    return samples


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


# Labels.


def named() -> SiTPipeline:
    names = ["cat", "dog", "2", *(f"c{i}" for i in range(7))]
    pipeline = SiTPipeline(tiny_sit(in_channels=1), sample_size=[8, 8], class_names=names)
    assert pipeline.class_names == names
    return pipeline


def test_labels_are_numbers_or_names() -> None:
    pipeline = named()
    assert pipeline.get_label_ids(["dog", 3, "4", "2", "c0"]) == [1, 3, 4, 2, 3]
    assert pipeline.get_label_ids("cat") == [0]
    assert pipeline.get_label_ids(7) == [7]
    assert torch.equal(latents(pipeline, ["dog", 0]), latents(pipeline, [1, "cat"]))


@pytest.mark.parametrize("label", [10, -1, "bird", "10", "-1", ""])
def test_a_label_out_of_range_is_rejected(label: Any) -> None:
    with pytest.raises(ValueError, match=r"no class .*: the model has 10, 0 \(cat\) to 9 \(c6\)"):
        named()([label])


def test_labels_are_required_where_there_are_classes_and_rejected_where_not() -> None:
    with pytest.raises(ValueError, match="give class_labels: numbers from 0 to 9"):
        named()()
    pipeline = pipeline_of(num_classes=0)
    with pytest.raises(ValueError, match="no classes: give num_images_per_prompt"):
        pipeline([1])
    assert latents(pipeline, num_images_per_prompt=3).shape == (3, 1, 8, 8)
    assert latents(pipeline).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="set guidance to 1"):
        pipeline(guidance_scale=2.0)


# Images.


def test_an_image_depends_on_its_own_generator_alone() -> None:
    pipeline = pipeline_of()
    three = latents(pipeline, [3, 7, 1], guidance_scale=2.0)
    assert_close(latents(pipeline, [3, 7, 1], guidance_scale=2.0, batch_size=1), three, 1e-5)
    assert_close(latents(pipeline, [3], guidance_scale=2.0), three[:1], 1e-5)
    assert not torch.allclose(latents(pipeline, [3], generator=generators(1, seed=1)), latents(pipeline, [3]))


def test_one_generator_makes_all_images_deterministic() -> None:
    pipeline = pipeline_of()
    both = [latents(pipeline, [3, 7], generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*both)
    assert not torch.equal(both[0][0], both[0][1])


def test_several_images_are_made_for_each_label() -> None:
    pipeline = pipeline_of()
    expected = latents(pipeline, [3, 3, 7, 7], guidance_scale=2.0)
    assert_close(latents(pipeline, [3, 7], num_images_per_prompt=2, guidance_scale=2.0), expected, 1e-5)


def test_noise_may_come_from_elsewhere() -> None:
    pipeline = pipeline_of()
    noise = torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators(3)])
    assert_close(
        latents(pipeline, [3, 7, 1], latents=noise, batch_size=2), latents(pipeline, [3, 7, 1]), 1e-5
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_output_types_are_one_set_of_images(channels: int) -> None:
    pipeline = pipeline_of(in_channels=channels)

    def images(output_type: str) -> Any:
        return pipeline(
            [1, 2], num_inference_steps=3, output_type=output_type, generator=generators(2)
        ).images

    samples, pixels = latents(pipeline, [1, 2]), images("np")
    assert isinstance(pixels, np.ndarray)
    assert (pixels.dtype, pixels.shape) == (np.float32, (2, 8, 8, channels))
    unit = (samples.clamp(-1, 1) + 1) / 2
    assert np.array_equal(pixels, unit.permute(0, 2, 3, 1).numpy())
    assert torch.equal(images("pt"), unit)
    pil = images("pil")
    assert [image.mode for image in pil] == [{1: "L", 3: "RGB"}[channels]] * 2
    assert isinstance(pil[0], Image.Image)
    expected = ((samples.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.asarray(pil[1]).reshape(8, 8, channels), expected[1])
    assert len(np.unique(expected)) > 20


def test_the_output_is_a_tuple_where_no_dict_is_wanted() -> None:
    output = pipeline_of()([1], num_inference_steps=2, return_dict=False)
    assert isinstance(output, tuple)
    assert isinstance(output[0][0], Image.Image)


def test_evaluations_are_counted() -> None:
    pipeline = pipeline_of()
    assert pipeline([1], num_inference_steps=5, guidance_scale=3.0).evaluations == 10
    pipeline.scheduler = SDEScheduler()
    assert pipeline([1], num_inference_steps=5).evaluations == 6


def test_callbacks_come_after_every_step_and_may_change_the_latents() -> None:
    def zero_at_the_end(
        pipe: SiTPipeline, step: int, t: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        calls.append((step, float(t), tuple(tensors["latents"].shape)))
        return {"latents": 0 * tensors["latents"]} if step == 2 else {}

    pipeline = pipeline_of()
    calls: list[Any] = []
    samples = latents(pipeline, [1, 2, 3], batch_size=2, callback_on_step_end=zero_at_the_end)
    times = [float(t) for t in pipeline.scheduler.timesteps]
    expected = [(i, t, (2, 1, 8, 8)) for i, t in enumerate(times)]
    assert calls == expected + [(i, t, (1, 1, 8, 8)) for i, t in enumerate(times)]
    assert not samples.any()
    with pytest.raises(ValueError, match=r"callbacks take \['latents'\], got \['noise'\]"):
        pipeline([1], callback_on_step_end_tensor_inputs=["noise"])


def test_a_callback_may_change_the_guidance_of_the_steps_that_follow() -> None:
    """As diffusers' own callbacks do it: through the pipeline's _guidance_scale."""

    def guide_more(pipe: SiTPipeline, step: int, t: Tensor, tensors: dict[str, Tensor]) -> None:
        scales.append(pipe.guidance_scale)
        pipe._guidance_scale = 3.0

    pipeline = pipeline_of()
    pipeline.scheduler = ODEScheduler(method="euler")
    scales: list[float] = []
    samples = latents(pipeline, [1, 2, 3], batch_size=2, callback_on_step_end=guide_more)
    assert scales == [1.0, 3.0, 3.0] * 2
    assert pipeline.num_timesteps == 3
    end = 0.34  # after the first of three steps
    expected = latents(pipeline, [1, 2, 3], guidance_scale=3.0, guidance_interval=(end - 0.1, 1.0))
    assert_close(samples, expected, 1e-5)


def test_a_callback_may_return_nothing_and_no_tensor() -> None:
    pipeline = pipeline_of()
    expected = latents(pipeline, [1])
    assert torch.equal(latents(pipeline, [1], callback_on_step_end=lambda *_: None), expected)
    with pytest.raises(TypeError, match=r"must return tensors by name.*it returned a Tensor"):
        pipeline([1], callback_on_step_end=lambda *_: torch.zeros(1))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "name", ["num_inference_steps", "num_images_per_prompt", "batch_size", "height", "width"]
)
def test_numbers_that_count_are_whole(name: str) -> None:
    options: dict[str, Any] = {name: 8.0}
    with pytest.raises(TypeError, match=rf"{name} must be a whole number, got 8\.0"):
        pipeline_of()([1], **options)


def test_the_progress_bar_counts_the_steps_of_all_batches(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = pipeline_of()
    pipeline.set_progress_bar_config(disable=False)
    latents(pipeline, [1, 2, 3], batch_size=2)
    assert "6/6" in capsys.readouterr().err


def test_other_sizes_are_sampled_where_the_patch_divides_them() -> None:
    pipeline = pipeline_of()
    assert latents(pipeline, [1], height=12).shape == (1, 1, 12, 8)
    assert latents(pipeline, [1], height=4, width=10).shape == (1, 1, 4, 10)
    for wrong in (7, 0, -2):
        with pytest.raises(ValueError, match=rf"sizes that 2 divides \(patches of 2\), got {wrong}"):
            pipeline([1], width=wrong)


def test_schedulers_are_swapped() -> None:
    pipeline = pipeline_of()
    pipeline.scheduler = SDEScheduler.from_config(pipeline.scheduler.config)
    plain = latents(pipeline, [1])
    pipeline.scheduler = SDEScheduler(last_step="none")
    assert not torch.allclose(latents(pipeline, [1]), plain)
    pipeline.scheduler = ODEScheduler(interpolant="gvp")
    with pytest.raises(
        ValueError, match=r"this model has 'linear' and predicts velocity: use ODEScheduler\.from"
    ):
        pipeline([1])


def test_sampling_leaves_no_gradients_and_the_model_in_eval_mode() -> None:
    pipeline = pipeline_of()
    pipeline.transformer.train()
    assert not latents(pipeline, [1]).requires_grad
    assert not pipeline.transformer.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_dtypes_sample_nearly_the_same(dtype: torch.dtype) -> None:
    pipeline = pipeline_of()
    options: dict[str, Any] = dict(num_inference_steps=4, guidance_scale=2.0)
    expected = latents(pipeline, [1, 2], **options)
    samples = latents(pipeline.to(dtype), [1, 2], **options)
    assert samples.dtype == torch.float32
    assert_close(samples, expected, 0.05)


def test_labels_may_be_a_tensor_or_an_array() -> None:
    pipeline = pipeline_of()
    assert pipeline.get_label_ids(torch.tensor([3, 7])) == pipeline.get_label_ids(np.array([3, 7])) == [3, 7]
    assert pipeline.get_label_ids([[3], ["7"]]) == [3, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(class_labels=[]), "there must be an image"),
        (dict(class_labels=[1], batch_size=0), "there must be an image, and one in a batch"),
        (dict(class_labels=[1], num_images_per_prompt=0), "there must be an image"),
        (dict(class_labels=[1], generator=generators(3)), "one generator for each of 1 images, got 3"),
        (dict(class_labels=[1], latents=torch.zeros(1, 3, 8, 8)), r"latents must be \(1, 1, 8, 8\), got"),
        (dict(class_labels=[1], output_type="pill"), "output_type must be pil, np, pt or latent, got 'pill'"),
        (dict(class_labels=[1], num_inference_steps=0), "steps must be at least 1"),
        (
            dict(class_labels=[1], guidance_scale=float("nan")),
            "guidance must be finite and not",
        ),
        (
            dict(class_labels=[1], guidance_scale=float("inf")),
            "guidance must be finite and not",
        ),
        (dict(class_labels=[1], guidance_scale=-3.0), "guidance must be finite and not negative, got -3.0"),
        (dict(class_labels=[1], guidance_channels=9), "guidance_channels must be at most 1, the model's"),
        (dict(class_labels=[1], guidance_channels=0), "guidance_channels must be at least 1"),
    ],
)
def test_calls_that_make_no_sense_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline_of()(**options)


def test_an_unknown_interpolant_is_rejected() -> None:
    with pytest.raises(ValueError, match="no interpolant 'cosine'"):
        SiTPipeline(tiny_sit(), interpolant="cosine")


# A VAE.


def test_latents_are_scaled_and_shifted_back_before_they_are_decoded() -> None:
    vae = tiny_vae(scaling_factor=0.5, shift_factor=0.25)
    pipeline = pipeline_of(vae)
    samples = latents(pipeline, [1, 2])
    with torch.no_grad():
        expected = vae.decode(samples / 0.5 + 0.25).sample
    images = pipeline([1, 2], num_inference_steps=3, generator=generators(2), output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    assert_close(images, (expected.clamp(-1, 1) + 1) / 2, 1e-5)


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
    pipeline.scheduler = SDEScheduler(solver="heun", last_step="tweedie")
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "scheduler" / "scheduler_config.json").is_file()
    opened = SiTPipeline.from_pretrained(tmp_path)
    assert isinstance(opened.transformer, nn.Module)
    assert (opened.vae is not None) == with_vae
    assert isinstance(opened.scheduler, SDEScheduler)
    assert (opened.scheduler.config.solver, opened.scheduler.config.last_step) == ("heun", "tweedie")
    options: dict[str, Any] = dict(num_inference_steps=3, output_type="np")
    images, expected = (
        pipe([1, 5], generator=generators(2), **options).images for pipe in (opened, pipeline)
    )
    assert np.array_equal(images, expected)


def test_the_components_make_another_pipeline() -> None:
    pipeline = pipeline_of(tiny_vae())
    again = SiTPipeline(**pipeline.components, sample_size=[8, 8])
    again.set_progress_bar_config(disable=True)
    assert torch.equal(latents(again, [1, 5]), latents(pipeline, [1, 5]))


def test_a_variant_is_opened_by_its_name_alone(tmp_path: Path) -> None:
    pipeline = pipeline_of(tiny_vae())
    pipeline.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ValueError, match="variant=bf16"):
        SiTPipeline.from_pretrained(tmp_path, variant="bf16")
    opened = SiTPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert opened.transformer.dtype == opened.vae.dtype == torch.float16


def test_a_component_is_replaced_where_a_pipeline_is_opened(tmp_path: Path) -> None:
    pipeline_of(tiny_vae()).save_pretrained(tmp_path)
    scheduler = SDEScheduler(solver="heun")
    opened = SiTPipeline.from_pretrained(tmp_path, vae=None, scheduler=scheduler)
    assert (opened.vae, opened.scheduler) == (None, scheduler)
    opened.save_pretrained(tmp_path / "again")
    assert SiTPipeline.from_pretrained(tmp_path / "again").vae is None


def test_diffusers_own_class_opens_a_run_where_it_does_not_know_ours(tmp_path: Path) -> None:
    """In a process that never imported atconv, as DiffusionPipeline opens pipelines of others."""
    code = (
        "import sys; from diffusers import DiffusionPipeline; assert 'atconv' not in sys.modules\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "from atconv.diffusion import ODEScheduler, SiTPipeline\n"
        "assert isinstance(pipe, SiTPipeline) and isinstance(pipe.scheduler, ODEScheduler)\n"
        "print(len(pipe([3], num_inference_steps=2).images))\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code, str(generation_run())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_diffusers_own_class_says_how_it_opens_a_run() -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(generation_run())


def test_no_code_of_a_folder_is_run_to_open_it(tmp_path: Path) -> None:
    pipeline_of().save_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text("raise SystemExit('run')")
    opened = SiTPipeline.from_pretrained(tmp_path)
    opened.save_pretrained(tmp_path / "again")
    assert isinstance(SiTPipeline.from_pretrained(tmp_path / "again"), SiTPipeline)


def test_a_model_whose_weights_are_stored_smaller_samples() -> None:
    pipeline = pipeline_of().to(torch.bfloat16)
    expected = latents(pipeline, [1, 2])
    pipeline.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert pipeline.transformer.blocks[0].mlp.fc1.weight.dtype == torch.float8_e4m3fn
    assert_close(latents(pipeline, [1, 2]), expected, 0.3)


def sample_elsewhere(run: Path, out: Path) -> None:
    pipeline = SiTPipeline.from_pretrained(run)
    images = pipeline([3, 7], guidance_scale=2.0, num_inference_steps=4, generator=generators(2)).images
    np.save(out, np.stack([np.asarray(image) for image in images]))


def test_a_run_opens_in_another_process_with_the_same_images(tmp_path: Path) -> None:
    process = start_process(sample_elsewhere, generation_run(), tmp_path / "elsewhere.npy")
    process.join(120)
    assert process.exitcode == 0
    sample_elsewhere(generation_run(), tmp_path / "here.npy")
    assert np.array_equal(np.load(tmp_path / "elsewhere.npy"), np.load(tmp_path / "here.npy"))


def test_a_run_without_classes_samples_as_many_images_as_asked() -> None:
    pipeline = SiTPipeline.from_pretrained(unconditional_run())
    assert len(pipeline(num_images_per_prompt=3, num_inference_steps=2).images) == 3
    with pytest.raises(ValueError, match="no classes"):
        pipeline([0])


# Schedulers of diffusers.


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    ],
    ids=["DDIM", "DPM without flow", "dynamic shifting", "inverted"],
)
def test_schedulers_of_other_kinds_are_rejected_with_those_that_fit(scheduler: Any) -> None:
    pipeline = pipeline_of()
    pipeline.scheduler = scheduler
    with pytest.raises(ValueError, match=r"ODEScheduler or SDEScheduler.*or with a flow-matching scheduler"):
        pipeline([0])


@pytest.mark.parametrize("prediction", ["velocity", "noise"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_by_eulers_method_is_the_loop_over_its_noise_levels(
    shift: float, prediction: Any
) -> None:
    pipeline = SiTPipeline(tiny_sit(in_channels=1), sample_size=[8, 8], prediction=prediction)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    samples = latents(pipeline, [1, 2], num_inference_steps=4, guidance_scale=2.0)
    linear, labels = make_interpolant("linear"), torch.tensor([1, 2])
    field = Field(pipeline.transformer, linear, prediction, labels, guidance_scale=2.0)
    x = torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators(2)])
    with torch.no_grad():
        for sigma, following in pairwise(pipeline.scheduler.sigmas):
            x = x + (sigma - following) * field(1 - sigma, x)  # t = 1 − σ
    assert_close(samples, x, 1e-5)


FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
        diffusers.FlowMatchHeunDiscreteScheduler(),
        diffusers.DPMSolverMultistepScheduler(**FLOW),
        diffusers.UniPCMultistepScheduler(**FLOW),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_flow_matching_schedulers_reach_what_our_own_reach(scheduler: Any) -> None:
    pipeline = pipeline_of()
    expected = latents(pipeline, [1, 2, 3], num_inference_steps=60)
    pipeline.scheduler = scheduler
    samples = latents(pipeline, [1, 2, 3], num_inference_steps=60, batch_size=2)
    assert_close(samples, expected, 0.05)


def test_a_pipeline_with_a_flow_matching_scheduler_saves_and_opens(tmp_path: Path) -> None:
    pipeline = pipeline_of()
    pipeline.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0)
    pipeline.save_pretrained(tmp_path)
    opened = SiTPipeline.from_pretrained(tmp_path)
    assert isinstance(opened.scheduler, diffusers.FlowMatchHeunDiscreteScheduler)
    opened.set_progress_bar_config(disable=True)
    assert_close(latents(opened, [1]), latents(pipeline, [1]), 1e-5)


def test_flow_matching_is_for_the_linear_interpolant() -> None:
    pipeline = SiTPipeline(tiny_sit(in_channels=1), sample_size=[8, 8], interpolant="gvp")
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="is for the interpolant 'linear', and this model has 'gvp'"):
        pipeline([0])
