"""Weights by name, from a server on this machine, and by file: what comes out, and what is said when they do not."""

import dataclasses
import hashlib
import http.server
import logging
import os
import re
import threading

import jax
import numpy as np
import pytest
from flax import linen as nn
from networks import module_shapes, quick_jit, random_variables
from peers import import_torchvision

import inception_jax
from inception_jax import models, weights
from inception_jax.errors import UserError
from inception_jax.models import list_models
from inception_jax.weights import PRETRAINED, Preprocessing, create_model, imagenet_classes, init_from, pretrained
from inception_jax.weights.published import PublishedWeights, fetch, is_copy

PREPROCESSING = Preprocessing(36, 32, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))


def resnet18(num_classes):
    model = models.create_model("resnet18", num_classes=num_classes)
    return model, random_variables(module_shapes(model, (1, 32, 32, 3))[1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with weights of a ResNet-18 for 1000 classes, and for these and a background before them."""
    folder = tmp_path_factory.mktemp("published")
    model, variables = resnet18(1000)
    tensors = weights.to_state_dict(model, variables, "torchvision")
    weights.write_state_dict(folder / "resnet18.safetensors", tensors)
    for name in ("fc.weight", "fc.bias"):
        tensors[name] = np.concatenate([np.full_like(tensors[name][:1], 100), tensors[name]])
    weights.write_state_dict(folder / "background.safetensors", tensors)
    return folder


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    """Serves the files as published weights; what was asked for is in `server.requests`."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(files))

        def log_message(self, format, *args):
            requests.append(self.path)

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(tmp_path / "data"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def publish(file="resnet18.safetensors", sha256=None, **fields):
            url = f"http://127.0.0.1:{server.server_port}/{file}"
            sha256 = sha256 or hashlib.sha256((files / file).read_bytes()).hexdigest()
            return PublishedWeights("torchvision", "resnet18", url, sha256, PREPROCESSING, "a licence", **fields)

        published = {"torchvision:resnet18": publish(), "torchvision:resnet18.v2": publish("background.safetensors")}
        monkeypatch.setattr(pretrained, "PRETRAINED", published)
        server.requests, server.publish = requests, publish
        yield server
        server.shutdown()
        thread.join()


def test_what_is_published_is_downloaded_once_and_ready_to_predict(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    network = create_model("resnet18", weights="torchvision")
    again = create_model("resnet18", weights="torchvision:resnet18")
    assert server.requests == ["/resnet18.safetensors"]
    assert [path.name for path in (tmp_path / "data" / "weights").iterdir()] == ["resnet18.safetensors"]
    assert "license: a licence" in caplog.text
    assert (network.class_names, network.preprocessing) == (imagenet_classes(), PREPROCESSING)
    model, variables = resnet18(1000)
    assert network.model == model
    jax.tree.map(np.testing.assert_array_equal, (network.variables, again.variables), (variables, variables))
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    expected = quick_jit(lambda v, x: model.apply(v, x, train=False))(variables, PREPROCESSING(picture)[None]).logits
    np.testing.assert_allclose(network.logits(picture), expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(network.predict([picture]).sum(1), 1, atol=1e-5)


def initial_kernel(model, seed):
    """The classifier's, as a network gets it that starts from nothing."""
    images = np.zeros((1, 32, 32, 3), np.float32)
    return quick_jit(lambda key: model.init(key, images, train=False)["params"]["fc"]["kernel"])(jax.random.key(seed))


def test_other_classes_get_a_new_classifier(server):
    one, same, other = (
        create_model("resnet18", num_classes=7, weights="torchvision", seed=seed, dropout_rate=0.5)
        for seed in (0, 0, 1)
    )
    assert one.class_names == tuple("0123456")
    assert one.model.dropout_rate == 0.5
    shapes = module_shapes(one.model, (1, 32, 32, 3))[1]
    assert jax.tree.map(np.shape, one.variables) == jax.tree.map(np.shape, shapes)
    kernel = one.variables["params"]["fc"]["kernel"]
    np.testing.assert_allclose(kernel, initial_kernel(one.model, 0), rtol=1e-6)
    np.testing.assert_array_equal(kernel, same.variables["params"]["fc"]["kernel"])
    assert (kernel != other.variables["params"]["fc"]["kernel"]).any()
    np.testing.assert_array_equal(
        one.variables["params"]["conv1"]["conv"]["kernel"], other.variables["params"]["conv1"]["conv"]["kernel"]
    )


def test_the_background_class_is_dropped(server, monkeypatch):
    published = {"torchvision:resnet18": server.publish("background.safetensors", background=True)}
    monkeypatch.setattr(pretrained, "PRETRAINED", published)
    network = create_model("resnet18", weights="torchvision")
    jax.tree.map(np.testing.assert_array_equal, network.variables, resnet18(1000)[1])
    assert len(network.class_names) == 1000


def test_a_copy_of_a_published_file_is_it(server, files, tmp_path, monkeypatch):
    """Where there is no network: by its path, with all that comes with the weights."""
    published = {"torchvision:resnet18": server.publish("background.safetensors", background=True)}
    monkeypatch.setattr(pretrained, "PRETRAINED", published)
    network = create_model("resnet18", weights=files / "background.safetensors")
    jax.tree.map(np.testing.assert_array_equal, network.variables, resnet18(1000)[1])
    assert (network.class_names, network.preprocessing) == (imagenet_classes(), PREPROCESSING)
    assert init_from(files / "background.safetensors", network.model).preprocessing == PREPROCESSING
    assert weights.find_network(str(files / "background.safetensors")) == ("resnet18", {}, PREPROCESSING)
    (tmp_path / "background.safetensors").write_bytes((files / "resnet18.safetensors").read_bytes())
    assert init_from(tmp_path / "background.safetensors", network.model).preprocessing is None  # only called so
    assert server.requests == []


def test_the_licence_is_shown_where_nothing_has_set_up_logging(server, caplog, capsys):
    caplog.set_level(logging.WARNING, logger="inception_jax")  # the default
    fetch(server.publish())
    assert capsys.readouterr().err.endswith("resnet18.safetensors; license: a licence\n")


def test_what_training_begins_with(server, files, tmp_path):
    model, variables = resnet18(1000)
    initial = init_from("torchvision", model)
    jax.tree.map(np.testing.assert_array_equal, initial.variables, variables)
    assert (initial.preprocessing, initial.class_names, initial.left_out) == (PREPROCESSING, imagenet_classes(), ())
    model = model.clone(num_classes=3)
    (tmp_path / "mine.safetensors").write_bytes((files / "resnet18.safetensors").read_bytes())
    initial = init_from(tmp_path / "mine.safetensors", model, image_shape=(64, 64, 3), key=jax.random.key(5))
    assert (initial.preprocessing, initial.class_names, initial.left_out) == (None, None, ("fc",))
    np.testing.assert_allclose(initial.variables["params"]["fc"]["kernel"], initial_kernel(model, 5), rtol=1e-6)


def test_weights_without_a_classifier_get_a_new_one(files, tmp_path):
    tensors = weights.read_state_dict(files / "resnet18.safetensors")
    del tensors["fc.weight"], tensors["fc.bias"]
    path = tmp_path / "trunk.safetensors"
    weights.write_state_dict(path, tensors)
    assert init_from(path, models.create_model("resnet18", num_classes=3)).left_out == ("fc",)
    assert create_model("resnet18", num_classes=3, weights=path).class_names == ("0", "1", "2")
    with pytest.raises(
        UserError, match=r"trunk\.safetensors has no classifier: give num_classes to initialize a new one"
    ):
        create_model("resnet18", weights=path)


def test_without_weights_it_is_the_module():
    module = inception_jax.create_model("googlenet", num_classes=10, norm="lrn")
    assert isinstance(module, nn.Module)
    assert module == models.create_model("googlenet", num_classes=10, norm="lrn")
    with pytest.raises(
        UserError, match=r"create_model\('googlenet'\) needs num_classes, the number of logits, or weig"
    ):
        create_model("googlenet")  # pyright: ignore


def test_the_options_are_those_of_the_weights_unless_they_are_given(tmp_path):
    """GoogLeNet's are not its defaults here; heads may be asked for."""
    model = models.create_model("googlenet", num_classes=4, kernel_5x5=3, aux_heads=True)
    variables = random_variables(module_shapes(model, (1, 224, 224, 3))[1])
    weights.write_state_dict(tmp_path / "g.safetensors", weights.to_state_dict(model, variables, "torchvision"))
    network = create_model("googlenet", weights=tmp_path / "g.safetensors", aux_heads=True)
    assert (network.model, network.class_names) == (model, ("0", "1", "2", "3"))
    assert network.preprocessing == PRETRAINED["torchvision:googlenet"].preprocessing
    network = create_model(
        "googlenet", weights=tmp_path / "g.safetensors", preprocessing=PREPROCESSING, dtype="bfloat16"
    )
    assert (network.model, network.preprocessing) == (model.clone(aux_heads=False, dtype="bfloat16"), PREPROCESSING)
    with pytest.raises(UserError, match="it has kernel_5x5=5, not 3"):
        create_model("googlenet", weights=tmp_path / "g.safetensors", kernel_5x5=5)


def test_weights_that_do_not_say_how_pictures_are_read_need_a_preprocessing(tmp_path):
    model = models.create_model("bn_inception", num_classes=4)
    variables = random_variables(module_shapes(model, (1, 224, 224, 3))[1])
    weights.write_state_dict(tmp_path / "bn.safetensors", weights.to_state_dict(model, variables, "cadene"))
    with pytest.raises(UserError, match=r"bn\.safetensors does not define its preprocessing: give preprocessing="):
        create_model("bn_inception", weights=tmp_path / "bn.safetensors")
    assert create_model("bn_inception", weights=tmp_path / "bn.safetensors", preprocessing=PREPROCESSING).model == model


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("resnet18", "torchvison", "unknown weights (and no file) 'torchvison'. Did you mean 'torchvision'?"),
        ("resnet18", "torchvision:resnet19", "Did you mean 'torchvision:resnet18'?"),
        ("simple_cnn", "timm", "unknown weights (and no file) 'timm:simple_cnn'"),
        ("simple_cnn", "FILES/resnet18.safetensors", "torchvision and timm and cadene have no SimpleCNN"),
        ("resnet18", "missing.pth", "cannot read missing.pth: No such file or directory"),
        ("resnet34", "FILES/resnet18.safetensors", "safetensors: these are the weights of torchvision's resnet18, not"),
    ],
)
def test_weights_that_are_not_there_or_not_the_networks_are_named(files, name, source, message):
    with pytest.raises(UserError) as error:
        create_model(name, weights=source.replace("FILES", str(files)))
    assert message in str(error.value)


# Downloads.


def weights_folder(tmp_path):
    return sorted(path.name for path in (tmp_path / "data" / "weights").iterdir())


def test_eight_digits_of_the_digest_are_enough(server, tmp_path, capsys):
    """The whole one is shown and kept when the file is first seen."""
    whole = server.publish()
    path = tmp_path / "data" / "weights" / "resnet18.safetensors"
    for shown in (True, False):
        assert fetch(server.publish(sha256=whole.sha256[:8])) == path
        assert (f"SHA-256 of resnet18.safetensors: {whole.sha256}; it is stored" in capsys.readouterr().err) == shown
    assert path.with_name("resnet18.safetensors.sha256").read_text() == f"{whole.sha256}  resnet18.safetensors\n"
    assert weights_folder(tmp_path) == ["resnet18.safetensors", "resnet18.safetensors.sha256"]


@pytest.fixture
def first_seen(server, tmp_path):
    """What is published with an empty beginning of its digest, after another file of that name was seen."""
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    (folder / "resnet18.safetensors.sha256").write_text(f"{'0' * 64}  resnet18.safetensors\n")
    published = server.publish()
    return dataclasses.replace(published, sha256=published.sha256[:8])


def test_another_file_than_at_first_is_refused(server, first_seen, files, tmp_path):
    folder = tmp_path / "data" / "weights"
    digest = server.publish().sha256
    kept = f"has changed since its first use: its SHA-256 is {digest}, but .*sha256 has {'0' * 64}: "
    with pytest.raises(UserError, match=rf"{first_seen.url} {kept}it was removed"):
        fetch(first_seen)
    assert weights_folder(tmp_path) == ["resnet18.safetensors.sha256"]
    path = folder / "resnet18.safetensors"
    path.write_bytes((files / "resnet18.safetensors").read_bytes())
    with pytest.raises(UserError, match=rf"{path} {kept}remove the file"):
        fetch(first_seen)
    assert not is_copy(path, first_seen)
    (folder / "resnet18.safetensors.sha256").write_text(f"{digest}  resnet18.safetensors\n")
    assert fetch(first_seen) == path
    assert is_copy(path, first_seen)


def test_a_digest_that_was_kept_and_damaged_is_named(first_seen, tmp_path):
    for damage in ("", "0" * 63, "x" * 64, "0" * 10**6):
        (tmp_path / "data" / "weights" / "resnet18.safetensors.sha256").write_text(damage)
        with pytest.raises(UserError, match=r"resnet18\.safetensors\.sha256 is damaged: remove it"):
            fetch(first_seen)


def test_a_whole_digest_needs_no_other(server, tmp_path):
    fetch(server.publish())
    assert weights_folder(tmp_path) == ["resnet18.safetensors"]


def test_a_pipe_in_the_cache_is_refused(server, tmp_path):
    (tmp_path / "data" / "weights").mkdir(parents=True)
    os.mkfifo(tmp_path / "data" / "weights" / "resnet18.safetensors")
    with pytest.raises(UserError, match="is a named pipe, not a regular file"):
        fetch(server.publish())


def test_another_file_than_the_published_one_is_removed(server, tmp_path):
    published = server.publish(sha256="12345678")
    with pytest.raises(UserError) as error:
        fetch(published)
    digest = server.publish().sha256
    assert str(error.value) == (
        f"{published.url} is not the published file: its SHA-256 is {digest}, which does not begin with 12345678; "
        "it was removed"
    )
    assert weights_folder(tmp_path) == []


def test_a_file_put_there_by_hand_is_used_if_it_is_the_published_one(server, files, tmp_path):
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    content = (files / "resnet18.safetensors").read_bytes()
    (folder / "resnet18.safetensors").write_bytes(content)
    assert fetch(server.publish()) == folder / "resnet18.safetensors"
    (folder / "resnet18.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"resnet18\.safetensors is not the published file, whose SHA-256 begins with"):
        fetch(server.publish())
    assert weights_folder(tmp_path) == ["resnet18.safetensors"]
    assert server.requests == []


def test_without_a_network_it_is_said_what_to_put_where(server, tmp_path):
    published = server.publish()
    server.shutdown()
    server.socket.close()
    with pytest.raises(UserError) as error:
        fetch(published)
    path = tmp_path / "data" / "weights" / "resnet18.safetensors"
    hint = f"without network access, download it elsewhere and put it at {path}"
    pattern = f"cannot download {published.url} .*refused.*: {hint}"
    assert re.fullmatch(pattern, str(error.value))
    assert weights_folder(tmp_path) == []


def test_what_the_server_does_not_have_is_said(server):
    published = server.publish()
    with pytest.raises(UserError, match=r"cannot download .*/gone\.pth \((Not Found|File not found)\)"):
        fetch(PublishedWeights(**{**vars(published), "url": published.url.replace("resnet18.safetensors", "gone.pth")}))


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory"):
        fetch(server.publish())


# What is published.


def test_names_digests_and_files_agree():
    for name, published in PRETRAINED.items():
        format, _, model = name.partition(":")
        assert (published.format, published.model) == (format, model.partition(".")[0])
        assert published.model in list_models()
        file = published.url.rpartition("/")[2]
        (digits,) = re.findall(r"-([0-9a-f]{8})\.pth$", file)
        assert published.sha256.startswith(digits)
        assert len(published.sha256) in (8, 64)
        assert published.url.startswith("https://")
        assert published.licence


def test_all_that_torchvision_publishes_for_the_networks_here_is_there():
    torchvision = import_torchvision()
    urls = {published.url for published in PRETRAINED.values()}
    for name in list_models():
        if name in torchvision.models.list_models(module=torchvision.models):
            for entry in torchvision.models.get_model_weights(name):
                assert entry.url in urls or entry.name == "IMAGENET1K_FEATURES"  # of VGG-16: no classifier
