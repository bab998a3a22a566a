"""What a service's writer stores in the run's folder, so that a restarted run continues in the same place."""

import re
from pathlib import Path
from typing import Any

from inception_jax import files
from inception_jax.errors import UserError


def read(path: Path, key: str) -> dict[str, Any]:
    """The content of a file that a writer stored; empty if there is none, or if its `key` is not an identifier.

    The folder may be from somebody else, and identifiers become parts of paths and URLs.
    """
    try:
        content = files.read_json(path)
    except UserError:
        return {}
    known = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(known, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", known) else {}
