"""The decoded images of a published data set, written once per image format and memory-mapped from then on."""

import logging
import os
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from inception_jax.data import resident, sources, storage
from inception_jax.data.images import Format
from inception_jax.data.published import Base, Published
from inception_jax.data.resident import Arrays

DECODE_CHUNK = 64  # pictures that a thread decodes at a time

logger = logging.getLogger(__name__)


def open_decoded(found: Published, form: Format) -> dict[str, Arrays]:
    """The decoded images of this format and their labels, by the name of the source.

    Raises:
      UserError: they are damaged, or cannot be written.
    """
    folder = decoded_folder(found, form)
    again = f"rm -r {shlex.quote(str(folder))}; {found.command}"
    _, arrays = resident.open_arrays(folder, again)
    with resident.required(folder, again):
        for stored, base in found.stored.items():
            labels = base.labels[base.facts.decodable]
            if len(labels) and not np.array_equal(arrays[stored][1], labels):
                raise ValueError(f"{stored}_labels.npy does not hold the labels of the pictures")
    return arrays


def decoded_folder(found: Published, form: Format) -> Path:
    """The folder with the decoded images of this format, which is written if it does not exist."""
    place = found.cache / "decoded" / (found.fingerprint or "")
    first = next(base for base in found.stored.values() if base.facts.decodable.any())
    row = int(np.argmax(first.facts.decodable))
    # Named by the resulting size, so that asking for the pictures' own size finds it, too.
    own = [size + 2 * form.pad for size in (first.facts.heights[row], first.facts.widths[row])]
    name = str(form) if form.image_size else str(form).replace("as_they_are", f"{own[0]}x{own[1]}")
    folder = place / name
    if folder.is_dir():
        return folder

    def examples(base: Base, rows: np.ndarray, pool: ThreadPoolExecutor) -> Iterator[tuple[np.ndarray, int]]:
        def decode(chunk: np.ndarray) -> list[tuple[np.ndarray, int]]:
            images = sources.decode_all(base.source, chunk.tolist(), form)
            return list(zip(images, base.labels[chunk], strict=True))

        # Several per thread, since decoding a small picture takes less time than handing it over; not all at once,
        # to limit memory.
        chunks = [rows[start : start + DECODE_CHUNK] for start in range(0, len(rows), DECODE_CHUNK)]
        at_once = os.cpu_count() or 1
        for start in range(0, len(chunks), at_once):
            for images in pool.map(decode, chunks[start : start + at_once]):
                yield from images

    logger.info("decoding %s to %s", found.name, folder)
    with storage.writing_to(folder), ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = {stored: (base, np.flatnonzero(base.facts.decodable)) for stored, base in found.stored.items()}
        resident.write_arrays(
            folder,
            found.class_names,
            {stored: (len(rows), examples(base, rows, pool)) for stored, (base, rows) in parts.items()},
        )
    return folder
