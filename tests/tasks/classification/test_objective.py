from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import atconv
from atconv.tasks.classification.config import ClassificationConfig
from atconv.tasks.classification.objective import (
    Objective,
    Teacher,
    distillation_loss,
    dkd_loss,
    match_teacher,
    open_teacher,
)
from support.tiny import tiny_config, trained_run

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(6, 5)) * 2, RNG.normal(size=(6, 5)) * 3
LABELS = np.array([0, 1, 2, 3, 4, 0])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergence(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    """KL(q ‖ p) over the last axis."""
    return (q * (np.log(q) - np.log(p))).sum(-1)


def tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_distillation_is_the_divergence_from_the_teacher(temperature: float) -> None:
    expected = (
        temperature**2 * divergence(softmax(TEACHER / temperature), softmax(STUDENT / temperature)).mean()
    )
    loss = distillation_loss(tensor(STUDENT), tensor(TEACHER), "soft", temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_hard_distillation_is_cross_entropy_with_the_teachers_decision() -> None:
    expected = -np.log(softmax(STUDENT))[np.arange(6), TEACHER.argmax(1)].mean()
    assert float(distillation_loss(tensor(STUDENT), tensor(TEACHER), "hard")) == pytest.approx(
        expected, rel=1e-12
    )


def dkd_by_hand(alpha: float, beta: float, temperature: float) -> float:
    """Zhao et al. (2022), equations 1–7, one sample at a time: T² (α TCKD + β NCKD)."""
    losses = []
    for student, teacher, label in zip(STUDENT, TEACHER, LABELS, strict=True):
        p, q = softmax(student / temperature), softmax(teacher / temperature)
        others = [i for i in range(len(p)) if i != label]
        tckd = divergence(np.array([q[label], q[others].sum()]), np.array([p[label], p[others].sum()]))
        nckd = divergence(q[others] / q[others].sum(), p[others] / p[others].sum())
        losses.append(temperature**2 * (alpha * tckd + beta * nckd))
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature"), [(1.0, 4.0, 4.0), (1.0, 0.0, 1.0), (0.0, 1.0, 2.0)]
)
def test_dkd_is_the_papers_formula(alpha: float, beta: float, temperature: float) -> None:
    loss = dkd_loss(tensor(STUDENT), tensor(TEACHER), tensor(LABELS), alpha, beta, temperature)
    assert float(loss) == pytest.approx(dkd_by_hand(alpha, beta, temperature), rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(shift: float) -> None:
    student = (tensor(TEACHER) + shift).requires_grad_()
    for loss in (
        distillation_loss(student, tensor(TEACHER), "soft", 2.0),
        dkd_loss(student, tensor(TEACHER), tensor(LABELS), 1.0, 4.0, 4.0),
    ):
        assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
        [gradient] = torch.autograd.grad(loss, student)
        assert gradient.abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["soft", "dkd"])
def test_very_sure_logits_give_a_finite_loss_and_gradient(kind: str) -> None:
    student = torch.tensor([[300.0, -300, 0, 0, 0], [0, 0, 0, 0, 300]], requires_grad=True)
    teacher = -student.detach()
    loss = (
        distillation_loss(student, teacher, "soft")
        if kind == "soft"
        else dkd_loss(student, teacher, torch.tensor([0, 4]), 1.0, 4.0, 4.0)
    )
    [gradient] = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


class Fixed(nn.Module):
    """A model that has fixed logits and remembers its input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone().float())
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.logits[: len(x)]


IMAGES = torch.rand(6, 1, 8, 8)


def names(count: int) -> list[str]:
    """Classes of the digits and more."""
    return [str(i) for i in range(count)]


def make_teacher(config: ClassificationConfig, classes: list[str]) -> Teacher:
    return match_teacher(config, open_teacher(config), classes)


def loss_of(
    model: nn.Module | None = None, classes: int = 5, labels: Any = None, seed: int = 0, **options: Any
) -> Tensor:
    objective = Objective(tiny_config(**({"label_smoothing": 0.0} | options)), names(classes), labels)
    model = Fixed(tensor(STUDENT)) if model is None else model
    # A clone, for mixing works in place.
    return objective(model, IMAGES.clone(), tensor(LABELS), seed)[0].detach()


def test_label_smoothing_moves_a_share_of_the_target_to_all_classes() -> None:
    targets = 0.9 * np.eye(5)[LABELS] + 0.1 / 5
    expected = -(targets * np.log(softmax(STUDENT))).sum(1).mean()
    assert float(loss_of(label_smoothing=0.1)) == pytest.approx(expected, rel=1e-5)


def test_balanced_class_weights_are_inverse_to_frequency() -> None:
    training = [0] * 10 + [1] * 5 + [2] * 5 + [3] * 40 + [4] * 40
    weights = 100 / (5 * np.array([10, 5, 5, 40, 40]))
    losses = -np.log(softmax(STUDENT))[np.arange(6), LABELS]
    expected = (weights[LABELS] * losses).sum() / weights[LABELS].sum()
    assert float(loss_of(labels=training, class_weights="inverse")) == pytest.approx(expected, rel=1e-5)
    assert float(loss_of(labels=training)) == pytest.approx(losses.mean(), rel=1e-5)


def test_a_class_without_training_images_does_not_spoil_the_weights() -> None:
    assert loss_of(labels=[0, 1, 2, 3], class_weights="inverse").isfinite()


def test_class_weights_need_labels() -> None:
    with pytest.raises(ValueError, match="class_weights needs labels"):
        loss_of(class_weights="inverse")


def mixed(seed: int) -> Tensor:
    model = Fixed(tensor(STUDENT))
    loss_of(model, seed=seed, mixup=0.8, cutmix=1.0)
    assert model.seen is not None
    return model.seen


def test_mixing_follows_from_its_seed() -> None:
    assert torch.equal(mixed(1), mixed(1))
    assert not torch.equal(mixed(1), mixed(2))
    assert not torch.equal(mixed(1), IMAGES)


def test_mixing_leaves_the_generators_alone() -> None:
    before = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    mixed(3)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002


def test_without_mixing_a_model_sees_the_batch() -> None:
    model = Fixed(tensor(STUDENT))
    loss_of(model)
    assert model.seen is not None
    assert torch.equal(model.seen, IMAGES)


@pytest.fixture
def teachers() -> dict[str, Any]:
    return {"teacher": str(trained_run()), "label_smoothing": 0.1}


def digits_loss(**options: Any) -> tuple[Objective, Tensor, Fixed]:
    config = tiny_config(**options)
    objective = Objective(config, names(10), None, open_teacher(config))
    model = Fixed(torch.randn(6, 10, generator=torch.Generator().manual_seed(1)))
    return objective, objective(model, IMAGES, tensor(LABELS), 0)[0], model


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation_shares_the_loss(teachers: dict[str, Any], kind: str) -> None:
    _, base, _ = digits_loss(label_smoothing=0.1)
    objective, loss, model = digits_loss(
        distill=kind, distill_weight=0.3, distill_temperature=2.0, **teachers
    )
    assert objective.teacher is not None
    extra = distillation_loss(model.logits, objective.teacher(IMAGES), kind, 2.0)
    assert float(loss.detach()) == pytest.approx(float((0.7 * base + 0.3 * extra).detach()), rel=1e-5)


def test_dkd_is_added_to_the_loss(teachers: dict[str, Any]) -> None:
    _, base, _ = digits_loss(label_smoothing=0.1)
    objective, loss, model = digits_loss(distill="dkd", **teachers)
    assert objective.teacher is not None
    extra = dkd_loss(model.logits, objective.teacher(IMAGES), tensor(LABELS), 1.0, 4.0, 4.0)
    assert float(loss.detach()) == pytest.approx(float((base + extra).detach()), rel=1e-5)


@pytest.mark.parametrize("kind", ["soft", "hard", "dkd"])
def test_the_teacher_stays_as_it_is(teachers: dict[str, Any], kind: str) -> None:
    objective, loss, model = digits_loss(distill=kind, **teachers)
    assert objective.teacher is not None
    before = {name: t.clone() for name, t in objective.teacher.state_dict().items()}
    loss.backward()
    assert model.logits.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert not any(module.training for module in objective.teacher.model.modules())
    assert all(torch.equal(t, before[name]) for name, t in objective.teacher.state_dict().items())


def test_a_teacher_stays_in_eval_mode_when_the_objective_is_trained(teachers: dict[str, Any]) -> None:
    objective, _, _ = digits_loss(distill="soft", **teachers)
    assert objective.teacher is not None
    before = objective.teacher(IMAGES)
    objective.train()
    assert torch.equal(objective.teacher(IMAGES), before)


def test_a_teacher_from_a_run_answers_as_the_run_does() -> None:
    model = atconv.load(trained_run()).model
    teacher = make_teacher(tiny_config(distill="soft", teacher=str(trained_run())), names(10))
    torch.testing.assert_close(teacher(IMAGES), model(IMAGES).detach())


def test_classes_of_a_teacher_are_matched_by_name() -> None:
    model, config = atconv.load(trained_run()).model, tiny_config(distill="soft", teacher=str(trained_run()))
    backwards = names(10)[::-1]
    teacher = make_teacher(config, backwards)
    torch.testing.assert_close(teacher(IMAGES), model(IMAGES).detach().flip(1))
    with pytest.raises(
        ValueError, match=r"other classes than the data: cat, dog are missing, it has 8, 9 inst"
    ):
        make_teacher(config, [*names(8), "cat", "dog"])
    assert make_teacher(config, names(10)[6:3:-1]).order.tolist() == [6, 5, 4]  # type: ignore[union-attr]
    model.pretrained_cfg["label_names"] = [*names(9), "0"]
    with pytest.raises(ValueError, match="has several classes of one name: 0"):
        match_teacher(config, model, names(8))
    model.pretrained_cfg["label_names"] = None
    with pytest.raises(ValueError, match="knows 10 classes without names, the data has 7: take a run"):
        match_teacher(config, model, names(7))


def test_weights_of_a_teacher_that_has_its_own_are_rejected() -> None:
    config = tiny_config(distill="soft", teacher=str(trained_run()), teacher_weights="nofile")
    with pytest.raises(ValueError, match="teacher_weights are for a teacher by timm's name"):
        open_teacher(config)


def test_a_teacher_that_names_no_classes_is_taken_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t", num_classes=1000).state_dict(), weights)
    config = tiny_config(distill="soft", teacher="resnet10t", teacher_weights=str(weights), in_chans=3)
    assert make_teacher(config, names(1000)).order is None
    assert "'resnet10t' does not name its classes: its outputs are taken in the order" in caplog.text


def test_a_teacher_sees_the_same_image_in_its_own_normalization() -> None:
    image = torch.rand(2, 3, 8, 8)
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    students = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def normalized(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return (image - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    model = Fixed(torch.zeros(2, 3))
    model.pretrained_cfg = {"input_size": (3, 8, 8), **own}
    Teacher(model, **students)(normalized(**students))
    assert model.seen is not None
    torch.testing.assert_close(model.seen, normalized(**own))


def test_a_teacher_of_fixed_size_gets_images_of_that_size() -> None:
    model = Fixed(torch.zeros(2, 3))
    model.pretrained_cfg = {
        "input_size": (3, 16, 16),
        "fixed_input_size": True,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    Teacher(model, (0.5,) * 3, (0.5,) * 3)(torch.rand(2, 3, 8, 8))
    assert model.seen is not None
    assert model.seen.shape == (2, 3, 16, 16)


def test_a_teacher_from_a_weights_file(tmp_path: Path) -> None:
    weights = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t", num_classes=1000).state_dict(), weights)
    config = tiny_config(distill="soft", teacher="resnet10t", teacher_weights=str(weights), in_chans=3)
    assert make_teacher(config, names(1000))(torch.rand(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        ({}, 11, "10 are missing; name the folders alike"),
        ({"in_chans": 3}, 10, "reads 1 channels, the student 3"),
        ({"teacher": "no_such_model"}, 10, "'no_such_model' cannot be loaded"),
        ({"teacher": "resnet10t", "teacher_weights": "none.pth"}, 10, "'resnet10t' cannot be loaded"),
    ],
    ids=["classes", "channels", "unknown", "no weights"],
)
def test_a_teacher_that_does_not_fit_raises(options: dict[str, Any], classes: int, message: str) -> None:
    config = tiny_config(**({"distill": "soft", "teacher": str(trained_run())} | options))
    with pytest.raises(ValueError, match=message):
        make_teacher(config, names(classes))
