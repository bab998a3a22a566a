"""Names of our networks' tensors in other libraries: torchvision, timm, and Cadene's pretrained-models."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from inception_jax.errors import UserError, check_choice
from inception_jax.models import (
    VGG,
    AlexNet,
    BNInception,
    GoogLeNet,
    InceptionResNetV2,
    InceptionV3,
    InceptionV4,
    ResNet,
    inception_resnet_v2,
    inception_v4,
)
from inception_jax.models.branches import Branches, Conv


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one library names the tensors of one class of networks.

    Attributes:
      module: (network, path) -> name: from the path of a module in our variables, such as "conv1/conv", to its name
        in the library, such as "conv1.conv".
      options: values of the network's fields with which it computes what the library's does; the first is the default.
      classifiers: paths of the layers whose outputs are the classes.
      heads: the library's prefixes for auxiliary heads, whose tensors a network without heads ignores.
      flattened: sides of the maps that a dense layer reads flattened, by its path; the library's are channels-first.
      convolutions: paths of dense layers that are convolutions in the library.
      biases: whether convolutions before batch norm have a bias, too, which the mean could absorb.
    """

    module: Callable[[Any, str], str]
    options: Mapping[str, tuple[Any, ...]]
    classifiers: tuple[str, ...] = ("fc",)
    heads: tuple[str, ...] = ()
    flattened: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    convolutions: tuple[str, ...] = ()
    biases: bool = False


def _conv_bn(unit: Callable[[Any, str], str], layers: Mapping[str, str]) -> Callable[[Any, str], str]:
    """For libraries whose units hold a "conv" and a "bn"; `unit` names units, `layers` maps other paths to names."""

    def module(model: Any, path: str) -> str:
        if path in layers:
            return layers[path]
        own, _, part = path.rpartition("/")
        return f"{unit(model, own)}.{'bn' if part == 'norm' else 'conv'}"

    return module


def _split(path: str) -> tuple[str, str]:
    """The block and the unit of a path: "inception_3a/conv_1x1" has both, "conv1" only a unit."""
    block, _, unit = path.rpartition("/")
    return block, unit


def _googlenet_unit(model: Any, path: str) -> str:
    branches = {
        "conv_1x1": "branch1", "conv_3x3_reduce": "branch2.0", "conv_3x3": "branch2.1",
        "conv_5x5_reduce": "branch3.0", "conv_5x5": "branch3.1", "pool_proj": "branch4.1",
    }  # fmt: skip
    block, unit = _split(path)
    return f"{block.replace('_', '')}.{branches.get(unit, unit)}" if block else unit


def _resnet(model: Any, path: str) -> str:
    if path == "fc":
        return path
    own, _, part = path.rpartition("/")
    block, unit = _split(own)
    name = f"downsample.{int(part == 'norm')}" if unit == "projection" else unit
    if part == "norm":
        name = name.replace("conv", "bn")
    if not block:
        return name
    stage, index = re.findall(r"\d+", block)
    return f"layer{stage}.{int(index) - 1}.{name}"


def _vgg(**dense: str) -> Callable[[VGG, str], str]:
    """Convolutions, batch norms, ReLUs and pools are numbered consecutively; `dense` names the dense layers."""

    def module(model: VGG, path: str) -> str:
        if path in dense:
            return dense[path]
        stage, number = map(int, re.findall(r"\d+", path))
        before = sum(model.stage_sizes[: stage - 1]) + number - 1
        layers = 3 if model.norm == "batch" else 2  # a convolution, batch norm, ReLU
        return f"features.{layers * before + stage - 1 + path.endswith('norm')}"

    return module


def _alexnet(model: Any, path: str) -> str:
    numbers = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10, "fc6": 1, "fc7": 4, "fc": 6}
    unit = path.removesuffix("/conv")
    return f"{'classifier' if unit.startswith('fc') else 'features'}.{numbers[unit]}"


def _inception_v3_unit(model: Any, path: str) -> str:
    stem = {
        "conv_1a": "Conv2d_1a_3x3", "conv_2a": "Conv2d_2a_3x3", "conv_2b": "Conv2d_2b_3x3", "conv_3b": "Conv2d_3b_1x1",
        "conv_4a": "Conv2d_4a_3x3",
    }  # fmt: skip
    beside = {"conv_1x1": "1x1", "pool_proj": "_pool"}
    figure_5 = {
        **beside, "conv_5x5_reduce": "5x5_1", "conv_5x5": "5x5_2", "double_reduce": "3x3dbl_1",
        "double_3x3_1": "3x3dbl_2", "double_3x3_2": "3x3dbl_3",
    }  # fmt: skip
    figure_6 = {
        **beside, "conv_7x7_reduce": "7x7_1", "conv_1x7": "7x7_2", "conv_7x1": "7x7_3", "double_reduce": "7x7dbl_1",
        "double_7x1_1": "7x7dbl_2", "double_1x7_1": "7x7dbl_3", "double_7x1_2": "7x7dbl_4", "double_1x7_2": "7x7dbl_5",
    }  # fmt: skip
    figure_7 = {
        **beside, "conv_3x3_reduce": "3x3_1", "conv_1x3": "3x3_2a", "conv_3x1": "3x3_2b", "double_reduce": "3x3dbl_1",
        "double_3x3_1": "3x3dbl_2", "double_1x3": "3x3dbl_3a", "double_3x1": "3x3dbl_3b",
    }  # fmt: skip
    branches = {
        "mixed_6a": {**figure_5, "conv_3x3": "3x3"},
        "mixed_7a": {
            "conv_3x3_reduce": "3x3_1", "conv_3x3": "3x3_2", "double_reduce": "7x7x3_1", "double_1x7": "7x7x3_2",
            "double_7x1": "7x7x3_3", "double_3x3": "7x7x3_4",
        },
        **dict.fromkeys(("mixed_5b", "mixed_5c", "mixed_5d"), figure_5),
        **dict.fromkeys(("mixed_6b", "mixed_6c", "mixed_6d", "mixed_6e"), figure_6),
        **dict.fromkeys(("mixed_7b", "mixed_7c"), figure_7),
    }  # fmt: skip
    block, unit = _split(path)
    if block == "aux":
        return {"conv1": "AuxLogits.conv0", "conv2": "AuxLogits.conv1"}[unit]
    return f"{block.capitalize()}.branch{branches[block][unit]}" if block else stem[unit]


def _branch(branches: Branches, unit: str) -> str:
    """timm's name of a convolution: the number of its branch and, if the branch has several steps, of its step."""
    for number, steps in enumerate(branches):
        for index, step in enumerate(steps):
            if isinstance(step, Conv) and step.name == unit:
                return f"branch{number}" if len(steps) == 1 else f"branch{number}.{index}"
    raise KeyError(unit)


def _inception_v4_unit(model: InceptionV4, path: str) -> str:
    blocks = {**inception_v4.stem_modules(), **inception_v4.figure_9(model.repeats)}
    module_c = {
        "conv_3x3_reduce": "branch1_0", "conv_1x3": "branch1_1a", "conv_3x1": "branch1_1b",
        "double_reduce": "branch2_0", "double_3x1_1": "branch2_1", "double_1x3_1": "branch2_2",
        "double_1x3_2": "branch2_3a", "double_3x1_2": "branch2_3b",
    }  # fmt: skip
    block, unit = _split(path)
    if not block:
        return f"features.{['conv_1a', 'conv_2a', 'conv_2b'].index(unit)}"
    if block in ("mixed_3a", "mixed_5a"):
        branch = "conv"
    elif block.startswith("inception_c") and unit in module_c:
        branch = module_c[unit]
    else:
        branch = _branch(blocks[block], unit)
    return f"features.{3 + list(blocks).index(block)}.{branch}"


def _inception_resnet_v2_unit(model: InceptionResNetV2, path: str) -> str:
    repeated = {
        "block35": ("repeat", inception_resnet_v2.BLOCK_35),
        "block17": ("repeat_1", inception_resnet_v2.BLOCK_17),
        "block8": ("repeat_2", inception_resnet_v2.BLOCK_8),
    }
    mixed = {
        "mixed_5b": inception_resnet_v2.MIXED_5B,
        "mixed_6a": inception_resnet_v2.MIXED_6A,
        "mixed_7a": inception_resnet_v2.MIXED_7A,
    }
    block, unit = _split(path)
    if not block:
        return unit.replace("conv_", "conv2d_")
    if block in mixed:
        return f"{block}.{_branch(mixed[block], unit)}"
    kind, _, index = block.partition("_")
    name, branches = repeated[kind]
    name = "block8" if block == f"block8_{model.repeats[2]}" else f"{name}.{int(index) - 1}"
    return f"{name}.{_branch(branches, unit)}"


def _inception_resnet_v2(model: InceptionResNetV2, path: str) -> str:
    if path.endswith("/projection/conv"):  # without batch norm, so it is not a unit in timm
        sibling = _inception_resnet_v2_unit(model, path.replace("projection/conv", "conv_1x1"))
        return sibling.replace("branch0", "conv2d")
    return _conv_bn(_inception_resnet_v2_unit, {"fc": "classif"})(model, path)


def _bn_inception(model: Any, path: str) -> str:
    names = {
        "conv1": "conv1_7x7_s2", "conv2": "conv2_3x3_reduce", "conv3": "conv2_3x3", "conv_1x1": "1x1",
        "conv_3x3_reduce": "3x3_reduce", "conv_3x3": "3x3", "double_reduce": "double_3x3_reduce",
    }  # fmt: skip
    if path == "fc":
        return "last_linear"
    own, _, part = path.rpartition("/")
    block, unit = _split(own)
    return "_".join(filter(None, (block, names.get(unit, unit), "bn" if part == "norm" else "")))


EPSILON_1E_3 = {"norm": ("batch",), "norm_epsilon": (1e-3,), "stem": ("imagenet",)}
EPSILON_1E_5 = {"norm": ("batch",), "norm_epsilon": (1e-5,), "stem": ("imagenet",)}
VGG_OPTIONS = {"norm_epsilon": (1e-5,), "classifier": ("paper",)}

_RESNET = Naming(_resnet, EPSILON_1E_5)
_INCEPTION_V3 = Naming(
    _conv_bn(_inception_v3_unit, {"fc": "fc", "aux/fc": "AuxLogits.fc"}),
    {
        **EPSILON_1E_3, "factorized_kernels": (True,), "kernel_5x5": (5,), "factorized_7x7": (True,),
        "aux_norm": ("batch",),
    },
    classifiers=("fc", "aux/fc"),
    heads=("AuxLogits.",),
)  # fmt: skip

# By library, then by class of our networks.
NAMINGS: Mapping[str, Mapping[type[nn.Module], Naming]] = {
    "torchvision": {
        AlexNet: Naming(
            _alexnet,
            {"stem": ("imagenet",), "norm": ("none",), "classifier": ("paper",)},
            flattened={"fc6": (6, 6)},
        ),
        GoogLeNet: Naming(
            _conv_bn(
                _googlenet_unit,
                {"fc": "fc", **{f"aux{i}/fc{j}": f"aux{i}.fc{j}" for i in (1, 2) for j in (1, 2)}},
            ),
            {
                **EPSILON_1E_3, "reductions": (True,), "kernel_3x3": (3,), "kernel_5x5": (3,),
                "pool_padding": ("ceil",), "pool_4": (None, 2), "aux_pool": ("adaptive",), "residual": ("none",),
            },
            classifiers=("fc", "aux1/fc2", "aux2/fc2"),
            heads=("aux1.", "aux2."),
            flattened={"aux1/fc1": (4, 4), "aux2/fc1": (4, 4)},
        ),
        InceptionV3: _INCEPTION_V3,
        ResNet: _RESNET,
        VGG: Naming(
            _vgg(fc6="classifier.0", fc7="classifier.3", fc="classifier.6"), VGG_OPTIONS, flattened={"fc6": (7, 7)}
        ),
    },
    "timm": {
        InceptionResNetV2: Naming(_inception_resnet_v2, EPSILON_1E_3),
        InceptionV3: _INCEPTION_V3,
        InceptionV4: Naming(_conv_bn(_inception_v4_unit, {"fc": "last_linear"}), EPSILON_1E_3),
        ResNet: _RESNET,
        VGG: Naming(
            _vgg(fc6="pre_logits.fc1", fc7="pre_logits.fc2", fc="head.fc"),
            VGG_OPTIONS,
            flattened={"fc6": (7, 7)},
            convolutions=("fc6", "fc7"),
        ),
    },
    "cadene": {BNInception: Naming(_bn_inception, EPSILON_1E_5, biases=True)},
}  # fmt: skip


def formats(model: nn.Module) -> list[str]:
    """The libraries that have a counterpart to the network's class."""
    return [format for format, namings in NAMINGS.items() if type(model) in namings]


def naming(model: nn.Module, format: str) -> Naming:
    """The library's naming for the network.

    Raises:
      UserError: the library is unknown, or has no such network.
    """
    check_choice("format", format, NAMINGS)
    if type(model) not in NAMINGS[format]:
        known = formats(model)
        hint = f"choose {' or '.join(known)}" if known else "no known library has it"
        raise UserError(f"{format} has no {type(model).__name__}: {hint}")
    return NAMINGS[format][type(model)]


def nearest_options(model: nn.Module, names: Naming) -> dict[str, Any]:
    """The fields to change so that the network computes what the library's does."""
    return {field: allowed[0] for field, allowed in names.options.items() if getattr(model, field) not in allowed}


def check_options(model: nn.Module, format: str) -> None:
    """Raises UserError if the network does not compute what the library's network does."""
    nearest = nearest_options(model, naming(model, format))
    if nearest:
        different = ", ".join(f"{field}={getattr(model, field)!r}, not {value!r}" for field, value in nearest.items())
        raise UserError(f"this {type(model).__name__} differs from {format}'s: it has {different}")
