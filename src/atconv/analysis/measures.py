"""Measures of kernels (B C K K) and features (B C H W): functions of tensors on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "KernelShape",
    "Redundancy",
    "RoutingVariance",
    "kernel_shape",
    "redundancy",
    "routing_variance",
]


_ROUNDING = 1e-24  # variance of constant kernels, in units of the mean square


@dataclass(frozen=True)
class RoutingVariance:
    """How much kernels change with the image."""

    total: float
    """variance over images, in units of the mean square weight: 0 for a static kernel"""
    share_between: float | None
    """part of it that the classes explain beyond chance, 0…1; None with a single class or no class of two
    images, where it is unknown"""


def routing_variance(kernels: Tensor, labels: Tensor) -> RoutingVariance:
    """Variance over images of the kernels that a layer made, and how much of it lies between classes.

    The share between classes is the adjusted R² of a one-way analysis of variance, summed over weights, and
    at least 0: kernels that are independent of the classes have an expected share of 0.

    Args:
        kernels: B C K K, one for each image; 1 C K K for a static kernel.
        labels: B class indices.

    Raises:
        ValueError: numbers of kernels and labels differ.
    """
    if len(kernels) not in (1, len(labels)):
        raise ValueError(f"{len(kernels)} kernels take {len(kernels)} labels, got {len(labels)}")
    values = kernels.detach().cpu().double().flatten(1).expand(len(labels), -1)
    scale = values.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    total = (values - values.mean(0)).square().sum()
    classes = labels.unique()
    freedom = len(labels) - len(classes)  # degrees of freedom within classes
    variance = float(total / scale)
    if len(classes) < 2 or freedom == 0:
        return RoutingVariance(variance, None)
    if variance <= _ROUNDING:
        return RoutingVariance(variance, 0.0)
    groups = [values[labels == label] for label in classes]
    within = sum(float((group - group.mean(0)).square().sum()) for group in groups)
    share = 1 - (within / freedom) / (float(total) / (len(labels) - 1))
    return RoutingVariance(variance, max(0.0, share))


@dataclass(frozen=True)
class KernelShape:
    """Means over kernels."""

    negative_share: float
    """share of weights below 0"""
    entropy: float
    """of |weights| as shares of a kernel, over its maximum log K²: 1 is flat, 0 a single weight"""
    kurtosis: float
    """fourth moment of the weights around their mean over the squared variance: 1 for two values in equal
    numbers, large for one weight that stands out"""


def kernel_shape(kernels: Tensor) -> KernelShape:
    """Sign and sharpness of kernels.

    Raises:
        ValueError: kernels of a single weight have no shape.
    """
    values = kernels.detach().cpu().double().flatten(2).flatten(0, 1)
    count = values.shape[1]
    if count == 1:
        raise ValueError("kernels of 1 × 1 have no shape")
    tiny = torch.finfo(torch.float64).tiny
    shares = values.abs() / values.abs().sum(1, keepdim=True).clamp_min(tiny)
    entropy = -(shares * shares.clamp_min(tiny).log()).sum(1) / torch.tensor(float(count)).log()
    centered = values - values.mean(1, keepdim=True)
    variance = centered.square().mean(1)
    varying = variance > 1e-12 * values.square().mean(1).clamp_min(tiny)
    kurtosis = centered[varying].pow(4).mean(1) / variance[varying].square()
    return KernelShape(
        float((values < 0).double().mean()),
        float(entropy.mean()),
        float(kurtosis.mean()) if varying.any() else float("nan"),
    )


@dataclass(frozen=True)
class Redundancy:
    """How similar the channels of a layer are."""

    cosine: float
    """mean |cosine| between two channels: 1 where all are multiples of one, 0 where all are orthogonal"""
    effective_rank: float
    """exp of the entropy of the singular values' shares, over the number of channels: 1 where all channels
    are orthogonal and of one size, 1/C where all are multiples of one"""
    samples_per_channel: float
    """values of each channel over the number of channels: below about 10, chance raises the cosine and
    lowers the rank visibly"""


def redundancy(features: Tensor) -> Redundancy:
    """Redundancy of channels, each taken as its values over all images and positions, minus their mean.

    Args:
        features: a map B C H W, or tokens B N C.

    Raises:
        ValueError: neither a map nor tokens, or one channel only.
    """
    if features.ndim not in (3, 4):
        raise ValueError(f"redundancy takes a map B C H W or tokens B N C, got {tuple(features.shape)}")
    values = features.detach().cpu().double().movedim(1 if features.ndim == 4 else 2, 0).flatten(1)
    channels = len(values)
    if channels == 1:
        raise ValueError("one channel cannot be redundant: there must be two")
    values = values - values.mean(1, keepdim=True)
    tiny = torch.finfo(torch.float64).tiny
    unit = values / values.norm(dim=1, keepdim=True).clamp_min(tiny)
    cosines = (unit @ unit.T).abs()
    pairs = channels * (channels - 1)
    singular = torch.linalg.svdvals(values @ values.T).sqrt()  # of the values, from their Gram matrix
    shares = singular / singular.sum().clamp_min(tiny)
    rank = torch.exp(-(shares * shares.clamp_min(tiny).log()).sum())
    cosine = float((cosines.sum() - cosines.trace()) / pairs)
    return Redundancy(cosine, float(rank / channels), values.shape[1] / channels)
