"""Training: `train_and_evaluate` for a config, `fit` for arrays in memory.

`training` goes from the config to the summary, `start` decides what the config leaves open, `loop` is the loop itself,
`events` determines when it evaluates, saves and ends, and `session` is the host's part of it. `find_lr` trains
for some steps with a rising learning rate.
"""

from inception_jax.train.stopping import Interrupted, NonFiniteLoss, StoppedAtOnce
from inception_jax.train.summary import describe_result
from inception_jax.train.training import fit, train_and_evaluate

__all__ = ["Interrupted", "NonFiniteLoss", "StoppedAtOnce", "describe_result", "fit", "train_and_evaluate"]
