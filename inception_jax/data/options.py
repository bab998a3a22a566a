"""What is asked of a data set: where it is, which of its examples are used, and how its pictures become images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from inception_jax.data.images import Format
from inception_jax.errors import check_choice

KEEP = ("all", "color", "grayscale")
ON_ERROR = ("leave_out", "error")
PIPELINES = ("auto", "memory", "streaming")


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a data set is read from, and where what is prepared of it is kept.

    Attributes:
      directory: where prepared data is kept; None: $INCEPTION_JAX_DATA, else ~/.cache/inception_jax.
      archives: a directory with the original archives, or with their extracted content, for machines that cannot
        download. Ignored once the data set is prepared. Builders from outside find it as `dl_manager.manual_dir`.
      folder: the pictures of image_folder, imagenet_subset and imagenet2012, which are read in place.
    """

    directory: str | Path | None = None
    archives: str | Path | None = None
    folder: str | Path | None = None


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which examples of a data set are used, and in which splits.

    Attributes:
      classes: for pictures that are read in place: which classes, in this order, as names of folders or synsets; ()
        for the set's own choice.
      hold_out: for pictures that are read in place: how much of each class becomes the test split if there is none: a
        number of pictures, or a share below 1; None for the set's own default.
      split_seed: for pictures that are read in place: determines what is held out and the order in which splits are
        cut.
      splits: for each split wanted, its examples in TFDS's notation, e.g. {"train": "train[:90%]"}; "": left out.
        "auto" is the published split; if there is no published validation split, the last 10 % of the training split.
      keep: "color" or "grayscale" leaves out the pictures that are stored without colors, or with them; or "all".
        Splits are cut first: "train[:90%]" is the kept part of the first 90 % of all pictures.
      on_error: "leave_out" leaves out pictures that cannot be decoded, with a warning; or "error".

    Raises:
      UserError: an unknown value of keep or on_error.
    """

    classes: Sequence[str] = ()
    hold_out: float | None = None
    split_seed: int = 0
    splits: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "auto", "validation": "auto", "test": "auto"}
    )
    keep: str = "all"
    on_error: str = "leave_out"

    def __post_init__(self) -> None:
        check_choice("keep", self.keep, KEEP)
        check_choice("on_error", self.on_error, ON_ERROR)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How pictures become images, and when.

    Attributes:
      image_size: the side of the square in pixels; None: as they are.
      channels: 1 or 3; None: as they are.
      resize: "bilinear" or "bicubic".
      fit: how a picture becomes a square, see `images.Format`.
      crop_share: the square's share of the shorter side, see `images.Format`.
      pad: pixels of zeros on each side, see `images.Format`.
      pipeline: "memory" decodes everything once, into memory-mapped files; "streaming" decodes while reading; "auto" is
        "memory" if the decoded set has at most `memory_gib` GiB.
      memory_gib: see pipeline.

    Raises:
      UserError: a value that is not allowed.
    """

    image_size: int | None = None
    channels: int | None = None
    resize: str = "bilinear"
    fit: str = "squash"
    crop_share: float = 1.0
    pipeline: str = "auto"
    memory_gib: float = 4.0
    pad: int = 0

    def __post_init__(self) -> None:
        check_choice("pipeline", self.pipeline, PIPELINES)
        self.form(3)

    def form(self, own_channels: int) -> Format:
        """The format of the images of a data set that has `own_channels` channels itself."""
        channels = self.channels or own_channels
        return Format(self.image_size, channels, self.resize, self.fit, self.crop_share, self.pad)
