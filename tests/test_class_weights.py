"""Weights of the classes in the loss, against torch's CrossEntropyLoss(weight) and scikit-learn's balance."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.utils.class_weight import compute_class_weight

import inception_jax
from inception_jax import steps
from inception_jax.config import default_config
from inception_jax.config.files import override
from inception_jax.errors import UserError
from inception_jax.experiment import Experiment
from inception_jax.steps import losses, state

WEIGHTS = np.array([0.2, 3.0, 1.0, 0.5])


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(4, name="fc")(images.reshape(len(images), -1))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("probabilities", [False, True])
def test_the_loss_of_each_example_is_torchs(probabilities, label_smoothing):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 4)), random.integers(0, 4, 6)
    targets = random.dirichlet(np.ones(4), 6) if probabilities else labels
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(targets),
        torch.tensor(WEIGHTS),
        label_smoothing=label_smoothing,
        reduction="none",
    )
    with jax.enable_x64(True):
        ours = losses.cross_entropy(
            jnp.asarray(logits),
            jnp.asarray(targets, None if probabilities else jnp.int32),
            label_smoothing=label_smoothing,
            class_weights=jnp.asarray(WEIGHTS),
        )
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("accumulation_steps", "devices"), [(1, 1), (3, 2)])
def test_a_step_is_that_of_torchs_mean(mixed, accumulation_steps, devices):
    """The mean is over the weights of the whole batch, or over its examples if they are mixed."""
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    random, optimizer = np.random.default_rng(0), optax.sgd(0.1)
    images, labels = random.random((12, 2, 2, 1), np.float32), random.integers(0, 4, 12, np.int32)
    begun = state.create_state(jax.random.key(0), Linear(), optimizer, (2, 2, 1))

    def soften(key, images, labels):
        return images, 0.1 + 0.6 * jax.nn.one_hot(labels, 4)

    step = partial(
        steps.train_step,
        model=Linear(),
        optimizer=optimizer,
        prepare=lambda key, images: images,
        mix=soften if mixed else None,
        label_smoothing=0.2,
        class_weights=jnp.asarray(WEIGHTS, jnp.float32),
        accumulation_steps=accumulation_steps,
    )
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    batch = jax.device_put((images, labels), NamedSharding(mesh, PartitionSpec("data")))
    ours, loss = jax.jit(step)(begun, *batch, jax.random.key(1))
    layer = torch.nn.Linear(4, 4)
    layer.load_state_dict({"weight": torch.tensor(np.array(begun.params["fc"]["kernel"]).T), "bias": torch.zeros(4)})
    targets = torch.tensor(0.1 + 0.6 * np.eye(4, dtype=np.float32)[labels] if mixed else labels.astype(np.int64))
    rule = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS, dtype=torch.float32), label_smoothing=0.2)
    expected = rule(layer(torch.tensor(images.reshape(12, 4))), targets)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    kernel = (layer.weight - 0.1 * layer.weight.grad).detach().numpy().T
    np.testing.assert_allclose(ours.params["fc"]["kernel"], kernel, rtol=1e-5, atol=1e-6)
    if not mixed:  # the metric is not weighted
        plain = torch.nn.CrossEntropyLoss(label_smoothing=0.2, reduction="sum")
        total = plain(layer(torch.tensor(images.reshape(12, 4))), targets)
        assert float(ours.metrics["loss"]) == pytest.approx(total.item(), rel=1e-5)


@pytest.fixture
def config():
    config = default_config()
    config.batch_size, config.num_devices, config.num_epochs = 16, 1, 1
    config.model.name, config.model.stage_features = "simple_cnn", (4,)
    config.schedule.learning_rate = 0.01
    config.log.tensorboard = False
    return config


IMAGES = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 1), np.uint8)
LABELS = np.repeat(np.arange(3), (8, 16, 24)).astype(np.int32)


def test_balanced_classes(config, tmp_path):
    override(config, ["", "--config.loss.class_weights=balanced"])
    for _ in range(2):  # the second one finds it complete, on the same data
        run = inception_jax.fit(config, (IMAGES, LABELS), workdir=tmp_path)
    experiment = Experiment.of(run.config, run.inputs, steps_per_epoch=3)
    np.testing.assert_allclose(
        experiment.class_weights, compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 2.0), "loss.class_weights has 2 numbers, but the data has 4 classes"),
        (("balanced",), "loss.class_weights=balanced needs training images of all classes; 3 has none"),
        ((1.0, 0.0, 1.0, 1.0), r"loss.class_weights=\(1.0, 0.0, 1.0, 1.0\) is not allowed: it must be balanced, or a"),
        (("even",), r"loss.class_weights=\('even',\) is not allowed: it must be balanced, or a number above 0"),
    ],
)
def test_mistakes_are_named(config, weights, message, tmp_path):
    config.loss.class_weights = weights
    with pytest.raises(UserError, match=message):
        inception_jax.fit(config, (IMAGES, LABELS), class_names=tuple("0123"), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
