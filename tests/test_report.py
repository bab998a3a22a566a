"""The report as its reader gets it: read back with the standard library's HTML and XML parsers."""

import base64
import datetime
import json
import os
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import browser
import pytest
import scipy.stats
from PIL import Image
from runs import metrics_csv

from inception_jax.commands import main
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.runs.run import load_run
from inception_jax.trained import evaluate
from inception_jax.trained.report import write_report
from inception_jax.trained.report.findings import examine
from inception_jax.trained.report.tables import interval

pytestmark = pytest.mark.usefixtures("empty_figures")
METRICS = {"top1": 0.93125, "top5": 0.9971, "loss": 0.2513, "count": 5000}


class Page(HTMLParser):
    """Visible text, tables as lists of rows, and every tag with its attributes."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.rows, self.cell = [], "", [], None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self.cell = [] if tag in ("td", "th") else self.cell

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append("".join(self.cell))
            self.cell = None

    def handle_data(self, data):
        self.text += data
        if self.cell is not None:
            self.cell.append(data)

    def images(self):
        return [attrs for tag, attrs in self.tags if tag == "img"]


def make_run(folder, *, epochs=3, splits=("train", "validation"), summary=None, own=(), **fields):
    config = default_config()
    config.num_epochs = 3
    config.update_from_flattened_dict(fields)
    (folder / "config.json").write_text(config.to_json())
    with metrics_csv(folder) as writer:
        for epoch in range(1, epochs + 1):
            row = {"epoch": float(epoch), "learning_rate": 0.1 / epoch}
            for split in splits:
                row |= {f"{split}_loss": 2.0 / epoch, f"{split}_top1": 1 - 0.5 / epoch, f"{split}_top5": 0.9}
                row |= {f"{split}_{name}": 0.5 / epoch for name in own}
            writer.write_scalars(10 * epoch, row | {"images_per_second": 600.0, "seconds": 40.0 * epoch})
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return Page(write_report(folder))


def make_summary(*splits, metric="validation_top1", epoch=2.0, **fields):
    results = dict.fromkeys(splits, METRICS)
    best = {"step": 20, "epoch": epoch, "metric": metric, "value": 0.75, **results}
    return {
        "name": "a_run", "steps": 30, "epochs": 3.0, **results, "best": best, "watched": metric, "stopped": "completed",
        "images_per_second": 612.3, "seconds": 4321.0, "parameters": 5986634, "device": "2 x cpu",
        "versions": {"jax": "0.10.2"},
    } | fields  # fmt: skip


def test_a_finished_run(tmp_path):
    page = make_run(tmp_path, summary=make_summary("validation", "test"))
    values = ["93.12 %", "99.71 %", "0.2513", "5,000"]
    assert page.rows[:7] == [
        ["Split", "Top-1", "Top-5", "Loss", "Images"],
        ["Last (epoch 3)"], ["validation", *values], ["test", *values],
        ["Best (epoch 2)"], ["validation", *values], ["test", *values],
    ]  # fmt: skip
    assert ["schedule.learning_rate", "0.1"] in page.rows
    assert ["data.splits.train", "auto"] in page.rows
    assert ["jax", "0.10.2"] in page.rows
    for text in ("1 h 12 min", "5,986,634", "612", "2 x cpu", "all epochs", "best validation_top1 (0.7500, step 20)"):
        assert text in page.text
    assert "not finished" not in page.text
    assert "Selected on test data" not in page.text


def headline(page):
    return re.sub("<.*?>", "", re.search(r'<p class="headline">(.*?)</p>', page.source)[1])


def test_the_result_to_quote_is_on_test_data_with_the_weights_that_validation_chose(tmp_path):
    page = make_run(tmp_path, summary=make_summary("validation", "test"))
    assert headline(page) == (
        "93.12 % top-1 accuracy on test data: 5,000 images, 95 % interval 92.4 to 93.8 %, best weights of epoch 2, "
        "selected by validation_top1"
    )
    text = write_report(tmp_path, tmp_path / "page", style="markdown").read_text()
    assert "\n\n**93.12 %** top-1 accuracy on test data" in text


def test_below_it_is_how_it_came_about(tmp_path):
    command = "inception-jax train googlenet_digits '--config.data.folder=a <b>'"
    summary = make_summary("test", command=command, versions={"commit": "0123456789ab"})
    make_run(tmp_path, summary=summary)
    ended = datetime.datetime(2020, 2, 29, 12, tzinfo=datetime.UTC).timestamp()
    os.utime(tmp_path / "summary.json", (ended, ended))
    page = Page(write_report(tmp_path))
    assert "googlenet on digits, 2020-02-29, commit 0123456789ab" in page.text
    assert command in " ".join(page.text.split())
    text = write_report(tmp_path, tmp_path / "page", style="markdown").read_text()
    assert f"\n\n    {command}\n\n" in text


@pytest.mark.parametrize(
    ("splits", "metric", "words"),
    [
        (
            ("test",),
            "test_top1",
            "on test data: 5,000 images, 95 % interval 92.4 to 93.8 %, last weights of epoch 3",
        ),
        (("test",), None, "last weights of epoch 3"),
        (("validation",), "validation_top1", "selected by validation_top1 on the same data"),
        (("validation",), None, "on validation data: 5,000 images"),
    ],
)
def test_the_result_to_quote_says_what_chose_it(tmp_path, splits, metric, words):
    assert words in headline(make_run(tmp_path, summary=make_summary(*splits, metric=metric)))


@pytest.mark.parametrize("test", [{}, {"top1": 0.5}, {"top1": 7.0, "count": 9}, {"top1": 0.5, "count": 0}])
def test_without_a_result_there_is_none_to_quote(tmp_path, test):
    page = make_run(tmp_path, summary=make_summary(test=test, best={}))
    assert 'class="headline"' not in page.source


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (331, 355), (4656, 5000)])
def test_the_interval_is_wilsons(right, count):
    expected = scipy.stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_fields_that_differ_from_the_defaults_come_first_and_the_others_are_folded(tmp_path):
    page = make_run(tmp_path, summary=make_summary("test"), batch_size=64, **{"schedule.name": "cosine"})
    first, _, folded = page.source.partition('id="config"')[2].partition("<details>")
    assert page.rows[page.rows.index(["Field", "Value", "Default"]) + 1 :][:3] == [
        ["batch_size", "64", "128"], ["num_epochs", "3", "10"], ["schedule.name", "cosine", "constant"],
    ]  # fmt: skip
    assert "<td>batch_size</td>" in first
    assert "<td>batch_size</td>" not in folded
    assert "weight_decay" in folded
    assert re.search(r"<summary>\d+ fields at their defaults</summary>", folded)


def test_a_run_that_reached_its_target_tells_the_time_of_its_steps(tmp_path):
    page = make_run(tmp_path, summary=make_summary("test", stopped="target", training_seconds=41.2))
    for text in ("reaching the target", "41 s"):
        assert text in page.text


def test_it_needs_nothing_from_outside(tmp_path, drawn):
    page = make_run(tmp_path, summary=make_summary("validation", "test"))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object")
        assert tag != "script" or not attributes  # it stands in the page
        for name in ("src", "href", "srcset", "data", "data-other"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    assert not re.search(r"https?:|url\(|@import", page.source)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_every_picture_is_a_drawing_with_a_text_for_it(tmp_path, drawn):
    page = make_run(tmp_path, splits=("train", "validation", "test"), summary=make_summary("validation", "test"))
    assert [image["alt"] for image in page.images()] == [
        "Loss over epochs 1 to 3; train: from 2 to 0.6667; validation: from 2 to 0.6667; test: from 2 to 0.6667",
        "Top-1 accuracy over epochs 1 to 3; train: from 50.00% to 83.33%; validation: from 50.00% to 83.33%; "
        "test: from 50.00% to 83.33%",
        "Top-5 accuracy over epochs 1 to 3; train: from 90.00% to 90.00%; validation: from 90.00% to 90.00%; "
        "test: from 90.00% to 90.00%",
        "Learning rate over epochs 1 to 3; from 0.1 to 0.03333",
        "Images per second over epochs 1 to 3; from 600 to 600",
    ]
    for image in page.images():
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        drawing = ElementTree.fromstring(base64.b64decode(content))
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_run_gives_the_same_page(tmp_path, drawn):
    first = make_run(tmp_path, summary=make_summary("validation")).source
    assert Page(write_report(tmp_path)).source == first


def test_a_run_that_goes_on(tmp_path):
    page = make_run(tmp_path, epochs=2)
    assert "This run has not finished: 2 of 3 epochs evaluated" in page.text
    assert page.rows[:7] == [
        ["Split", "Top-1", "Top-5", "Loss"],
        ["Last (epoch 2)"], ["train", "75.00 %", "90.00 %", "1.0000"], ["validation", "75.00 %", "90.00 %", "1.0000"],
        ["Best (epoch 2)"], ["train", "75.00 %", "90.00 %", "1.0000"], ["validation", "75.00 %", "90.00 %", "1.0000"],
    ]  # fmt: skip
    assert "1 min 20 s" in page.text


def test_the_best_epoch_of_a_run_that_goes_on_is_by_the_watched_metric(tmp_path):
    page = make_run(tmp_path, epochs=2, **{"evaluate.watch": "validation_top1", "evaluate.watch_mode": "min"})
    assert ["Best (epoch 1)"] in page.rows


def test_a_run_without_an_epoch_yet(tmp_path):
    page = make_run(tmp_path, epochs=0)
    assert page.images() == []
    assert "This run has not finished." in page.text
    assert ["batch_size", "128"] in page.rows


@pytest.mark.parametrize("splits", [(), ("validation",), ("test",)])
def test_one_epoch_and_any_final_splits(tmp_path, splits):
    page = make_run(tmp_path, epochs=1, summary=make_summary(*splits, epoch=1.0))
    assert len(page.images()) == 5
    assert {row[0] for row in page.rows if row[0] in ("validation", "test")} == set(splits)


def test_where_nothing_was_watched_there_is_no_best(tmp_path):
    page = make_run(tmp_path, splits=("train",), summary=make_summary("test", metric=None))
    assert ["Last (epoch 3)"] in page.rows
    assert "est weights" not in page.text


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"evaluate.watch": "test_top1"}, "the best weights were chosen by test_top1"),
        ({"evaluate.watch": "test_top1", "evaluate.early_stopping_patience": 3}, "Stopped on test data"),
        ({"evaluate.watch": "test_top1", "evaluate.stop_at": 0.94}, "the target was test_top1 0.94"),
        ({"schedule.name": "plateau", "schedule.metric": "test_loss"}, "the learning rate was reduced by test_loss"),
    ],
)
def test_what_was_chosen_on_test_data_is_said(tmp_path, fields, note):
    page = make_run(tmp_path, summary=make_summary("test"), **fields)
    assert "Selected on test data" in page.text
    assert note in page.text


def test_text_from_outside_is_no_markup(tmp_path, drawn):
    evil = "<img src=x onerror=alert(1)>&\"'"
    summary = make_summary("validation", name=evil, device=evil, versions={evil: evil})
    page = make_run(tmp_path, summary=summary, **{"model.name": evil, "schedule.boundaries": (evil,)})
    assert "onerror=alert" in page.text
    assert len(page.images()) == 5
    assert not any("onerror" in attributes for _, attributes in page.tags)


def test_numbers_that_are_not_finite_leave_gaps(tmp_path, drawn):
    make_run(tmp_path, epochs=2)
    with metrics_csv(tmp_path, 20) as writer:
        writer.write_scalars(
            30, {"epoch": 3.0, "learning_rate": 0.1, "train_loss": float("nan"), "validation_loss": float("inf")}
        )
    page = Page(write_report(tmp_path))
    assert page.images()[0]["alt"].startswith("Loss over epochs 1 to 2; ")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run's folder: it has no config\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.csv"])
def test_a_damaged_file_is_named(tmp_path, name):
    make_run(tmp_path, summary=make_summary("validation"))
    (tmp_path / name).write_text("{\n,,\n")
    with pytest.raises(UserError, match=f"{name} is damaged"):
        write_report(tmp_path)


def test_what_the_network_makes_of_its_data(trained, tmp_path, capsys, drawn):
    page_file = tmp_path / "run.html"
    assert main(["report", str(trained), "--output", str(page_file)]) == 0
    assert capsys.readouterr().out == f"{page_file}\n"
    page = Page(page_file)
    found = examine(trained)
    run = load_run(trained)
    dataset = evaluate.load_for(run, "test", {})
    predictions = evaluate.predictions(run, dataset, "test")
    wrong = predictions.logits.argmax(axis=1) != predictions.labels
    assert len(found.mistakes) == min(wrong.sum(), 18)
    assert all(one.label != one.predicted for one in found.mistakes)
    probabilities = [one.probability for one in found.mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert {one.label for one in found.sample} <= set(run.class_names)
    assert len({one.label for one in found.sample}) == len(found.sample) == 8
    by_class = evaluate.per_class(predictions, run.class_names)
    assert [one.recall for one in found.classes] == [one.recall for one in by_class]
    captions = sum("predicted:" in text for text in re.findall(r"<figcaption>(.*?)</figcaption>", page.source, re.S))
    assert captions == len(found.mistakes) + 8
    assert page_file.stat().st_size < 3e6


def test_where_the_data_is_gone_the_rest_is_there(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= {"name": "image_folder", "folder": str(tmp_path / "gone")}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["report", str(folder)]) == 0
    assert "classes, mistakes and Grad-CAM are skipped" in capsys.readouterr().err
    page = Page(folder / "report.html")
    assert "Classes, mistakes and Grad-CAM are skipped: " in page.text
    assert ["Split", "Top-1", "Top-5", "Loss", "Images"] in page.rows


def make_runs(tmp_path):
    for name, rate in (("slow", 0.01), ("fast", 0.1)):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name, summary=make_summary("test"), **{"schedule.learning_rate": rate})
    return [tmp_path / "slow", tmp_path / "fast"]


def test_several_runs_stand_side_by_side(tmp_path, drawn):
    page = Page(write_report(make_runs(tmp_path), tmp_path / "both.html"))
    assert "2 runs compared" in page.text
    differing = [row for row in page.rows if row and row[0].startswith("schedule.")]
    assert differing == [["schedule.learning_rate", "0.01", "0.1"]]
    assert re.search(r'class="[^"]*strong">0\.1<', page.source)
    assert page.images()[0]["alt"].startswith("Loss, train over epochs 1 to 3; slow: from 2 to")


def test_no_result_on_test_data_is_in_bold(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name, summary=make_summary("validation", "test"))
    page = Page(write_report([tmp_path / "one", tmp_path / "other"], tmp_path / "both.html"))
    rows = re.findall("<tr><td>o[a-z]+</td>(.*?)</tr>", page.source, re.DOTALL)[:4]
    assert [["strong" in cell for cell in re.findall("<td[^>]*>", row)] for row in rows] == [
        [False, True, True, True, False, False, False]
    ] * 4


def test_metrics_of_ones_own_are_among_the_results_of_several_runs(tmp_path):
    folders = [tmp_path / name for name in ("one", "other", "unfinished")]
    for folder, brier in zip(folders, (0.25, "strange", None), strict=True):
        folder.mkdir()
        summary = make_summary("validation", validation=METRICS | {"brier": brier}, best={}) if brier else None
        make_run(folder, summary=summary, own=("brier",), metrics=("my_metrics:Brier",))
    page = Page(write_report(folders, tmp_path / "all.html"))
    place = page.rows[0].index("validation brier")
    assert [row[place] for row in page.rows[1:4]] == ["0.2500", "-", "0.1667"]
    assert 'strong">0.1667<' not in page.source  # less may be better


def test_several_networks_stand_side_by_side(trained, tmp_path, drawn):
    other, both = tmp_path / "Run", tmp_path / "both"
    shutil.copytree(trained, other)
    found = examine(trained)
    findings = {trained: found, other: found}
    page = Page(write_report([trained, other], tmp_path / "both.html", findings=findings))
    titles = re.findall("<h2>(.*?)</h2>", page.source)
    for name in ("run", "Run"):  # with the same letters, so that pictures of one must not replace the other's
        details = [f"{what}: {name}" for what in ("Confusions", "Most confident mistakes", "Grad-CAM")]
        assert [title for title in titles if title in details] == details
    matrix = [[str(label), *(f"{n:,}" if n else "" for n in row)] for label, row in enumerate(found.confusion)]
    assert [page.rows.count(row) for row in matrix] == [2] * 10
    mistakes = (len(found.mistakes) + 1) // 2
    captions = sum("predicted:" in text for text in re.findall(r"<figcaption>(.*?)</figcaption>", page.source, re.S))
    assert captions == 2 * (mistakes + 4)
    assert (tmp_path / "both.html").stat().st_size < 3e6
    write_report([trained, other], both, style="markdown", findings=findings)
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (both / "report.md").read_text())
    assert len(pictures) == len(set(pictures)) == len(list(both.glob("*.png")))


def test_the_same_folder_twice_is_a_mistake(tmp_path, capsys):
    slow, _ = make_runs(tmp_path)
    assert main(["report", str(slow), f"{slow}/../slow", "--quick"]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_markdown_has_its_pictures_beside_it(trained, tmp_path, drawn):
    assert main(["report", str(trained), "--format", "markdown", "--output", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "report.md").read_text()
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(pictures) > 15
    for name in pictures:
        with Image.open(tmp_path / "page" / name) as picture:
            assert picture.format == "PNG"
            picture.load()


@pytest.fixture(scope="module")
def pages(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = make_runs(folder)
    assert main(["report", str(trained), "--output", str(folder / "one.html")]) == 0
    assert main(["report", str(trained), *map(str, runs), "--output", str(folder / "many.html")]) == 0
    return folder


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_it_fits_and_has_no_errors(pages, width, drawn):
    with browser.browser() as started:
        for name in ("one.html", "many.html"):
            with browser.page(started, (pages / name).as_uri(), width) as shown:
                browser.assert_fits(shown)
                browser.assert_reachable(shown)
                if os.environ.get("SHOTS"):
                    shown.screenshot(path=f"{os.environ['SHOTS']}/{name}-{width}.png", full_page=True)


def test_values_of_a_chart_are_read_by_pointer_and_by_keyboard(tmp_path, drawn):
    make_run(tmp_path, splits=("train", "validation"), summary=make_summary("validation"))
    with browser.browser() as started, browser.page(started, (tmp_path / "report.html").as_uri(), 400) as shown:
        loss = shown.locator("figure.chart").first
        assert " ".join(loss.locator("output").inner_text().split()) == "epoch 3 train 0.6667 validation 0.6667"
        loss.locator("input").focus()
        shown.keyboard.press("Home")
        assert "epoch 1" in loss.locator("output").inner_text()
        assert loss.locator("input").get_attribute("aria-valuetext") == "epoch 1, train 2, validation 2"
        box = loss.locator("img").bounding_box()
        places = json.loads(loss.get_attribute("data-chart"))["places"]
        shown.mouse.move(box["x"] + places[0][1] * box["width"] + 3, box["y"] + 20)
        assert loss.locator("output").inner_text().split()[:4] == ["epoch", "2", "train", "1"]
        first, button = loss.locator("img").get_attribute("src"), loss.locator("button")
        assert button.get_attribute("aria-pressed") == "false"
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert loss.locator("img").get_attribute("src") != first
        browser.assert_fits(shown)
        assert shown.locator("figure.chart button").count() == 2  # of losses and rates, not of accuracies and speed
