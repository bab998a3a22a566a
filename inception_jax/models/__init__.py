"""The networks, by name."""

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, MappingProxyType, ModuleType, UnionType
from typing import Any, Union, get_args, get_origin

from flax import linen as nn

from inception_jax.errors import UserError, unknown_name
from inception_jax.models import resnet, tiny_vgg, vgg
from inception_jax.models.alexnet import AlexNet
from inception_jax.models.bn_inception import BNInception
from inception_jax.models.folding import fold_batch_norm
from inception_jax.models.googlenet import GoogLeNet
from inception_jax.models.inception_resnet_v2 import InceptionResNetV2
from inception_jax.models.inception_v3 import InceptionV2, InceptionV3
from inception_jax.models.inception_v4 import InceptionV4
from inception_jax.models.layers import Outputs
from inception_jax.models.resnet import ResNet
from inception_jax.models.simple_cnn import SimpleCNN
from inception_jax.models.small_inception import SmallInception
from inception_jax.models.tiny_vgg import TinyVGG
from inception_jax.models.vgg import VGG
from inception_jax.registry import is_function, resolve

__all__ = [
    "MODELS",
    "VGG",
    "AlexNet",
    "BNInception",
    "GoogLeNet",
    "InceptionResNetV2",
    "InceptionV2",
    "InceptionV3",
    "InceptionV4",
    "Outputs",
    "ResNet",
    "SimpleCNN",
    "SmallInception",
    "TinyVGG",
    "create_model",
    "fold_batch_norm",
    "list_models",
]

# What makes a network the one of its name is bound here; no option of create_model can change it.
MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "alexnet": AlexNet,
        "bn_inception": BNInception,
        "googlenet": GoogLeNet,
        "googlenet_naive": partial(GoogLeNet, reductions=False),
        "inception_resnet_v2": partial(InceptionResNetV2, (10, 20, 10)),
        "inception_v2": InceptionV2,
        "inception_v3": InceptionV3,
        "inception_v4": partial(InceptionV4, (4, 7, 3)),
        "resnet18": partial(ResNet, *resnet.TABLE_1[18]),
        "resnet34": partial(ResNet, *resnet.TABLE_1[34]),
        "resnet50": partial(ResNet, *resnet.TABLE_1[50]),
        "resnet101": partial(ResNet, *resnet.TABLE_1[101]),
        "resnet152": partial(ResNet, *resnet.TABLE_1[152]),
        "simple_cnn": SimpleCNN,
        "small_inception": SmallInception,
        "tiny_vgg_a": partial(TinyVGG, tiny_vgg.TABLES["A"]),
        "tiny_vgg_b": partial(TinyVGG, tiny_vgg.TABLES["B"]),
        "tiny_vgg_c": partial(TinyVGG, tiny_vgg.TABLES["C"]),
        "tiny_vgg_d": partial(TinyVGG, tiny_vgg.TABLES["D"]),
        "tiny_vgg_d_regularized": partial(TinyVGG, tiny_vgg.D_REGULARIZED),
        "tiny_vgg_e": partial(TinyVGG, tiny_vgg.TABLES["E"]),
        "tiny_vgg_f": partial(TinyVGG, tiny_vgg.TABLES["F"]),
        "vgg11": partial(VGG, vgg.TABLE_1["A"]),
        "vgg11_bn": partial(VGG, vgg.TABLE_1["A"], norm="batch"),
        "vgg13": partial(VGG, vgg.TABLE_1["B"]),
        "vgg13_bn": partial(VGG, vgg.TABLE_1["B"], norm="batch"),
        "vgg16": partial(VGG, vgg.TABLE_1["D"]),
        "vgg16_bn": partial(VGG, vgg.TABLE_1["D"], norm="batch"),
        "vgg19": partial(VGG, vgg.TABLE_1["E"]),
        "vgg19_bn": partial(VGG, vgg.TABLE_1["E"], norm="batch"),
    }
)


def list_models(pattern: str = "*") -> list[str]:
    """The registered names that match a shell pattern, such as "*inception*"."""
    return sorted(fnmatch.filter(MODELS, pattern))


def create_model(
    name: str, *, num_classes: int, dtype: Any = None, param_dtype: Any = None, **options: Any
) -> nn.Module:
    """The Linen module of a registered name, or of "module:Name" outside the package.

    Its `__call__(images, *, train=False)` takes normalized images (batch, height, width, channels) and returns Outputs.
    A network from outside may lack the default, and may return only the logits (batch, num_classes). `Name` is the
    class of such a module, with the field num_classes, or a function that takes num_classes, and perhaps options, and
    returns such a module. It is inspected before it is called.

    Args:
      name: one of list_models(), or "module:Name".
      num_classes: the number of logits.
      dtype: of the computation; None: that of the inputs and parameters.
      param_dtype: of the parameters; None: float32.
      options: the module's own fields, such as norm="batch".

    Raises:
      UserError: the name or an option is unknown, an option has the wrong type, or `Name` does not make a network.
    """
    constructor = resolve("model", name, MODELS)
    known, takes_any = _inspect(name, constructor)
    for option, value in options.items():
        if option not in known and not takes_any:
            raise unknown_name(f"option of {name}", option, known.keys() - {"num_classes"})
        if option in known and not _is_a(value, known[option].annotation):
            kind = inspect.formatannotation(known[option].annotation)
            raise UserError(f"model.{option}={value!r} is not allowed: {name} takes {kind}")
    dtypes = {key: value for key, value in (("dtype", dtype), ("param_dtype", param_dtype)) if value is not None}
    # A small network from outside need not have the fields for data types.
    given = {"num_classes": num_classes, **{key: dtypes[key] for key in dtypes.keys() & known.keys()}, **options}
    try:
        inspect.signature(constructor).bind(**given)
    except TypeError as error:
        raise UserError(
            f"model {name!r} cannot be made: {error}; its options are config.model's other fields"
        ) from error
    if not takes_any:
        model = constructor(**given)
    else:
        try:
            model = constructor(**given)
        except TypeError as error:  # it passes its arguments on to what has no such option
            raise UserError(f"model {name!r} cannot be made: {error}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} is not a network: it returns {type(model).__name__}, not a Linen module")
    if takes_any:  # it may or may not pass the types on: set those of its module that are still the defaults
        fields = {field.name: field.default for field in dataclasses.fields(model)}
        left = {key: dtypes[key] for key in dtypes.keys() & fields.keys() if getattr(model, key) is fields[key]}
        model = model.clone(**left)
    return model


def _inspect(name: str, constructor: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The options of what makes a network, and whether it takes any; raises UserError if it does not make one."""
    not_a_network = UserError(
        f"model {name!r} is not a network: name a Linen module that has the field num_classes, or a function that "
        "takes num_classes and returns such a module"
    )
    function = constructor.func if isinstance(constructor, partial) else constructor
    linen = isinstance(function, type) and issubclass(function, nn.Module)
    if not linen and not is_function(function):
        raise not_a_network
    known = dict(inspect.signature(constructor).parameters)
    for fixed in constructor.keywords if isinstance(constructor, partial) else ():
        known.pop(fixed, None)
    for own in ("parent", "name") if linen else ():  # Linen's, not the network's
        known.pop(own, None)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if "num_classes" not in known and not (takes_any and _uses_linen(function)):
        raise not_a_network
    return known, takes_any


def _uses_linen(function: Callable[..., Any]) -> bool:
    """Whether a function that takes any keyword may make a network: it, or its module, names Flax or this package.

    An environment has many other functions that take any keyword, and they may do anything with it.
    """
    function = inspect.unwrap(getattr(function, "__func__", function))
    names = [*function.__code__.co_names]  # they include what it imports itself
    for value in function.__globals__.values():
        if isinstance(value, type) and issubclass(value, nn.Module):
            return True
        if isinstance(value, ModuleType):
            names.append(value.__name__)
        elif isinstance(value, type | FunctionType):
            names.append(value.__module__)
    return any(name and name.partition(".")[0] in ("flax", "inception_jax") for name in names)


def _is_a(value: Any, annotation: Any) -> bool:
    """Whether an option has the type of its field's annotation; annotations that say nothing here accept any value."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_is_a(value, kind) for kind in get_args(annotation))
    if get_origin(annotation) is tuple and get_args(annotation)[1:] == (...,):
        return isinstance(value, tuple) and all(_is_a(item, get_args(annotation)[0]) for item in value)
    if annotation is inspect.Parameter.empty:
        return True
    if annotation in (int, float) and isinstance(value, bool):
        return False
    if annotation is float:
        return isinstance(value, int | float)
    return not isinstance(annotation, type) or isinstance(value, annotation)
