"""Serves a trained network over HTTP. Requires the packages of the extra `serve`."""

from inception_jax.trained.serving.app import create_app
from inception_jax.trained.serving.connections import Access, allowed_names
from inception_jax.trained.serving.examples import load_examples
from inception_jax.trained.serving.server import address_of, is_loopback, listen, make_server, serve
from inception_jax.trained.serving.work import Limits

__all__ = [
    "Access",
    "Limits",
    "address_of",
    "allowed_names",
    "create_app",
    "is_loopback",
    "listen",
    "load_examples",
    "make_server",
    "serve",
]
