"""The digits as data sources of other libraries, by names that worker processes find, too."""

import io

import numpy as np
from loading import load_data
from PIL import Image


class Pairs:
    """A class with what a data source needs, and no more."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def as_dict(pair):
    return {"image": pair[0], "label": pair[1]}


def pairs(images, labels):
    return Pairs(images, labels)


def grain(images, labels):
    import grain

    return grain.MapDataset.source(Pairs(images, labels)).map(as_dict)


def torch(images, labels):
    import torch

    return torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))


def huggingface(images, labels):
    import datasets

    names = datasets.ClassLabel(names=[str(label) for label in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    pictures = [Image.fromarray(image[..., 0]) for image in images]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)


def _digits(make):
    dataset = load_data("digits", splits={"train": "train", "test": "test"})
    return {name: make(*split.gather(np.arange(len(split)))) for name, split in dataset.splits.items()}


def pairs_digits():
    return _digits(pairs)


def grain_digits():
    return _digits(grain)


def torch_digits():
    return _digits(torch)


def huggingface_digits():
    return _digits(huggingface)


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()
