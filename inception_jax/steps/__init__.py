"""What is jitted: the steps of training, evaluation and prediction, and what they are made of."""

from inception_jax.steps.step import Mix, Prepare, eval_step, predict_step, train_step

__all__ = ["Mix", "Prepare", "eval_step", "predict_step", "train_step"]
