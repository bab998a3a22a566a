"""State dicts against torchvision's and timm's own. That the logits are theirs, too, is tested with the networks."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from networks import DEEPER, assert_logits_equal, module_shapes, peer_variables, random_variables, randomize
from peers import import_timm, import_torchvision

from inception_jax.errors import UserError
from inception_jax.models import MODELS, VGG, create_model
from inception_jax.weights import from_state_dict, to_state_dict
from inception_jax.weights.convert import registered_name
from inception_jax.weights.names import formats, naming, nearest_options

CLASSES = 10


def peer(format, name, num_classes=CLASSES, **options):
    """The library's network, its values not yet drawn."""
    if format == "torchvision":
        create = import_torchvision().models.get_model
        if name in ("googlenet", "inception_v3"):
            options = {"init_weights": False, **options}
    else:
        create = import_timm().create_model
    import torch

    with torch.device("meta"):
        return create(name, num_classes=num_classes, **options)


def fitting(format, name, **options):
    """Our network of that name with the options of the library's."""
    model = create_model(name, num_classes=CLASSES, **options)
    return model.clone(**nearest_options(model, naming(model, format)))


def fitting_names(format):
    """Of what is registered, that which the library has, too; of VGGs and ResNets one of each kind."""
    left_out = {"googlenet_naive", "vgg11", *DEEPER}
    return [
        name for name in MODELS if format in formats(create_model(name, num_classes=CLASSES)) and name not in left_out
    ]


def case(format, name, options, peer_options):
    """One of each library is tried by default."""
    quick = (format, name) in (("torchvision", "resnet18"), ("timm", "inception_v3")) and not options
    return pytest.param(format, name, options, peer_options, marks=[] if quick else pytest.mark.slow)


PEERS = [
    *(case(format, name, {}, {}) for format in ("torchvision", "timm") for name in fitting_names(format)),
    case("torchvision", "googlenet", {"aux_heads": True}, {}),
    case("torchvision", "inception_v3", {"aux_heads": True}, {}),
    case("timm", "inception_v3", {"aux_heads": True}, {"aux_logits": True}),
]


@pytest.mark.parametrize(("format", "name", "options", "peer_options"), PEERS)
def test_a_library_loads_what_it_wrote(format, name, options, peer_options):
    """Recognised, read, written and loaded with strict=True. The tests of networks hold the logits to be the same."""
    import_torchvision()
    import torch

    if format == "torchvision" and name in ("googlenet", "inception_v3"):
        peer_options = {"aux_logits": bool(options)}
    original, copy = peer(format, name, **peer_options), peer(format, name, **peer_options)
    randomize(original)
    copy.to_empty(device="cpu")
    model = fitting(format, name, **options)
    tensors = {name: value.numpy() for name, value in original.state_dict().items()}
    written = to_state_dict(model, from_state_dict(model, tensors), format)
    copy.load_state_dict({name: torch.tensor(value) for name, value in written.items()}, strict=True)
    for name, value in copy.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), tensors[name], err_msg=name)
        assert value.dtype == original.state_dict()[name].dtype


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_timms_vgg_has_convolutions_for_dense_layers(norm):
    """A small one: 28x28 pixels are 7x7 after two pools."""
    vgg = import_timm().models.vgg
    import torch

    layers = [64, "M", 128, 128, "M"]
    original = vgg.VGG(layers, num_classes=CLASSES, norm_layer=torch.nn.BatchNorm2d if norm == "batch" else None)
    randomize(original)
    model = VGG((1, 2), CLASSES, norm=norm)
    assert_logits_equal(model, peer_variables(model, original, "timm"), original, (2, 28, 28, 3))


def random_shapes(model):
    """Variables without memory, since nothing looks at their values."""
    size = model.native_image_size
    shapes = module_shapes(model, (1, size, size, 3))[1]
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)


def test_heads_that_the_network_does_not_have_are_left_out():
    with_heads, without = fitting("torchvision", "googlenet", aux_heads=True), fitting("torchvision", "googlenet")
    tensors = to_state_dict(with_heads, random_variables(module_shapes(with_heads, (1, 224, 224, 3))[1]), "torchvision")
    assert any(name.startswith("aux2.") for name in tensors)
    variables = from_state_dict(without, tensors)
    assert not {"aux1", "aux2"} & variables["params"].keys()
    with pytest.raises(UserError, match=r"18 missing: aux1.*and 8 more"):
        from_state_dict(with_heads, {name: value for name, value in tensors.items() if not name.startswith("aux")})


def test_biases_before_batch_norm_become_part_of_the_means():
    """Cadene's BN-Inception has them: batch norm subtracts the mean from what the bias was added to."""
    model = fitting("cadene", "bn_inception")
    variables = random_variables(module_shapes(model, (1, 224, 224, 3))[1])
    tensors = to_state_dict(model, variables, "cadene")
    assert len(tensors) == 2 + 69 * 7  # a dense layer; kernel, bias, scale, shift, mean, variance, counter
    assert sum(value.size for name, value in tensors.items() if "running" not in name and value.ndim) == 10_280_490
    rng = np.random.default_rng(0)
    biases = {name for name in tensors if name.endswith(".bias") and f"{name[:-5]}_bn.bias" in tensors}
    assert len(biases) == 69
    for name in biases:
        assert not tensors[name].any()
        tensors[name] = rng.standard_normal(tensors[name].shape, np.float32)
    folded = from_state_dict(model, tensors)
    mean = variables["batch_stats"]["inception_4e"]["double_3x3_2"]["norm"]["mean"]
    np.testing.assert_array_equal(
        folded["batch_stats"]["inception_4e"]["double_3x3_2"]["norm"]["mean"],
        mean - tensors["inception_4e_double_3x3_2.bias"],
    )
    jax.tree.map(np.testing.assert_array_equal, folded["params"], variables["params"])


def test_cadenes_names_are_those_of_his_code():
    model = fitting("cadene", "bn_inception")
    names = to_state_dict(model, random_shapes(model), "cadene").keys()
    units = [
        "conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3", "inception_3a_1x1", "inception_3a_3x3_reduce",
        "inception_3a_3x3", "inception_3a_double_3x3_reduce", "inception_3a_double_3x3_1", "inception_3a_double_3x3_2",
        "inception_3a_pool_proj", "inception_3c_double_3x3_reduce", "inception_5b_pool_proj",
    ]  # fmt: skip
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {f"{unit}.{leaf}" for unit in units for leaf in ("weight", "bias")}
    wanted |= {f"{unit}_bn.{leaf}" for unit in units for leaf in norm} | {"last_linear.weight", "last_linear.bias"}
    assert wanted <= names
    assert not {"inception_3c_1x1.weight", "inception_4e_pool_proj.weight"} & names


def test_float64_and_half_become_what_the_network_has():
    model = fitting("torchvision", "resnet18")
    tensors = to_state_dict(model, random_variables(module_shapes(model, (1, 32, 32, 3))[1]), "torchvision")
    for dtype in (np.float16, np.float64):
        variables = from_state_dict(model, {name: value.astype(dtype) for name, value in tensors.items()})
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    with jax.enable_x64(True):
        wide = from_state_dict(model.clone(param_dtype=np.float64), tensors)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype(np.float64)}
    assert to_state_dict(model, wide, "timm")["fc.weight"].dtype == np.float64


# What does not fit.


@pytest.fixture(scope="module")
def resnet18():
    model = fitting("torchvision", "resnet18")
    return to_state_dict(model, random_shapes(model), "torchvision")


def test_missing_unknown_and_misshapen_tensors_are_listed(resnet18):
    model = fitting("torchvision", "resnet18")
    tensors = dict(resnet18)
    for layer in (1, 2):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            for norm in (1, 2):
                del tensors[f"layer{layer}.0.bn{norm}.{leaf}"]
    tensors["head.weight"] = tensors.pop("fc.weight")
    tensors["conv1.weight"] = np.zeros((64, 1, 7, 7), np.float32)
    with pytest.raises(UserError) as error:
        from_state_dict(model, tensors)
    message = str(error.value)
    assert message.startswith("the tensors do not match this resnet18: 17 missing: fc.weight, layer1.0.bn1.bias, ")
    assert " and 7 more; 1 unknown: head.weight; 1 of another shape: conv1.weight (64, 1, 7, 7) instead of " in message
    assert message.endswith("(64, 3, 7, 7)")


def test_counters_may_be_missing(resnet18):
    """Files from before 2018 have none."""
    tensors = {name: value for name, value in resnet18.items() if "num_batches" not in name}
    from_state_dict(fitting("torchvision", "resnet18"), tensors)


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("resnet34", None, "these are the weights of torchvision's resnet18, not of torchvision's resnet34"),
        ("googlenet", None, "these are the weights of torchvision's resnet18, not of torchvision's googlenet"),
        ("inception_v4", None, "these are the weights of torchvision's resnet18, not of timm's inception_v4"),
        ("vgg11_bn", "timm", "these are the weights of torchvision's resnet18, not of timm's vgg11"),
        ("simple_cnn", None, "torchvision and timm and cadene have no SimpleCNN, so there are no weights to read"),
        ("resnet18", "keras", "unknown format 'keras'. Known: cadene, timm, torchvision"),
        ("googlenet", "timm", "timm has no GoogLeNet: choose torchvision"),
    ],
)
def test_another_networks_weights_are_named(resnet18, name, format, message):
    with pytest.raises(UserError) as error:
        from_state_dict(create_model(name, num_classes=CLASSES), resnet18, format)
    assert str(error.value).startswith(message)


def test_networks_that_compute_something_else_are_refused(resnet18):
    model = create_model("resnet18", num_classes=CLASSES, norm_epsilon=1e-3, stem="small")
    for call in (
        lambda: from_state_dict(model, resnet18),
        lambda: to_state_dict(model, random_shapes(model), "timm"),
    ):
        with pytest.raises(UserError, match=r"norm_epsilon=0\.001, not 1e-05, stem='small', not 'imagenet'$"):
            call()


def test_every_option_that_changes_what_googlenet_computes_is_looked_at():
    """So that no weights are written with which torchvision's network gives other logits, or which it cannot load."""
    others = {
        "norm": "lrn", "norm_epsilon": 1e-5, "reductions": False, "kernel_3x3": 1, "kernel_5x5": 5,
        "pool_padding": "valid", "pool_4": 3, "aux_pool": "paper", "residual": "identity", "stem": "small",
    }  # fmt: skip
    model = fitting("torchvision", "googlenet")
    unchanged = {"num_classes", "aux_heads", "initializer", "dtype", "param_dtype", "parent", "name"}
    assert {field.name for field in dataclasses.fields(model)} == others.keys() | unchanged | {
        "dropout_rate", "aux_dropout_rate"
    }  # fmt: skip
    for field, value in others.items():
        with pytest.raises(UserError, match=f"differs from torchvision's: it has .*{field}={value!r}"):
            to_state_dict(model.clone(**{field: value}), {}, "torchvision")


def test_the_classifier_may_be_left_out(resnet18):
    model = create_model("resnet18", num_classes=5)
    with pytest.raises(UserError) as error:
        from_state_dict(model, resnet18)
    assert str(error.value) == (
        "the weights are for 10 classes, but this resnet18 is for 5: use as many, or leave the classifier out "
        "(classifier=False)"
    )
    variables = from_state_dict(model, resnet18, classifier=False)
    wanted = module_shapes(model, (1, 32, 32, 3))[1]
    del wanted["params"]["fc"]
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, wanted)


def test_those_of_the_heads_are_left_out_as_well():
    model = fitting("torchvision", "googlenet", aux_heads=True)
    tensors = to_state_dict(model, random_shapes(model), "torchvision")
    variables = from_state_dict(model.clone(num_classes=7), tensors, classifier=False)
    assert variables["params"]["aux1"].keys() == {"conv", "fc1"}
    assert "fc" not in variables["params"]


def test_gray_images_need_an_image_shape():
    model = fitting("torchvision", "resnet18")
    gray = random_variables(module_shapes(model, (1, 32, 32, 1))[1])
    tensors = to_state_dict(model, gray, "torchvision")
    variables = from_state_dict(model, tensors, image_shape=(28, 28, 1))
    jax.tree.map(np.testing.assert_array_equal, variables, gray)
    with pytest.raises(UserError, match=r"conv1\.weight \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\)"):
        from_state_dict(model, tensors)


def test_networks_know_their_names():
    assert [registered_name(create_model(name, num_classes=3)) for name in MODELS] == list(MODELS)
    assert registered_name(create_model("vgg16", num_classes=3, norm="batch")) == "vgg16_bn"
    assert registered_name(nn.Dense(3)) == "Dense"
