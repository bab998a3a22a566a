"""The tables of ImageNet's synsets."""

from inception_jax.data.synsets import CIFAR10, leaves, names, readable_names
from inception_jax.weights import imagenet_classes


def test_the_thousand_are_in_the_order_of_their_numbers():
    assert len(names()) == len(set(names().values())) == 1000
    assert list(names()) == sorted(names())
    assert tuple(names().values()) == imagenet_classes()
    assert [names()[synset] for synset in ("n01440764", "n01491361", "n15075141")] == [
        "tench", "tiger shark", "toilet tissue",
    ]  # fmt: skip


def test_the_ten_have_the_names_of_cifar10():
    # The order of CIFAR-10's batches.meta.txt, too.
    expected = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert tuple(CIFAR10.values()) == readable_names(tuple(CIFAR10)) == expected


def test_names_among_others_are_ilsvrcs():
    assert readable_names(tuple(names())) == tuple(names().values())
    assert readable_names(("n01641577", "n01644373", "n02084071", "n99999999")) == (
        "bullfrog", "tree frog", "dog", "n99999999",
    )  # fmt: skip
    assert readable_names(("n02084071", "n02084071")) == ("dog n02084071",) * 2


def test_leaves_are_of_the_thousand_and_of_one_of_the_ten():
    assert leaves().keys() == CIFAR10.keys()
    all_leaves = [leaf for group in leaves().values() for leaf in group]
    assert len(all_leaves) == len(set(all_leaves)) == 205
    assert set(all_leaves) < names().keys()
    assert set(all_leaves) & CIFAR10.keys() == {"n01641577", "n04467665"}  # bullfrog and trailer truck


def test_what_is_below_each_of_the_ten():
    named = {CIFAR10[synset]: [names()[leaf] for leaf in group] for synset, group in leaves().items()}
    assert {name: len(group) for name, group in named.items() if len(group) > 10} == {"bird": 59, "dog": 118}
    assert [named["dog"][0], named["dog"][-1]] == ["Chihuahua", "Mexican hairless"]
    assert not {"dingo", "timber wolf", "African hunting dog"} & set(named["dog"])
    assert {"cock", "flamingo", "albatross", "macaw", "crane bird"} <= set(named["bird"])
    assert {name: group for name, group in named.items() if len(group) <= 10} == {
        "airplane": ["airliner"],
        "automobile": [
            "ambulance", "beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer",
            "sports car",
        ],
        "cat": ["tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"],
        "deer": ["hartebeest", "impala", "gazelle"],
        "frog": ["bullfrog"],
        "horse": ["sorrel"],
        "ship": ["aircraft carrier", "container ship", "liner", "pirate", "submarine", "wreck"],
        "truck": ["trailer truck"],
    }  # fmt: skip
