"""One training step of three networks as numbers, which test_golden.py compares with those in golden.json.

A change that is meant to alter training (the wiring of a network, initial weights, augmentation, the loss, the order of
random draws) changes them. Renew them then, and say in the commit message why they changed:

    python tests/golden.py

Each network has blocks that the others lack, and the step has auxiliary heads, label smoothing and augmentation.
Everything is computed in float64 on one device, so that any machine gives these numbers but for rounding.
"""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

from inception_jax.config import default_config
from inception_jax.experiment import Experiment, Inputs, initial_key, training_key
from inception_jax.models.googlenet import GoogLeNet
from inception_jax.models.resnet import ResNet
from inception_jax.models.small_inception import SmallInception
from inception_jax.steps import initialization

FILE = Path(__file__).with_suffix(".json")
BATCH, SIDE, CLASSES = 4, 16, 10
NETWORKS = {
    "googlenet": partial(GoogLeNet, stem="small", norm="lrn", aux_heads=True),
    "resnet": partial(ResNet, "basic", (1, 1), stem="small"),
    "small_inception": partial(SmallInception, stage_features=(8, 12)),
}


def one_step(name: str) -> dict[str, float]:
    """The loss of a network's first training step, and the global norm of its gradients."""
    config = default_config()
    config.compute_dtype = "float64"
    config.optimizer.update({"name": "sgd", "momentum": 0.0, "weight_decay": 0.0})
    config.schedule.update({"name": "constant", "learning_rate": 1.0, "warmup_epochs": 0.0})  # updates are gradients
    config.loss.update({"label_smoothing": 0.1, "aux_weight": 0.3})
    config.data.augment.update({"pad_and_crop": 2, "horizontal_flip": 0.5, "brightness": 0.2})
    inputs = Inputs(tuple("abcdefghij"), (SIDE, SIDE, 3), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    experiment = Experiment.of(config, inputs, steps_per_epoch=1)
    model = NETWORKS[name](num_classes=CLASSES, dtype=np.float64, param_dtype=np.float64)
    experiment = dataclasses.replace(experiment, model=model)

    generator = np.random.Generator(np.random.Philox(0))
    images = generator.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    labels = generator.integers(0, CLASSES, BATCH, np.int32)
    key = initial_key(config)
    state = initialization.evaluate(jax.jit(experiment.initial_state).trace(key), key)  # as training does
    # Compiled without LLVM's optimizations, which take longer than the step.
    train_step = jax.jit(experiment.train_step, compiler_options={"xla_backend_optimization_level": "0"})
    after, loss = train_step(state, images, labels, training_key(config))
    gradients = jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), state.params, after.params)
    return {"loss": float(loss), "gradient_norm": float(optax.tree.norm(gradients))}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX reads it at its first operation
    FILE.write_text(json.dumps({name: one_step(name) for name in NETWORKS}, indent=2) + "\n")
