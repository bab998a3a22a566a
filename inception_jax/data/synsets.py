"""ImageNet's synsets: the 1000 classes of ILSVRC 2012, and the ten that match CIFAR-10's."""

import csv
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

# Mahmud 2024, "Deep Learning Project", Table 1: synsets and CIFAR-10's classes.
CIFAR10 = {
    "n02691156": "airplane",
    "n02958343": "automobile",
    "n01503061": "bird",
    "n02121808": "cat",
    "n02419796": "deer",
    "n02084071": "dog",
    "n01641577": "frog",
    "n02374451": "horse",
    "n04194289": "ship",
    "n04467665": "truck",
}

# The indices, from 0 in the sorted list of the 1000 classes, of the synsets that are one of these ten or below one of
# them in WordNet 3.0, where n02419796 is the antelope, n02121808 the domestic cat, n01641577 the bullfrog and n04467665
# the trailer truck. Derived from WordNet's data.noun (Debian's wordnet-base 1:3.0): a synset's number is its offset
# there, and its ancestors are what its hypernym pointers (@ and @i) reach. So warplanes (895) are not airplanes and
# police vans (734) not cars, but submarines and aircraft carriers are ships. All 1000 were found, with the names of the
# table.
_LEAVES = {
    "n02691156": (404,),
    "n02958343": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "n01503061": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "n02121808": range(281, 286),
    "n02419796": (351, 352, 353),
    "n02084071": range(151, 269),
    "n01641577": (30,),
    "n02374451": (339,),
    "n04194289": (403, 510, 628, 724, 833, 913),
    "n04467665": (867,),
}


@cache
def names() -> dict[str, str]:
    """The name of each of the 1000 classes of ILSVRC 2012 by its synset, in the order of the synsets' numbers.

    This is the order of the outputs of all pretrained networks. The synsets are those of the challenge (Russakovsky et
    al. 2015, "ImageNet Large Scale Visual Recognition Challenge"); each name is the first of WordNet's words for the
    synset, extended if two would be equal ("crane bird").
    """
    text = files("inception_jax.data").joinpath("imagenet_classes.csv").read_text()
    return {row["synset"]: row["name"] for row in csv.DictReader(text.splitlines())}


@cache
def leaves() -> dict[str, tuple[str, ...]]:
    """For each of the ten synsets of `CIFAR10`, those of the 1000 classes that are it or below it in WordNet."""
    ordered = tuple(names())
    return {synset: tuple(ordered[place] for place in places) for synset, places in _LEAVES.items()}


def readable_names(synsets: Sequence[str]) -> tuple[str, ...]:
    """A unique name for each synset.

    CIFAR-10's names if all synsets are of its ten; otherwise ILSVRC's, which tell a bullfrog from other frogs. A synset
    that is in neither is named by its number.
    """
    known = names() | CIFAR10 if set(synsets) <= CIFAR10.keys() else CIFAR10 | names()
    chosen = [known.get(synset, synset) for synset in synsets]
    counts = Counter(chosen)
    return tuple(
        name if counts[name] == 1 else f"{name} {synset}" for name, synset in zip(chosen, synsets, strict=True)
    )
