"""Several processes that train one network: how they meet, what they have to agree on, how they watch each other.

`inception_jax.distributed.multihost` is what the rest of the package calls.
"""
