"""Imports inside the package go down only, and what a folder may not know of, it does not import."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "inception_jax"
# From the bottom up; a module imports from its own layer or from those before it.
LAYERS = (
    {"errors", "files", "downloads", "text", "process", "registry"},
    {"config", "ops", "writers"},
    {"models", "data", "distributed"},
    {"steps"},
    {"inspection"},
    {"inference"},
    {"weights"},
    {"experiment"},
    {"runs"},
    {"trained"},
    {"train"},
    {"studies"},
    {"main", "commands", "__main__"},
)
MODELS_MAY_IMPORT = {"errors", "registry", "ops", "models"}
ONLY_IMPORTERS = {
    "orbax": {"checkpoints.py", "checkpoint_reading.py", "orbax_quirks.py"},
    "jax._src": {"jax_quirks.py"},
    "tensorboardX": {"tensorboard.py"},
}


def imports(path):
    """(module, names) of every import in the file, the lazy ones in functions, too; typing's left out."""
    tree = ast.parse(path.read_text())
    skipped = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    inside = {id(child) for node in skipped for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, [alias.name for alias in node.names]


def own_modules(path):
    """The modules directly below inception_jax that the file imports from."""
    known = {name for layer in LAYERS for name in layer}
    for module, names in imports(path):
        first, *rest = module.split(".")
        if first == "inception_jax":
            yield from rest[:1] or (name for name in names if name in known)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    (own,) = [index for index, layer in enumerate(LAYERS) if module in layer]
    for imported in own_modules(path):
        (layer,) = [index for index, names in enumerate(LAYERS) if imported in names]
        assert layer <= own, f"{path} imports {imported}, which is above it"
        assert module != "models" or imported in MODELS_MAY_IMPORT
        assert module != "data" or imported != "models"
    for library, importers in ONLY_IMPORTERS.items():
        if path.name not in importers:
            assert not any(f"{name}.".startswith(f"{library}.") for name, _ in imports(path)), (
                f"{path} imports {library}"
            )


def test_configs_import_the_default_config_alone():
    for path in (PACKAGE.parent / "configs").glob("*.py"):
        assert {module for module, _ in imports(path)} == {"inception_jax.config"}


def test_files_and_functions_can_be_surveyed():
    """A ground floor of ten files, files of 450 lines, functions of 60 besides their docstrings."""
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"
