"""Several processes that train one network: how they meet, what they must agree on, how they monitor each other.

`inception_jax.distributed.multihost` is what the rest of the package calls.
"""
