import dataclasses
from pathlib import Path
import numpy as np, hashlib


@dataclasses.dataclass(frozen=True)
class Listing:
    root: Path
    class_names: tuple
    splits: dict
    hold_out: float = 0.0


def image_folder(folder, classes=()):
    d = folder / "train" if (folder / "train").is_dir() else folder
    names = sorted(p.name for p in d.iterdir() if p.is_dir())
    out = {}
    for split, sub in (("train", d), ("test", folder / "val")):
        if not sub.is_dir():
            continue
        paths = sorted(p.relative_to(folder).as_posix() for p in sub.rglob("*") if p.is_file())
        labels = np.array([names.index(p.split("/")[len(sub.relative_to(folder).parts)]) for p in paths], np.int32)
        out[split] = (tuple(paths), labels)
    return Listing(folder, tuple(names), out, 0.0 if "test" in out else 0.1)


imagenet_subset = imagenet2012 = image_folder


def _key(p, seed):
    return hashlib.blake2b(f"{seed}/{p}".encode()).digest()


def held_out(paths, labels, amount, seed):
    out = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == c), key=lambda r: _key(paths[r], seed))
        k = int(amount) if amount >= 1 else round(amount * len(rows))
        out[rows[:k]] = True
    return out


def stratified_order(paths, labels, seed):
    keys = []
    for c in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == c), key=lambda r: _key(paths[r], seed))
        keys += [((i + 0.5) / len(rows), c, r) for i, r in enumerate(rows)]
    return np.array([r for *_, r in sorted(keys)], np.int64)
