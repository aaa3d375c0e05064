"""An ONNX file of opset 18 as one of opset 17, for older runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["to_opset_17"]


def to_opset_17(path: Path) -> None:
    """Rewrite a file of opset 18 in the operators of opset 17.

    Of what networks use, 18 changed three: reductions take their axes as an input (17: an attribute), Pad
    may name axes and Split a number of outputs.

    Raises:
        ValueError: an operator has no form in opset 17.
    """
    import onnx
    import onnx.inliner

    model = onnx.inliner.inline_local_functions(onnx.load(path))  # of older exporters
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"
    }
    for node in model.graph.node:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":  # that one changed in 13
            _axes_as_attribute(node, constants)
        elif node.op_type == "Pad" and len(node.input) == 4 and not node.input[3]:
            del node.input[3]
        elif node.op_type == "Split":  # equal parts, or those that it lists
            _drop_attribute(node, "num_outputs")
    used = {name for node in model.graph.node for name in node.input}
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in used]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", 17))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path.name} has no form in opset 17: {reason}; write it in opset 20") from error
    onnx.save(model, path)


def _axes_as_attribute(node: Any, constants: dict[str, Any]) -> None:
    from onnx import helper, numpy_helper

    if len(node.input) == 2 and node.input[1] in constants:
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        del node.input[1]
        _drop_attribute(node, "noop_with_empty_axes")  # there are axes
        node.attribute.append(helper.make_attribute("axes", axes))


def _drop_attribute(node: Any, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
