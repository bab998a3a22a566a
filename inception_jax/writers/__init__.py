"""Writers: what records a run's curves, pictures and config, with the method names of `clu.metric_writers`.

`Writer` is the protocol. `writers.open` finds the writers that a config names, and `Writers` drives all of a run's.
metrics.csv has its own module, `runs.metrics_log`.
"""

from inception_jax.writers.protocol import Writer

__all__ = ["Writer"]
