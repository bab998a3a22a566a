"""Networks with weights from elsewhere, for prediction and as a start for training."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import numpy as jnp

from inception_jax import files, models
from inception_jax.data.transform import Transform
from inception_jax.errors import UserError, unknown_name
from inception_jax.inference.predictor import NetworkPredictor
from inception_jax.steps import initialization
from inception_jax.weights.convert import count_classes, from_state_dict, identify, recognize, registered_name
from inception_jax.weights.files import read_state_dict
from inception_jax.weights.names import NAMINGS, naming, nearest_options
from inception_jax.weights.preprocessing import Preprocessing, imagenet_classes
from inception_jax.weights.published import PRETRAINED, PublishedWeights, fetch, is_copy

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclasses.dataclass(frozen=True)
class Pretrained(NetworkPredictor):
    """A network with weights and everything needed to use them.

    Its methods take arrays of any size: they are pictures, too, which are resized and cropped.

    Attributes:
      model: the Linen module; `model.apply(variables, inputs, train=False)` returns Outputs.
      variables: {"params", "batch_stats"}.
      preprocessing: turns a picture into an input.
      class_names: in the order of the logits.
    """

    model: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Pretrained({type(self.model).__name__}, {len(self.class_names)} classes, {self.preprocessing})"

    @property
    def transform(self) -> Transform:
        return self.preprocessing.transform


@overload
def create_model(
    name: str, *, num_classes: int, weights: None = None, dtype: Any = None, param_dtype: Any = None, **options: Any
) -> nn.Module: ...


@overload
def create_model(
    name: str,
    *,
    weights: str | Path,
    num_classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    dtype: Any = None,
    param_dtype: Any = None,
    **options: Any,
) -> Pretrained: ...


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    dtype: Any = None,
    param_dtype: Any = None,
    **options: Any,
) -> nn.Module | Pretrained:
    """Creates a registered Linen module by name (see `models.create_model`) or, with `weights`, a Pretrained.

    With weights, the network has the options of the library's network.

    Args:
      num_classes: the number of logits; optional with weights. If the weights have another number of classes, or no
        classifiers, new classifiers are initialized randomly.
      weights: "torchvision" or "timm", for its weights published under the name; one of `PRETRAINED`, such as
        "torchvision:resnet50.v2"; or a weights file with the names of torchvision, timm or Cadene.
      preprocessing: None: that of the published weights, also for a file that is a copy of them; for another file,
        that of the weights that the library has published under the name.
      seed: of new classifiers.

    Raises:
      UserError: a name or an option is unknown, or the weights are not available or not the network's.
    """
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    if weights is None:
        if num_classes is None:
            raise UserError(f"create_model({name!r}) needs num_classes, the number of logits, or weights")
        return models.create_model(name, num_classes=num_classes, **dtypes, **options)
    model = models.create_model(name, num_classes=num_classes or 1000, **dtypes, **options)
    source = _read(weights, model)
    num_classes = num_classes or count_classes(model, source.tensors, source.format)
    if num_classes is None:
        raise UserError(f"{weights} has no classifier: give num_classes to initialize a new one")
    nearest = nearest_options(model, naming(model, source.format))
    model = models.create_model(name, num_classes=num_classes, **dtypes, **(nearest | options))
    if preprocessing is None:
        published = source.published or PRETRAINED.get(f"{source.format}:{registered_name(model)}")
        if published is None:
            raise UserError(f"{weights} does not define its preprocessing: give preprocessing=Preprocessing(...)")
        preprocessing = published.preprocessing
    initial = _initial(source, model, None, jax.random.key(seed))
    class_names = initial.class_names or tuple(map(str, range(num_classes)))
    return Pretrained(model, initial.variables, preprocessing, class_names)


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """What training starts from.

    Attributes:
      variables: {"params", "batch_stats"}, as NumPy arrays except for new layers.
      preprocessing: of published weights or a copy of them; None: not known for other files.
      class_names: in the order of the logits; None: the classifiers are new, or the names unknown; 1000 classes are
        assumed to be ImageNet's.
      left_out: paths of new layers, such as "fc", since the weights are for other classes or have no classifier.
    """

    variables: dict[str, Any]
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...] | None
    left_out: tuple[str, ...]


def init_from(
    source: str | Path,
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int] | None = None,
    key: jax.Array | None = None,
) -> InitialWeights:
    """Loads weights for a given network; classifiers are new if the weights have none or another number of classes.

    Args:
      source: as `weights` of `create_model`.
      image_shape: (height, width, channels) of the network's inputs; None: its native size in color.
      key: random key of new classifiers; None: that of seed 0.

    Raises:
      UserError: the weights are not available or not the network's, or the network's options differ from theirs.
    """
    return _initial(_read(source, model), model, image_shape, jax.random.key(0) if key is None else key)


@dataclasses.dataclass(frozen=True)
class _Source:
    tensors: Mapping[str, np.ndarray]
    format: str
    published: PublishedWeights | None


def find_network(source: str) -> tuple[str, dict[str, Any], Preprocessing | None]:
    """Finds the network that weights belong to: its registered name, the options they need, and the preprocessing.

    Args:
      source: one of `PRETRAINED`, or a weights file.

    Raises:
      UserError: it is neither, or its network is not registered.
    """
    published = _published(source)
    if published:
        format, name = published.format, published.model
    elif Path(source).suffix in SUFFIXES or files.expand(source).is_file():
        tensors = read_state_dict(source)
        found = identify({name: tensor.shape for name, tensor in tensors.items()})
        if found is None:
            raise UserError(f"{source} contains the weights of an unknown network: set model.name")
        format, name = found
    else:
        hint = f"; name its weights, such as {source}:resnet50" if source in NAMINGS else ""
        raise UserError(f"{source!r} is not a run's folder, a weights file or published weights{hint}")
    model = models.create_model(name, num_classes=1000)
    published = published or PRETRAINED.get(f"{format}:{name}")
    return name, nearest_options(model, naming(model, format)), published and published.preprocessing


def _published(source: str | Path) -> PublishedWeights | None:
    """The weights published under a name, or those that a file is a copy of."""
    if str(source) in PRETRAINED:
        return PRETRAINED[str(source)]
    path = files.expand(source)
    return next((weights for weights in PRETRAINED.values() if is_copy(path, weights)), None)


def _read(source: str | Path, model: nn.Module) -> _Source:
    if source in NAMINGS:
        source = f"{source}:{registered_name(model)}"
    published = _published(source)
    if published is None and Path(source).suffix not in SUFFIXES and not files.expand(source).exists():
        libraries = {name.partition(":")[0] for name in PRETRAINED}
        raise unknown_name("weights (and no file)", str(source), {*libraries, *PRETRAINED})
    tensors = read_state_dict(fetch(published) if published and str(source) in PRETRAINED else source)
    if published and published.background:  # only classifiers have 1001 outputs
        tensors = {name: value[1:] if value.shape[:1] == (1001,) else value for name, value in tensors.items()}
    try:
        format = recognize(model, tensors, published and published.format)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return _Source(tensors, format, published)


def _initial(source: _Source, model: Any, image_shape: tuple[int, int, int] | None, key: jax.Array) -> InitialWeights:
    classes = count_classes(model, source.tensors, source.format)
    same = classes == model.num_classes
    variables = from_state_dict(model, source.tensors, source.format, image_shape=image_shape, classifier=same)
    preprocessing = source.published and source.published.preprocessing
    if same:
        return InitialWeights(variables, preprocessing, imagenet_classes() if classes == 1000 else None, ())
    fresh = _new_classifiers(model, naming(model, source.format).classifiers, image_shape, key)
    left_out = tuple(sorted({"/".join(path[1:-1]) for path in fresh}))
    return InitialWeights(unflatten_dict(flatten_dict(variables) | fresh), preprocessing, None, left_out)


def _new_classifiers(
    model: Any, paths: tuple[str, ...], image_shape: tuple[int, int, int] | None, key: jax.Array
) -> dict[tuple[str, ...], jax.Array]:
    """The values that `model.init` gives the layers at the paths; the rest is not computed."""
    size = model.native_image_size

    def draw(key):
        images = jnp.zeros((1, *(image_shape or (size, size, 3))))
        leaves = flatten_dict(dict(model.init(key, images, train=False)))
        return {path: leaf for path, leaf in leaves.items() if "/".join(path[1:-1]) in paths}

    return initialization.evaluate(jax.jit(draw).trace(key), key)
