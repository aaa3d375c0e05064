"""What the operator does inside a model: functions of a model and tensors, which return numbers.

`plots` and `image_plots` plot them with matplotlib, and `atconv analyze` puts them on one page.
"""

from atconv.analysis.explanation import (
    Explanation,
    attention_support,
    class_activation,
    explain,
    explanation_layer,
)
from atconv.analysis.features import collect_outputs, mixer_layers, stage_layers
from atconv.analysis.measures import (
    KernelShape,
    Redundancy,
    RoutingVariance,
    kernel_shape,
    redundancy,
    routing_variance,
)
from atconv.analysis.probe import LayerMeasures, StageField, measure_layers, stage_fields
from atconv.analysis.receptive_field import field_radius, receptive_field
from atconv.analysis.rollout import collect_attention, rollout
from atconv.analysis.routing import before_inhibition, collect_kernels, detach_kernels

__all__ = [
    "Explanation",
    "KernelShape",
    "LayerMeasures",
    "Redundancy",
    "RoutingVariance",
    "StageField",
    "attention_support",
    "before_inhibition",
    "class_activation",
    "collect_attention",
    "collect_kernels",
    "collect_outputs",
    "detach_kernels",
    "explain",
    "explanation_layer",
    "field_radius",
    "kernel_shape",
    "measure_layers",
    "mixer_layers",
    "receptive_field",
    "redundancy",
    "rollout",
    "routing_variance",
    "stage_fields",
    "stage_layers",
]
