"""The records of a W&B run that was written offline: LevelDB's log format around W&B's own messages."""

import json
import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 2**15
HEADER = 7  # of the file, and of each piece of a record
FULL, LAST = 1, 4  # kinds of pieces that end a record


def records(path: Path) -> list[Record]:
    """Every record of a `run-*.wandb` file."""
    content, place, pieces, found = path.read_bytes(), HEADER, b"", []
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # too small for a piece
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        pieces += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            found.append(Record.FromString(pieces))
            pieces = b""
    return found


def rows(record: Record) -> dict:
    """The values of a row of history by name; those of a picture are a dict."""
    values = {}
    for item in record.history.item:
        name, *inside = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        values[name] = values.get(name, {}) | {inside[0]: value} if inside else value
    return values


def config(found: list[Record]) -> dict:
    """The config at the end."""
    fields = {}
    for record in found:
        for update in (record.run.config.update, record.config.update):
            fields |= {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in update}
    return fields
