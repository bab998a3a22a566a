"""Every parameter of a network, in clu's table."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from flax import linen as nn

from inception_jax.inspection.table import image_shape_of
from inception_jax.models.layers import check_image_size


def parameter_table(
    model: nn.Module,
    image_size: int | Sequence[int] | None = None,
    channels: int = 3,
    *,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Name, shape, type and size of each parameter, and their total, as `clu.parameter_overview` lays it out.

    Args:
      model: a network, ours or any other in Linen.
      image_size: side of the images, or (height, width), pixels; None: the network's own, see `layer_table`.
      channels: of the images.
      variables: a trained network's; its parameters are shown with their mean and standard deviation. None: nothing is
        computed.

    Raises:
      UserError: the images are too small for the network.
    """
    shown = variables
    if shown is None:
        images: Any = jax.ShapeDtypeStruct((1, *image_shape_of(model, image_size, channels)), np.float32)
        check_image_size(images, getattr(model, "min_image_size", 1))
        shown = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    params = nn.meta.unbox(shown.get("params", {}))  # pyright: ignore[reportAttributeAccessIssue]
    return parameter_overview.get_parameter_overview(params, include_stats=variables is not None)
