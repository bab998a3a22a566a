"""The jitted steps of training, evaluation and prediction, and their components."""

from inception_jax.steps.step import Mix, Prepare, eval_step, predict_step, train_step

__all__ = ["Mix", "Prepare", "eval_step", "predict_step", "train_step"]
