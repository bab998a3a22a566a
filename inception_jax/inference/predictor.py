"""The methods that all trained networks have: runs, published weights and exported files."""

import abc
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Float, UInt8

from inception_jax.data.images import FILES, Format, Picture
from inception_jax.data.transform import Transform
from inception_jax.errors import UserError, check_choice
from inception_jax.inference.classify import Prediction, classify
from inception_jax.models import folding

if TYPE_CHECKING:
    from inception_jax.inspection.pictures import Picture as Shown


class Predictor(abc.ABC):
    """A trained network for pictures: `Run`, `Pretrained` or `Exported`.

    Its methods take the same images, as one of these:

    - One picture or a sequence of pictures: paths or bytes of files, or Pillow images, of any size. They are opened,
      resized and cropped as in training: rotated according to their EXIF data, 16 bits are reduced to 8, and
      transparency is dropped.
    - An array uint8 (batch, height, width, channels), or a sequence of arrays (height, width, channels): images as they
      are stored for training, which are not resized. Gray ones may lack the last axis.

    Attributes:
      class_names: for people, in the order of the logits.
    """

    class_names: tuple[str, ...]
    any_size: ClassVar[bool] = False  # whether arrays of other heights and widths are taken, which most networks accept

    @property
    @abc.abstractmethod
    def transform(self) -> Transform:
        """How a picture of any size becomes an input."""

    @abc.abstractmethod
    def compute(self, images: np.ndarray) -> np.ndarray:
        """The float32 logits (batch, classes) of uint8 images (batch, height, width, channels), as `images` gives them.

        They are neither checked nor converted again.
        """

    def _normalized(self, images: np.ndarray) -> jax.Array:
        return self.transform.normalizer(self.input_dtype)(jnp.asarray(images))

    @property
    def input_dtype(self) -> Any:
        """The data type of the network's inputs."""
        return jnp.float32

    @property
    def form(self) -> Format:
        """How a picture of any size is converted to an image, before it is normalized.

        Raises:
          UserError: the network's images are not square.
        """
        return self.transform.form

    def images(self, images: Picture | Sequence[Picture]) -> UInt8[Any, "batch height width channels"]:
        """The images as they are stored for training.

        Raises:
          UserError: one is not a picture, or is too large; or an array does not fit the network. The message says what
            to do.
        """
        several = isinstance(images, list | tuple) and any(isinstance(one, FILES) for one in images)
        transform = self.transform
        if several or isinstance(images, FILES) or not transform.stored_arrays:
            return transform.images(images)
        return check_batch(images, transform.image_shape, any_size=self.any_size)

    def normalize(self, images: Picture | Sequence[Picture]) -> Float[jax.Array, "batch height width channels"]:
        """The network's inputs. Raises as `images`."""
        return self._normalized(self.images(images))

    def logits(self, images: Picture | Sequence[Picture]) -> Float[np.ndarray, "batch classes"]:
        """The logits, float32. Raises as `images`."""
        return self.compute(self.images(images))

    def predict(self, images: Picture | Sequence[Picture]) -> Float[np.ndarray, "batch classes"]:
        """The probabilities of the classes, float32. Raises as `images`."""
        return np.asarray(jax.nn.softmax(self.logits(images)))

    def classify(self, pictures: Iterable[Picture], *, top: int = 5, batch_size: int = 32) -> Iterator[Prediction]:
        """Yields the most probable classes of pictures, in their order; memory is bounded however many there are.

        Threads decode pictures while the network computes the previous ones. A picture that cannot be read yields its
        error, and the others are processed.

        Args:
          pictures: paths or bytes of files, Pillow images, or uint8 arrays (height, width, channels).
          top: number of classes per prediction.
          batch_size: pictures per batch. The last batch is padded, so that hardly any other size is compiled.

        Raises:
          UserError: top or batch_size is below 1, or the network's images are not square.
        """
        return classify(self, pictures, top=top, batch_size=batch_size)


class NetworkPredictor(Predictor):
    """A predictor that computes a Linen module with JAX, its batch norm folded into the convolutions.

    Attributes:
      model: the Linen module; `model.apply(variables, inputs, train=False)` returns Outputs.
      variables: {"params", "batch_stats"}.
    """

    model: nn.Module
    variables: dict[str, Any]

    def compute(self, images: np.ndarray) -> np.ndarray:
        model, variables = self._folded
        return np.asarray(folding.logits(model, variables, self._normalized(images)), np.float32)

    def activations(
        self, images: Picture | Sequence[Picture], layers: str | Iterable[str] | None = None
    ) -> dict[str, jax.Array]:
        """The outputs of layers for images, by layer, see `inspection.activations`, which also says what it raises."""
        from inception_jax.inspection import features  # not earlier, since Matplotlib takes a while to import

        return features.activations(self.model, self.variables, self.normalize(images), layers)

    def grad_cam(self, picture: Picture, class_name: str | None = None, layer: str | None = None) -> "Shown":
        """A picture with the places that support a class, see `inspection.grad_cam`.

        Args:
          picture: a file, its bytes, a Pillow image or a uint8 array (height, width, channels).
          class_name: None: the most probable class.
          layer: None: the last one with maps of at least 4x4 pixels.

        Raises:
          UserError: it is not a picture; the class or the layer does not exist.
        """
        from inception_jax.inspection import features, pictures

        number = None if class_name is None else self._class_number(class_name)
        image = self.images([picture])
        heat = features.grad_cam(self.model, self.variables, self.normalize(image), layer, number)
        return pictures.overlay(image[0], heat[0])

    def _class_number(self, name: str) -> int:
        check_choice("class", name, self.class_names)
        return self.class_names.index(name)

    @cached_property
    def _folded(self) -> tuple[nn.Module, dict[str, Any]]:
        prepare = jax.jit(partial(folding.inference_variables, self.model))
        return folding.fold_model(self.model), prepare(self.variables)


def check_batch(images: Any, shape: tuple[int, int, int], *, any_size: bool = False) -> Any:
    """Images for a network as in training: uint8 (batch, height, width, channels); gray ones may lack the last axis.

    Args:
      images: the batch.
      shape: (height, width, channels) of the network's images.
      any_size: whether other heights and widths are allowed, which most networks accept.

    Raises:
      UserError: anything else; the message says what to do.
    """
    expected = f"images must be a uint8 array (batch, {', '.join(map(str, shape))})"
    try:
        images = images if hasattr(images, "dtype") and hasattr(images, "shape") else np.asarray(images)
    except ValueError:
        raise UserError(f"{expected}, got several shapes") from None
    same_size = images.shape[1:] == shape or (any_size and images.ndim == 4 and images.shape[3] == shape[2])
    if images.dtype == np.uint8 and same_size:
        return images
    if images.dtype == np.uint8 and images.ndim == 3 and (*images.shape[1:], 1) == shape:
        return images[..., None]
    hint = ""
    if images.dtype == object:
        hint = "; give files and Pillow images as a list, or to classify as any iterable"
    elif images.dtype != np.uint8:
        hint = "; convert them, e.g. (255 * images).round().astype('uint8') for images from 0 to 1"
    elif images.shape == shape or (any_size and images.ndim == 3 and images.shape[2] == shape[2]):
        hint = "; for one image, give images[None]"
    elif images.ndim == 4 and images.shape[1:] == (shape[2], *shape[:2]):
        hint = "; channels must be last: images.transpose(0, 2, 3, 1)"
    elif images.ndim == 4 and images.shape[3] in (1, 3):
        hint = "; inception_jax.data.images.convert_arrays(images, run.form) converts them as for training"
    raise UserError(f"{expected}, got {images.dtype} {images.shape}{hint}")
