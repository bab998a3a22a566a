"""PyTorch's side of train_step.py: torchvision's networks and the small VGGs, trained and run in the usual way.

Independent of JAX.
"""
# pyright: reportMissingImports=false

import importlib
import platform
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from worker import MEMORY_STEPS, Side, cores, seconds, serve

# The small VGGs of Skagerström et al. 2018, Tables 1 and 2: filters and kernels of each stage; whether there is batch
# norm (after the ReLU), and the features of the dense layers before the classifier.
TINY_VGG_STAGES = ((32, ((2, 2), (2, 1), (1, 2))), (48, ((2, 2),) * 3), (80, ((2, 2),) * 3))
TINY_VGGS = {
    "tiny_vgg_a": (False, (2048,)),
    "tiny_vgg_b": (True, (2048,)),
    "tiny_vgg_c": (False, (2048,)),
    "tiny_vgg_d": (True, (2048,)),
    "tiny_vgg_e": (True, (4096, 4096, 4096)),
    "tiny_vgg_f": (True, ()),
}
_libraries = []  # PyTorch drops the operators of a library that is no longer referenced


def import_torchvision() -> ModuleType:
    """Imports torchvision, even without its compiled operators, two of which it needs at import."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # left by the failed import
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    return importlib.import_module("torchvision")


torchvision = import_torchvision()


def make_network(name: str, small_stem: bool) -> nn.Module:
    """The network without dropout; torchvision's are changed to match ours if they depart from their paper."""
    if name in TINY_VGGS:
        return make_tiny_vgg(*TINY_VGGS[name])
    options = {}
    if name == "googlenet":
        options = {"aux_logits": False, "init_weights": False}
    elif name.startswith("vgg"):
        options = {"init_weights": False}
    network = torchvision.models.get_model(name, weights=None, num_classes=1000, **options)
    network.apply(_adapt)
    if name == "googlenet":
        network.maxpool4 = nn.MaxPool2d(3, 2, ceil_mode=True)
    if small_stem:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network


def make_tiny_vgg(batch_norm: bool, dense: Sequence[int]) -> nn.Module:
    """Kernels of two pixels are padded at the end, as in Keras."""
    layers: list[nn.Module] = []
    features = 3
    for filters, kernels in TINY_VGG_STAGES:
        for height, width in kernels:
            layers.append(nn.ZeroPad2d((0, width - 1, 0, height - 1)))  # left, right, top, bottom
            layers += [nn.Conv2d(features, filters, (height, width)), nn.ReLU(inplace=True)]
            layers += [nn.BatchNorm2d(filters, eps=1e-3)] if batch_norm else []
            features = filters
        layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(8), nn.Flatten()]
    features *= 8 * 8
    for width in dense:
        layers += [nn.Linear(features, width), nn.ReLU(inplace=True)]
        layers += [nn.BatchNorm1d(width, eps=1e-3)] if batch_norm else []
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 1000))


def _adapt(module: nn.Module) -> None:
    if isinstance(module, nn.Dropout):
        module.p = 0.0
    third = getattr(module, "branch3", None)
    if third is not None:  # in an Inception module; 5x5 as in Table 1 of the paper
        conv = third[1].conv
        third[1].conv = nn.Conv2d(conv.in_channels, conv.out_channels, 5, padding=2, bias=False)


class TorchSide(Side):
    def __init__(self):
        self.on_gpu = torch.cuda.is_available()
        self._device = "cuda" if self.on_gpu else "cpu"
        torch.set_num_threads(cores())
        torch.backends.cudnn.benchmark = True

    def describe(self) -> dict[str, Any]:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        versions["python"] = platform.python_version()
        return {"versions": versions, "gpu": torch.cuda.get_device_name() if self.on_gpu else None}

    def matrix_product(self, side: int, dtype: str) -> Callable[[], Any]:
        x = torch.randn(side, side, device=self._device, dtype=getattr(torch, dtype))

        def multiply() -> None:
            torch.matmul(x, x)
            self._wait()

        return multiply

    def make(
        self, name: str, batch: int, side: int, mode: str, small_stem: bool, dtype: str, compiled: bool, **training: str
    ) -> dict[str, Any]:
        """`training` has the name of the optimizer, "sgd" (if it is missing) or "adam"."""
        before = self.memory_before()
        self._dtype, self._rule = dtype, training.get("optimizer", "sgd")
        torch.manual_seed(0)
        network = make_network(name, small_stem).to(self._device)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (PyTorch's stubs lack it)
        images = torch.randn(batch, 3, side, side, device=self._device)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(0, 1000, (batch,), device=self._device)
        self._eager = self._network = network.train(mode == "train")
        if compiled:
            self._network = torch.compile(network)
        self._optimizer = self._make_optimizer("fused") if mode == "train" else None
        self.steps(1)
        return {"parameters": sum(x.numel() for x in network.parameters()), "memory_before": before}

    def _make_optimizer(self, kind: str) -> torch.optim.Optimizer:
        options: dict[str, Any] = {kind: True}
        if self._rule == "adam":
            return torch.optim.Adam(self._eager.parameters(), lr=1e-3, **options)
        return torch.optim.SGD(self._eager.parameters(), lr=0.01, momentum=0.9, **options)

    def _step(self) -> None:
        precision = torch.autocast(self._device, torch.bfloat16, enabled=self._dtype == "bfloat16")
        if self._optimizer is None:
            with torch.inference_mode(), precision:
                self._network(self._images).softmax(1)
            return
        self._optimizer.zero_grad(set_to_none=True)
        with precision:
            loss = F.cross_entropy(self._network(self._images), self._labels)
        loss.backward()
        self._optimizer.step()

    def steps(self, number: int) -> None:
        for _ in range(number):
            self._step()
        self._wait()

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def warm_up(self) -> dict[str, Any]:
        """Chooses the faster of PyTorch's optimizers, and counts the floating-point operations of a step."""
        chosen = None
        if self._optimizer is not None:
            took = {}
            for kind in ("fused", "foreach"):
                self._optimizer = self._make_optimizer(kind)
                self.steps(1)  # creates its buffers
                took[kind] = min(seconds(lambda: self.steps(1)) for _ in range(3))
            chosen = min(took, key=lambda kind: took[kind])
            self._optimizer = self._make_optimizer(chosen)
        compiled, self._network = self._network, self._eager
        with FlopCounterMode(display=False) as counter:
            self._step()
        self._network = compiled
        return super().warm_up() | {"optimizer": chosen, "flops": counter.get_total_flops()}

    def peak_memory(self) -> int | None:
        if not self.on_gpu:
            return super().peak_memory()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.steps(MEMORY_STEPS)
        return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    serve(TorchSide())
