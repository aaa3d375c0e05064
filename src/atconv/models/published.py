"""What the authors of the paper published of AttNet. Facts, not measured here."""

from __future__ import annotations

__all__ = ["NO_DILATION", "NO_DOWNLOAD", "PUBLISHED_TOP1"]

PUBLISHED_TOP1: dict[str, float] = {"attnet_t2": 84.4}
"""ImageNet-1K top-1 at 224 in percent, arXiv 2510.20092"""

NO_DOWNLOAD = (
    "{name}: pretrained=True cannot download weights. The authors of 'Attentive Convolution' "
    "(arXiv 2510.20092) publish ImageNet-1K checkpoints as .pth files with their code, at "
    "https://github.com/price112/Attentive-Convolution. Download the file, then: "
    "model = timm.create_model('{name}'); atconv.load_release(model, 'FILE.pth'). For a run trained here: "
    "timm.create_model('local-dir:RUN', pretrained=True)."
)
"""what create_model(NAME, pretrained=True) raises"""

NO_DILATION = (
    "AttNet has no dilated stages, its output_stride is 32. Of the decoders in segmentation_models_pytorch, "
    "Unet, UnetPlusPlus, Linknet, MAnet, FPN, PSPNet, Segformer and UPerNet take it, and PAN with "
    "encoder_output_stride=32"
)
"""what create_model(NAME, output_stride=16) raises, as smp's DeepLabV3 calls it"""
