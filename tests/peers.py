"""The libraries that we are compared with, for tests: `from peers import import_torchvision`."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

_libraries = []  # PyTorch forgets the operators of a library that nothing refers to


def import_torchvision() -> ModuleType:
    """torchvision; the caller is skipped where it or PyTorch is missing.

    Without its compiled operators, torchvision fails at import, as it describes the shapes of two that PyTorch then
    does not know. No test needs these two, so they are declared, and the import goes through.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is in the extra 'peers'")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """timm, which imports torchvision; the caller is skipped where one of them or PyTorch is missing."""
    import_torchvision()
    return pytest.importorskip("timm", reason="timm is in the extra 'peers'")
