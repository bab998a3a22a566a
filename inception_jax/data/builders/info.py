"""The information that every builder gives on its data set."""

import tensorflow_datasets as tfds


def labelled_images(
    builder: tfds.core.DatasetBuilder,
    shape: tuple[int | None, int | None, int],
    label: tfds.features.ClassLabel,
    *,
    homepage: str,
    citation: str,
    encoding: str = "png",
    **others: tfds.features.FeatureConnector,
) -> tfds.core.DatasetInfo:
    """The information on a data set of images with a label each, described by the builder's docstring.

    Args:
      shape: (height, width, channels) of the images; None where they differ.
      label: the feature "label".
      homepage: address of its authors' page.
      citation: BibTeX.
      encoding: format of the images, "png" or "jpeg".
      others: more features of each example, by name.
    """
    image = tfds.features.Image(shape=shape, encoding_format=encoding)
    return tfds.core.DatasetInfo(
        builder=builder,
        description=type(builder).__doc__,
        features=tfds.features.FeaturesDict({"image": image, "label": label, **others}),
        supervised_keys=("image", "label"),
        homepage=homepage,
        citation=citation,
        disable_shuffling=True,  # keeps the published order
    )
