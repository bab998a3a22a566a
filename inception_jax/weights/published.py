"""Published weights by name: their addresses, digests, licenses and preprocessing."""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from inception_jax import files
from inception_jax.downloads import FAILURES, download, reason
from inception_jax.errors import UserError, WriteError, check_choice
from inception_jax.files import cannot_write, regular_file, whole_file, write_text
from inception_jax.text import complain
from inception_jax.weights.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

DIGITS = 64  # of a SHA-256 in hexadecimal
MOST_BYTES = 2**31  # of a file; the largest published one, VGG-19's, has 575 MB
MOST_SECONDS = 4 * 3600.0  # of a download: the largest at 40 KB/s

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
TORCHVISION_LICENCE = "BSD-3-Clause (github.com/pytorch/vision, LICENSE); trained on ImageNet, whose terms may apply"
TIMM_LICENCE = "Apache-2.0 (timm's model registry); trained on ImageNet, whose terms may apply"


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """A published weights file for the 1000 classes of ImageNet.

    Attributes:
      format: the library whose names the tensors have.
      model: the registered name of the network.
      url: the address; its last part is the file's name in the cache.
      sha256: the file's digest or its beginning: publishers put the first eight digits into the file's name, and more
        digits are given if two independent sources agree on them.
      preprocessing: as in the published evaluation.
      licence: its short name, and where it is stated.
      background: the file has an extra class 0, "background", which the publisher drops as well.
    """

    format: str
    model: str
    url: str
    sha256: str
    preprocessing: Preprocessing
    licence: str
    background: bool = False


def _torchvision(
    model: str, file: str, sha256: str, *, resize: int = 256, crop: int = 224, half: bool = False
) -> PublishedWeights:
    # With transform_input=True, torchvision's networks undo ImageNet's normalization and apply 2 x - 1 instead.
    mean, std = (HALF, HALF) if half else (IMAGENET_MEAN, IMAGENET_STD)
    url = f"https://download.pytorch.org/models/{file}.pth"
    preprocessing = Preprocessing(resize, crop, mean, std)
    return PublishedWeights("torchvision", model, url, sha256, preprocessing, TORCHVISION_LICENCE)


def _timm(
    model: str, file: str, *, resize: int = 341, imagenet: bool = False, background: bool = True, url: str = ""
) -> PublishedWeights:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (HALF, HALF)
    url = url or "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/"
    preprocessing = Preprocessing(resize, 299, mean, std, "bicubic")
    return PublishedWeights("timm", model, f"{url}{file}.pth", file[-8:], preprocessing, TIMM_LICENCE, background)


# Keys are the library and the network's name, followed by the file's own name if a network has several files.
PRETRAINED: Mapping[str, PublishedWeights] = MappingProxyType(
    {
        "torchvision:alexnet": _torchvision(
            "alexnet", "alexnet-owt-7be5be79", "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"
        ),
        "torchvision:googlenet": _torchvision(
            "googlenet",
            "googlenet-1378be20",
            "1378be20a8e875cf1568b8a71654e704449655e34711a959a38b04fb34905cef",
            half=True,
        ),
        "torchvision:inception_v3": _torchvision(
            "inception_v3",
            "inception_v3_google-0cc3c7bd",
            "0cc3c7bd75056d25e46cba549dc184522069b81e9787eff6df84f397bd52a5ef",
            resize=342,
            crop=299,
            half=True,
        ),
        "torchvision:resnet18": _torchvision(
            "resnet18", "resnet18-f37072fd", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
        ),
        "torchvision:resnet34": _torchvision(
            "resnet34", "resnet34-b627a593", "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f"
        ),
        "torchvision:resnet50": _torchvision(
            "resnet50", "resnet50-0676ba61", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"
        ),
        "torchvision:resnet50.v2": _torchvision(
            "resnet50",
            "resnet50-11ad3fa6",
            "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
            resize=232,
        ),
        "torchvision:resnet101": _torchvision(
            "resnet101", "resnet101-63fe2227", "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a"
        ),
        "torchvision:resnet101.v2": _torchvision(
            "resnet101",
            "resnet101-cd907fc2",
            "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e",
            resize=232,
        ),
        "torchvision:resnet152": _torchvision(
            "resnet152", "resnet152-394f9c45", "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58"
        ),
        "torchvision:resnet152.v2": _torchvision("resnet152", "resnet152-f82ba261", "f82ba261", resize=232),
        "torchvision:vgg11": _torchvision("vgg11", "vgg11-8a719046", "8a719046"),
        "torchvision:vgg11_bn": _torchvision("vgg11_bn", "vgg11_bn-6002323d", "6002323d"),
        "torchvision:vgg13": _torchvision("vgg13", "vgg13-19584684", "19584684"),
        "torchvision:vgg13_bn": _torchvision("vgg13_bn", "vgg13_bn-abd245e5", "abd245e5"),
        "torchvision:vgg16": _torchvision(
            "vgg16", "vgg16-397923af", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
        ),
        "torchvision:vgg16_bn": _torchvision(
            "vgg16_bn", "vgg16_bn-6c64b313", "6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a"
        ),
        "torchvision:vgg19": _torchvision(
            "vgg19", "vgg19-dcbb9e9d", "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
        ),
        "torchvision:vgg19_bn": _torchvision(
            "vgg19_bn", "vgg19_bn-c79401a0", "c79401a0cf3cb42714e4182f5868c7a6f4f4534f5df9e956e2bb2098de41cbb6"
        ),
        "timm:inception_resnet_v2": _timm("inception_resnet_v2", "inception_resnet_v2-940b1cd6", resize=333),
        "timm:inception_resnet_v2.tf_ens_adv_in1k": _timm(
            "inception_resnet_v2", "ens_adv_inception_resnet_v2-2592a550", resize=333
        ),
        "timm:inception_v3": _timm(
            "inception_v3",
            "inception_v3_google-1a9a5a14",
            background=False,
            url="https://download.pytorch.org/models/",
        ),
        "timm:inception_v3.gluon_in1k": _timm(
            "inception_v3", "gluon_inception_v3-9f746940", background=False, imagenet=True
        ),
        "timm:inception_v3.tf_adv_in1k": _timm("inception_v3", "adv_inception_v3-9e27bd63"),
        "timm:inception_v3.tf_in1k": _timm("inception_v3", "tf_inception_v3-e0069de4"),
        "timm:inception_v4": _timm(
            "inception_v4",
            "inceptionv4-8e4777a0",
            url="https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-cadene/",
        ),
    }
)


def published(name: str) -> PublishedWeights:
    """The weights published under a name, such as "torchvision:googlenet".

    Raises:
      UserError: the name is unknown.
    """
    check_choice("weights", name, PRETRAINED)
    return PRETRAINED[name]


def cache_folder() -> Path:
    """The folder of published files: weights/ in $INCEPTION_JAX_DATA, by default in ~/.cache/inception_jax."""
    return files.expand(os.environ.get("INCEPTION_JAX_DATA") or "~/.cache/inception_jax") / "weights"


def fetch(weights: PublishedWeights) -> Path:
    """The path of the file, which is downloaded unless it is in `cache_folder()`; its digest is always verified.

    If only the beginning of the digest was published, the full digest is shown and stored next to the file on first
    use, and verified from then on.

    Raises:
      UserError: the server cannot be reached (the message says where to put the file by hand), the file is not the
        published one, or it has changed since its first use.
      WriteError: the folder cannot be written.
    """
    path = cache_folder() / _name(weights)
    if path.exists():
        try:
            digest = _digest(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        if not digest.startswith(weights.sha256):
            raise UserError(f"{path} is not the published file, whose SHA-256 begins with {weights.sha256}: remove it")
        _check_first_seen(
            weights, digest, str(path), "remove the file, or the recorded digest if you know that the file is right"
        )
        return path
    _tell(f"downloading {weights.url} to {path}; license: {weights.licence}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    with whole_file(path) as new:
        try:
            download(weights.url, new, most_bytes=MOST_BYTES, most_seconds=MOST_SECONDS)
        except FAILURES as error:
            raise UserError(
                f"cannot download {weights.url} ({reason(error)}): without network access, download it elsewhere and "
                f"put it at {path}"
            ) from error
        digest = _digest(new)
        if not digest.startswith(weights.sha256):
            raise UserError(
                f"{weights.url} is not the published file: its SHA-256 is {digest}, which does not begin with "
                f"{weights.sha256}; it was removed"
            )
        _check_first_seen(weights, digest, weights.url, "it was removed")
    return path


def is_copy(path: Path, weights: PublishedWeights) -> bool:
    """Whether a file is the published one, by its name and digest."""
    try:
        if path.name != _name(weights) or not path.is_file():
            return False
        return _digest(path).startswith(_first_seen(weights) or weights.sha256)
    except OSError:
        return False


def _name(weights: PublishedWeights) -> str:
    return weights.url.rpartition("/")[2]


def _kept(weights: PublishedWeights) -> Path:
    """Where the digest of a file is stored on first use, in the format of sha256sum."""
    return cache_folder() / f"{_name(weights)}.sha256"


def _first_seen(weights: PublishedWeights) -> str | None:
    """The file's full digest on first use; None: not used before, or the full digest is published.

    Raises:
      UserError: the stored digest is damaged.
    """
    kept = _kept(weights)
    if len(weights.sha256) == DIGITS or not kept.exists():
        return None
    text = regular_file(kept).read_bytes()[: 2 * DIGITS].decode("ascii", "replace").split(" ")[0]
    if not re.fullmatch(f"[0-9a-f]{{{DIGITS}}}", text):
        raise UserError(f"{kept} is damaged: remove it, and the file's digest is recorded again")
    return text


def _check_first_seen(weights: PublishedWeights, digest: str, what: str, advice: str) -> None:
    """Stores the digest on first use, and raises UserError if it differs later."""
    if len(weights.sha256) == DIGITS:
        return
    first = _first_seen(weights)
    if first is None:
        _tell(f"SHA-256 of {_name(weights)}: {digest}; it is stored beside the file and verified from now on")
        try:
            write_text(_kept(weights), f"{digest}  {_name(weights)}\n")
        except WriteError as error:  # a read-only cache
            logger.warning("%s; the file's digest will not be verified next time", error)
    elif first != digest:
        raise UserError(
            f"{what} has changed since its first use: its SHA-256 is {digest}, but {_kept(weights)} has {first}: "
            f"{advice}"
        )


def _tell(message: str) -> None:
    if logger.isEnabledFor(logging.INFO):
        logger.info(message)
    else:  # in the REPL, where logging is not set up
        complain(message)


def _digest(path: Path) -> str:
    with regular_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
