"""Networks side by side: the table, the published accuracies, the chart."""

import csv
import io
import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from networks import module_shapes, random_variables
from peers import import_torchvision

from inception_jax import create_model
from inception_jax.errors import UserError
from inception_jax.inspection import Summary, bubble_chart, comparison, latency, save_chart, summarize
from inception_jax.inspection.compare import IMAGENET, Accuracy, sources


def test_published_accuracies_are_torchvisions():
    models = import_torchvision().models
    for name, (top1, _, source) in IMAGENET.items():
        if source.startswith("torchvision"):
            weights = models.get_model_weights(name).IMAGENET1K_V1
            assert 100 * top1 == pytest.approx(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]), name


def test_a_summary_counts_parameters_statistics_and_time():
    model = create_model("simple_cnn", num_classes=10, stage_features=(4, 8), norm="batch")
    variables = random_variables(module_shapes(model, (1, 8, 8, 1))[1])
    summary = summarize("mine", model, (8, 8, 1), variables=variables)
    assert summary.parameters == 36 + 144 + 288 + 576 + 2 * 24 + 90
    assert summary.file_bytes == 4 * (summary.parameters + 2 * 24)
    assert 0 < summary.latency < 1
    assert 0 < latency(model, (8, 8, 1)) < 1
    assert summarize("mine", model, (8, 8, 1), with_latency=False).latency is None


SUMMARIES = [
    Summary("googlenet", (224, 224, 3), 7_005_832, 1_582_671_872, 28_081_568, 0.0296, IMAGENET["googlenet"]),
    Summary("mine", (32, 32, 3), 78, 6_912, 312),
]


def test_the_comparison_is_rounded_for_readers_and_exact_for_programs():
    assert [line.split() for line in comparison(SUMMARIES).splitlines()[2:]] == [
        ["googlenet", "224x224x3", "7.006M", "1.583G", "28.08MB", "29.6", "ms", "69.8%"],
        ["mine", "32x32x3", "78", "6.912K", "312B"],
    ]
    assert comparison(SUMMARIES, "markdown").startswith("| network | image | parameters |")
    first, second = csv.DictReader(io.StringIO(comparison(SUMMARIES, "csv")))
    assert first == {
        "network": "googlenet", "image": "224x224x3", "parameters": "7005832", "multiply_adds": "1582671872",
        "file_bytes": "28081568", "latency_seconds": "0.0296", "top1": "0.69778",
    }  # fmt: skip
    assert (second["latency_seconds"], second["top1"]) == ("", "")
    assert sources(SUMMARIES) == f"top-1 on ImageNet of googlenet: {IMAGENET['googlenet'].source}"


# Parameters in millions, multiply-adds in thousand millions.
COSTS = {
    "alexnet": (61.1, 0.71), "bn_inception": (11.3, 2.0), "googlenet": (7, 1.58), "inception_resnet_v2": (55.8, 13.2),
    "inception_v2": (20, 3.8), "inception_v3": (23.8, 5.7), "inception_v4": (42.7, 12.3), "resnet18": (11.7, 1.81),
    "resnet34": (21.8, 3.66), "resnet50": (25.6, 4.09), "resnet101": (44.5, 7.8), "resnet152": (60.2, 11.5),
    "vgg11": (132.9, 7.6), "vgg13": (133, 11.3), "vgg16": (138.4, 15.5), "vgg19": (143.7, 19.6),
    "vgg11_bn": (132.9, 7.6), "vgg13_bn": (133, 11.3), "vgg16_bn": (138.4, 15.5), "vgg19_bn": (143.7, 19.6),
}  # fmt: skip


@pytest.mark.parametrize("names", [list(COSTS), ["googlenet", "resnet18"], ["vgg16"]], ids=len)
def test_no_two_names_of_the_chart_overlap_and_all_are_inside(names):
    figure = bubble_chart(
        [
            Summary(name, (224, 224, 3), int(1e6 * COSTS[name][0]), int(1e9 * COSTS[name][1]), 0, None, IMAGENET[name])
            for name in names
        ]
    )
    figure.draw(renderer := FigureCanvasAgg(figure).get_renderer())
    (axes,) = figure.axes
    texts = [child for child in axes.get_children() if isinstance(child, Annotation) and child.get_text()]
    assert {text.get_text() for text in texts} == set(names)
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent(renderer)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert axes.get_ylabel() == "top-1 accuracy on ImageNet, %"
    areas = {
        tuple(bubble.get_offsets()[0]): bubble.get_sizes()[0]
        for bubble in axes.collections
        if len(bubble.get_offsets())
    }
    for name, other in itertools.pairwise(names):
        one, two = ((COSTS[each][1], 100 * IMAGENET[each].top1) for each in (name, other))
        assert areas[one] / areas[two] == pytest.approx(COSTS[name][0] / COSTS[other][0])


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(UserError, match="no chart of mine: none has a known accuracy"):
        bubble_chart(SUMMARIES[1:])
    other = Summary("run", (32, 32, 3), 78, 6_912, 312, None, Accuracy(0.9, "cifar10's test split", "summary.json"))
    with pytest.raises(UserError, match="they were measured on ImageNet and cifar10's test split"):
        bubble_chart([*SUMMARIES, other])
    for name in ("missing/chart.png", "chart.nope"):
        with pytest.raises(UserError, match=f"cannot write the chart .*{name}"):
            save_chart(SUMMARIES, tmp_path / name)
    save_chart(SUMMARIES, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
