"""Initial weights (config.init_from), and what they determine about the network and its inputs."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import numpy as jnp

from inception_jax import files, registry, weights
from inception_jax.config import Config
from inception_jax.errors import UserError
from inception_jax.experiment import build_model
from inception_jax.runs.folder import kept_inputs, read_config
from inception_jax.runs.run import load_run
from inception_jax.steps import initialization
from inception_jax.train.precision import switched
from inception_jax.weights.names import naming, nearest_options


@dataclasses.dataclass(frozen=True)
class Initial:
    """Pretrained weights from which a network starts.

    Attributes:
      variables: {"params", "batch_stats"}.
      mean, std: with which the weights' inputs were normalized, as in Inputs; None if unknown.
      left_out: paths of the newly initialized layers.
    """

    variables: dict[str, Any]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    left_out: tuple[str, ...]


def load_initial(
    source: str,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    key: jax.Array,
    *,
    trust_code: bool = False,
    own: Config | None = None,
) -> Initial:
    """The weights of config.init_from for a given network; layers for other classes are newly initialized.

    Args:
      trust_code, own: for a run's folder, as in `load_run`.

    Raises:
      UserError: the weights are unavailable or do not fit the network.
    """
    kept_config = files.expand(source, "init_from") / "config.json"
    if not kept_config.is_file():
        found = weights.init_from(source, model, image_shape=image_shape, key=key)
        known = found.preprocessing
        return Initial(found.variables, known and known.mean, known and known.std, found.left_out)
    with switched(read_config(kept_config).compute_dtype == "float64"):  # its own types; this run may have others
        other = load_run(source, trust_code=trust_code, own=own)
        kept: dict[tuple[str, ...], Any] = flatten_dict(jax.device_get(dict(other.variables)))
    zeros = jnp.zeros((1, *image_shape))
    beginning = jax.jit(lambda key: model.init(key, zeros, train=False)).trace(key)
    fresh: dict[tuple[str, ...], Any] = flatten_dict(dict(initialization.evaluate(beginning, key)))
    differing = fresh.keys() ^ kept.keys()
    differing |= {path for path in fresh.keys() & kept.keys() if fresh[path].shape != kept[path].shape}
    classes = len(other.inputs.class_names)
    # Layers whose outputs are the other run's classes are new if ours differ; everything else must match.
    new = {path for path in differing & fresh.keys() & kept.keys() if kept[path].shape[-1] == classes}
    if differing - new:
        names = sorted("/".join(path) for path in differing - new)
        raise UserError(
            f"{source} does not fit the network of model.name and its options: {len(names)} arrays of either are "
            f"missing or have another shape: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        )
    taken = unflatten_dict({path: value if path in new else kept[path] for path, value in fresh.items()})
    return Initial(
        {name: taken.get(name, {}) for name in ("params", "batch_stats")},
        other.inputs.mean,
        other.inputs.std,
        tuple(sorted({"/".join(path[1:-1]) for path in new})),
    )


def with_options_of_weights(config: Config, num_classes: int) -> Config:
    """The config with unset network options taken from the training of the published weights in init_from."""
    config = copy.deepcopy(config)
    name = config.init_from or ""
    published = weights.PRETRAINED.get(name) or weights.PRETRAINED.get(f"{name}:{config.model.name}")
    if published:
        model = build_model(config, num_classes)
        for option, value in nearest_options(model, naming(model, published.format)).items():
            if config.model.get(option) is None:
                config.model[option] = value
    return config


def with_network_of_weights(config: Config, folder: Path, *, trust_code: bool = False) -> Config:
    """The config with the network of the weights in init_from, if model.name is "".

    This also sets its options, data.image_size and data.channels if unset, and, from a run, data.normalization.

    Args:
      folder: of the run to be trained; if it has begun, its original values are kept.
      trust_code: whether a run's folder may name a network outside the package, as in `load_run`.

    Raises:
      UserError: init_from is not set, or does not say which network its weights are for.
      UntrustedError: a run's network is untrusted code.
    """
    if config.model.name:
        return config
    config = copy.deepcopy(config)
    if (folder / "config.json").is_file():  # the weights may have been removed
        kept = read_config(folder / "config.json")
        registry.check_trusted("model", kept.model.name, folder, trust_code)
        image_size, channels = kept.data.image_size, kept.data.channels
        options, normalization = dict(kept.model), kept.data.normalization
    elif not config.init_from:
        raise UserError(
            "model.name is empty, which takes the network of the weights: give --config.init_from=RUN_OR_FILE, or "
            "set model.name"
        )
    elif (files.expand(config.init_from, "init_from") / "config.json").is_file():
        source = files.expand(config.init_from)
        kept, inputs = read_config(source / "config.json"), kept_inputs(source)
        registry.check_trusted("model", kept.model.name, source, trust_code)
        if inputs is None:
            raise UserError(f"{source} has no checkpoint yet")
        image_size, _, channels = inputs.image_shape
        options, normalization = dict(kept.model), kept.data.normalization
    else:
        name, options, preprocessing = weights.find_network(config.init_from)
        options, normalization = {"name": name, **options}, config.data.normalization
        image_size, channels = preprocessing and preprocessing.crop, 3
    for option, value in options.items():
        if config.model.get(option) in (None, ""):
            config.model[option] = value
    config.data.normalization = normalization
    for field, value in (("image_size", image_size), ("channels", channels)):
        if config.data[field] is None:
            config.data[field] = value
    return config
