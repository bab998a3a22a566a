"""Archives of the published layout with a few images; the builders are told that these are what was published."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from inception_jax.data.archives import Content
from inception_jax.data.builders import cifar10


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes the six files of a CIFAR-10 of 12 images; returns their folder."""
    folder.mkdir()
    contents = {}
    for number, name in enumerate(cifar10.FILES):
        payload = bytes([number]) + bytes(3072) + bytes([9 - number]) + (np.arange(3072) % 253).astype("u1").tobytes()
        contents[name] = Content(len(payload), hashlib.sha256(payload).hexdigest())
        (folder / name).write_bytes(payload)
    monkeypatch.setattr(cifar10, "FILES", contents)
    return folder
