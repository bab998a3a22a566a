"""Notebooks as pages of the site: they are stored without outputs, and run when the site is built."""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "notebooks"  # those that have run, so that `mkdocs serve` runs each of them once
SECONDS = 600  # the longest that a cell may take
# "0": pages have the code alone, which takes seconds instead of minutes.
RUN = os.environ.get("INCEPTION_JAX_RUN_NOTEBOOKS", "1") != "0"
# The site is built without downloads: values of a notebook's parameters that differ from those that readers get.
ON_THE_SITE = {
    "googlenet_on_mnist": {"DATA": "digits", "TRAIN": "train[:-200]", "VALIDATION": "train[-200:]", "EPOCHS": 3}
}


def read(path: Path, parameters: Mapping[str, Any]) -> Any:
    """A notebook with values for variables of the cell with the tag "parameters", set by another cell below it."""
    book = nbformat.read(path, as_version=4)
    if parameters:
        (place,) = (n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ()))
        source = "\n".join(["# For this page.", *(f"{name} = {value!r}" for name, value in parameters.items())])
        book.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    return book


def execute(book: Any, folder: Path, **environment: str) -> Any:
    """Runs a notebook in a folder, where it also keeps its data, on one device; returns it with its outputs.

    Args:
      environment: further variables of the environment.

    Raises:
      CellExecutionError: a cell raised an exception that its tags do not allow.
    """
    alone = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    options = {"timeout": SECONDS, "coalesce_streams": True, "resources": {"metadata": {"path": str(folder)}}}
    client = nbclient.NotebookClient(book, **options)
    return client.execute(env=alone | {"INCEPTION_JAX_DATA": "data"} | environment)


def _executed(path: Path) -> Any:
    """The notebook with its outputs, which are kept until it changes."""
    parameters = ON_THE_SITE.get(path.stem, {})
    digest = hashlib.sha256(path.read_bytes() + repr(parameters).encode()).hexdigest()[:16]
    kept = BUILT / f"{path.stem}-{digest}.ipynb"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            book = execute(read(path, parameters), Path(folder))
        BUILT.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, kept)
    return nbformat.read(kept, as_version=4)


def on_files(files: Any, config: Any) -> Any:
    """MkDocs's event: adds a page, and the page's pictures, for each notebook."""
    from mkdocs.structure.files import File
    from nbconvert.exporters import MarkdownExporter

    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        name = f"notebooks/{path.stem}"
        resources = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        book = _executed(path) if RUN else read(path, {})
        text, resources = MarkdownExporter().from_notebook_node(book, resources)
        title, _, rest = text.lstrip().partition("\n")
        link = f"[Download this notebook]({path.name}){{ download }}"
        files.append(File.generated(config, f"{name}.md", content=f"{title}\n\n{link}\n{rest}"))
        for place, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{Path(place).as_posix()}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs's event: links to notebooks, which open in a checkout, lead to their pages on the site."""
    return re.sub(r"\]\(((?:notebooks/)?\w+)\.ipynb\)(?!\{)", r"](\1.md)", markdown)  # not that for the download
