"""What a folder of pictures held when it was last used, and what has changed in it since."""

import gzip
import json
import logging
import os
import shutil
import zlib
from pathlib import Path

from inception_jax import files
from inception_jax.data import digests
from inception_jax.data.folders import some

logger = logging.getLogger(__name__)


def note(cache: Path, fingerprint: str, now: dict[str, dict[str, str]], root: Path) -> None:
    """Keeps what a folder holds, and warns if that has changed since it was last used.

    Args:
      cache: where it is kept.
      fingerprint: of what the folder holds.
      now: by split and path: class and digest of each picture.
      root: the folder, for messages.
    """
    listing, last = cache / "listings" / f"{fingerprint}.json.gz", cache / "last_listing.txt"
    there = digests.is_file(listing)
    if not there or _read_listing(listing) is None:
        if there:
            logger.warning("%s is damaged: it is written again", listing)
        listing.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(listing, gzip.compress(json.dumps(now).encode(), mtime=0))
    before = last.read_bytes().decode(errors="replace") if digests.is_file(last) else None
    if before == fingerprint:
        return
    if before is not None and not os.path.lexists(cache / "listings" / f"{before}.json.gz"):
        logger.warning(
            "%s is damaged, or the listing it names is missing: whether %s changed since it was last used is unknown",
            last,
            root,
        )
    elif before is not None:
        logger.warning("%s has changed since it was last used: %s", root, changes(cache, before, fingerprint))
        for old in (cache / "decoded").glob("*"):
            if old.name != fingerprint:
                shutil.rmtree(old, ignore_errors=True)
    files.write_text(last, fingerprint)


def changes(cache: Path | None, before: str, now: str) -> str:
    """The differences between a data set at two fingerprints, in words.

    Args:
      cache: of a folder's pictures: where `note` kept what it held; None of arrays, whose fingerprints tell it.
      before, now: the fingerprints.
    """
    if digests.PART in before and digests.PART in now:
        return digests.differences(before, now)
    listings = [cache / "listings" / f"{key}.json.gz" for key in (before, now)] if cache else []
    if not listings or not all(map(os.path.lexists, listings)):
        return "its earlier content is no longer known"
    old, new = map(_read_listing, listings)
    if old is None or new is None:
        damaged = listings[0] if old is None else listings[1]
        return f"its earlier content is no longer known, as {damaged} is damaged"
    both = old.keys() & new.keys()
    lists = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(key for key in both if old[key] != new[key]),
    }
    return "; ".join(
        f"{len(keys)} {what}: {some([key.partition(chr(0))[2] for key in keys])}"
        for what, keys in lists.items()
        if keys
    )


def _read_listing(path: Path) -> dict[str, str] | None:
    """Class and digest of each picture that a folder held, by split and path; None if the file is damaged."""
    try:
        kept: dict[str, dict[str, str]] = json.loads(gzip.decompress(path.read_bytes()))
        return {f"{split}\0{picture}": what for split, held in kept.items() for picture, what in held.items()}
    except (OSError, ValueError, EOFError, AttributeError, zlib.error, RecursionError):
        return None
