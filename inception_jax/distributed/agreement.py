"""What processes that train together must have in common, as plain values, independent of how they are exchanged."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from inception_jax.text import printable

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
MOST = 4  # differences that are listed
LONGEST = 120  # characters of a value that are shown


def differences(facts: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> list[str]:
    """One phrase for every fact that is not the same in all processes, stating which process has which value.

    Args:
      facts: process -> JSON values by name. A name that is missing in a process counts as a difference.
      hosts: process -> the name of its machine.
    """
    names = dict.fromkeys(name for own in facts.values() for name in own)
    phrases = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for process, own in sorted(facts.items()):
            holders.setdefault(json.dumps(own[name], sort_keys=True) if name in own else "missing", []).append(process)
        if len(holders) > 1:
            values = (f"{_show(value)} in {_processes(who, hosts)}" for value, who in holders.items())
            phrases.append(f"{name} is {', '.join(values)}")
    return phrases


def line(phrases: Sequence[str]) -> str:
    """The phrases as one line; of many, only the first few."""
    rest = f"; and {len(phrases) - MOST} more" if len(phrases) > MOST else ""
    return "; ".join(phrases[:MOST]) + rest


def _show(value: str) -> str:
    text = json.loads(value) if value.startswith('"') else value
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def _processes(numbers: Sequence[int], hosts: Mapping[int, str]) -> str:
    where = dict.fromkeys(hosts.get(number, "an unknown host") for number in numbers)
    some = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    on = ", ".join(list(where)[:2]) + (", ..." if len(where) > 2 else "")
    return f"process{'es' if len(numbers) > 1 else ''} {some} on {printable(on)}"


def fingerprint(content: bytes) -> str:
    """A short digest for comparing long contents."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that affect results, and of this package, with a digest of its files."""
    package = Path(__file__).parent.parent
    sources = sorted(package.rglob("*.py"))
    source = fingerprint(b"".join(str(path.relative_to(package)).encode() + path.read_bytes() for path in sources))
    found = {"the version of Python": platform.python_version()}
    found |= {f"the version of {name}": importlib.metadata.version(name) for name in PACKAGES}
    own = importlib.metadata.version("inception-jax")
    return found | {"the version of inception_jax": f"{own} (source {source})"}
