"""Where predictions begin: the network of a run's folder or an exported file, and pictures in files and folders."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inception_jax import files
from inception_jax.data.scan import Scan
from inception_jax.errors import UserError
from inception_jax.inference.predictor import Predictor


def load_classifier(
    source: str | Path, checkpoint: str = "best", *, dtype: Any = None, trust_code: bool = False
) -> Predictor:
    """Loads the network of a run's folder (`dtype`, `trust_code`: see `run.load_run`) or of an exported file.

    Raises:
      UserError: it is neither, or cannot be read.
    """
    source = files.expand(source, "RUN")
    if source.suffix in (".stablehlo", ".onnx"):
        from inception_jax.trained.export import load_exported

        if dtype is not None:
            raise UserError(f"dtype={dtype} needs a run's folder: {source} computes in the type it was exported with")
        return load_exported(source)
    from inception_jax.runs.run import load_run

    return load_run(source, checkpoint, dtype=dtype, trust_code=trust_code)


def find_pictures(places: Iterable[str | Path]) -> Iterator[str]:
    """Yields files as they are and, for folders, all files below them with an image suffix, sorted by name.

    Raises:
      UserError: a folder cannot be read, or has no picture.
    """
    for place in places:
        folder = files.expand(place, "the path of a picture")
        if not folder.is_dir():
            yield str(place if folder == Path(place) else folder)  # as it was given
            continue
        scan = Scan(folder)
        names = scan.pictures(folder)
        first = next(names, None)
        if first is None:
            raise UserError(f"{folder} contains no pictures")
        yield from (str(folder / name) for name in itertools.chain([first], names))
        scan.report()
