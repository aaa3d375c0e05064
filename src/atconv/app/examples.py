"""Images to click on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any

from PIL import Image

from atconv.engine.predictor import ImagePredictor, Predictor

__all__ = ["validation_images"]

logger = logging.getLogger(__name__)


def validation_images(predictors: Mapping[str, Predictor[Any, Any]], count: int) -> list[Image.Image]:
    """Up to `count` images from the validation splits of runs, interleaved, no two alike. Of runs whose data
    are not there any more, it is said why there are none."""
    rows = []
    for name, predictor in predictors.items():
        if count and isinstance(predictor, ImagePredictor):
            try:
                rows.append(predictor.examples(count))
            except (OSError, ValueError) as error:
                logger.info("no examples of %s: %s", name, str(error).partition("\n")[0])
    images = (image for image in chain.from_iterable(zip_longest(*rows)) if image is not None)
    different = {(image.size, image.tobytes()): image for image in images}
    return list(different.values())[:count]
