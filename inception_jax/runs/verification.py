"""The manifest of a checkpoint: what it has besides its arrays, and the digests that verify all of it."""

import hashlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from inception_jax.errors import UserError
from inception_jax.text import listed

# The version of what `Manifest` writes. Version 1 had no such field, and its checksum did not cover all of the digest.
FORMAT = 2
LISTED = 3  # leaves named in a message


class Manifest(NamedTuple):
    """What a checkpoint has besides its arrays."""

    leaves: dict[str, dict[str, Any]]  # by path: shape, dtype, digest of the bytes
    progress: dict[str, Any]
    metrics: dict[str, float] | None

    def digest(self) -> dict[str, Any]:
        """The JSON item `digest`: everything except the progress, with a checksum of both."""
        content = {"format": FORMAT, "leaves": self.leaves, "metrics": self.metrics}
        return content | {"checksum": _checksum([content, self.progress])}

    @classmethod
    def verified(cls, digest: dict[str, Any], progress: dict[str, Any]) -> tuple[int, "Manifest"]:
        """The format that was written, and the manifest. Raises any error if they are damaged.

        Later formats must keep this checksum: it tells a later format from a damaged one.
        """
        content = {name: value for name, value in digest.items() if name != "checksum"}
        written_format, signed = content.get("format", 1), [content, progress]
        if written_format == 1:
            signed = [content["leaves"], progress, content["metrics"]]
        if _checksum(signed) != digest["checksum"]:
            raise ValueError
        return written_format, cls(content.get("leaves", {}), progress, content.get("metrics"))


def _checksum(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def describe(tree: PyTree, *, with_bytes: bool) -> dict[str, dict[str, Any]]:
    """The shape and dtype of every leaf, and on request its digest, by path."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        record = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if with_bytes:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
            record["digest"] = hashlib.blake2b(content.data, digest_size=16).hexdigest()
        leaves[jax.tree_util.keystr(path, simple=True, separator="/")] = record
    return leaves


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape, dtype and sharding of a leaf; by default on the first device."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        leaf = jnp.asarray(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def require_fit(step: int, saved: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> None:
    """Raises UserError unless the leaves of a checkpoint have the shapes and dtypes that are wanted, by path."""

    def show(leaves, path):
        return f"{leaves[path]['dtype']}{leaves[path]['shape']}" if path in leaves else "nothing"

    differing = [
        f"{path}: saved {show(saved, path)}, expected {show(wanted, path)}"
        for path in {**wanted, **saved}
        if show(saved, path) != show(wanted, path)
    ]
    if differing:
        raise UserError(
            f"the checkpoint of step {step} is of another network or optimizer: {listed(differing, LISTED, '; ')}. "
            "Use the config that it was saved with, or another folder"
        )
