"""The report of a study: the page in a browser, the numbers, LaTeX."""

import json
import re

import pytest
from browser import WIDTHS, assert_fits, assert_reachable, browser, page
from fake_runs import fake_plan, make_study

from inception_jax.studies import Claim, Pair
from inception_jax.studies.report import show, write_report
from inception_jax.studies.results import EXTRAS, read_table

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    claims = (
        Claim("wider is better", "best_test_top1", "wide", "narrow"),
        Claim("best in the middle", "epoch_of_lowest_validation_loss", "wide", expected="between", limits=(2, 3.5)),
    )
    plan = fake_plan(folder, make_study(claims=claims), wide=(0.90, 0.92, 0.91), narrow=(0.80, 0.81, 0.805))
    for name, layers in {"wide": ("conv1", "aux", "fc"), "narrow": ("conv1", "fc")}.items():
        for number, planned in enumerate(plan.runs_of(name), start=1):
            norms = {when: dict.fromkeys(layers, scale * number) for when, scale in (("start", 1.0), ("end", 0.1))}
            (planned.folder / EXTRAS).write_text(json.dumps({"gradient_norms": norms}))
    return write_report(read_table(plan), {plan.runs[0].folder: "exit code 3: <loss> not finite"})


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_has_no_errors(report, width, drawn):
    with browser() as started, page(started, report.as_uri(), width) as shown:
        assert_fits(shown)
        assert_reachable(shown)
        heads = "[...document.querySelectorAll('thead th')].map(head => head.getClientRects()[0].height)"
        assert max(shown.evaluate(heads)) < 40  # pixels: of one line, with its padding
        assert "wider is better" in shown.inner_text("body")


def test_published_numbers_stand_beside_ours(report):
    text = re.sub(r"<[^>]*>", " ", report.read_text())
    text = " ".join(text.split())
    assert "test top-1, best by validation published highest test top-1†" in text
    assert "wide 91.00 ± 1.00 % 90.00 % 92.00 ± 1.00 % 3" in text
    assert "highest test top-1† " in text
    assert "+10.50 points" in text
    assert "exit code 3: &lt;loss&gt; not finite" in text
    assert "6 of 6 runs complete" in text
    assert "before and after training: the median over the seeds" in report.read_text()


def test_the_numbers_are_a_file(report):
    content = json.loads((report.parent / "results.json").read_text())
    assert [run["best_test_top1"] for run in content["results"]["wide"]] == [0.90, 0.92, 0.91]
    assert [claim["verdict"] for claim in content["claims"]] == ["holds", "holds"]
    assert content["claims"][0]["mean"] == pytest.approx(0.105)


def test_latex_is_whole(report):
    text = (report.parent / "report.tex").read_text()
    for name in ("document", "table", "tabular", "figure"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
    columns = len(re.search(r"\\begin{tabular}{(\w+)}", text)[1])
    table = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line for line in table.splitlines() if line.strip()]
    assert len(rows) == 2
    assert all(line.count(" & ") == columns - 1 for line in rows)
    assert r"50 \% of a first paragraph \& more." in text
    assert not re.search(r"(?<!\\)_", re.sub(r"\\includegraphics.*", "", text))
    for figure in re.findall(r"\\includegraphics\[.*?\]{(.*?)}", text):
        assert (report.parent / figure).read_bytes().startswith(b"%PDF")


def test_commands_in_latex_are_what_the_shell_reads(report):
    text = (report.parent / "report.tex").read_text()
    assert r"\textquotesingle{}-{}-config.model.stage\_features=(8, 16)\textquotesingle{}" in text
    assert "--" not in text


def test_a_pair_is_no_run_and_has_no_command_of_its_own(tmp_path):
    study = make_study(pairs={"both": Pair("wide", "narrow")})
    plan = fake_plan(tmp_path, study, wide=(0.9, 0.92, 0.91), narrow=(0.8, 0.81, 0.805))
    text = write_report(read_table(plan)).read_text()
    assert "6 of 6 runs complete" in text
    commands = text.partition("<h2>Commands</h2>")[2]
    assert re.findall(r"<strong>(\w+)</strong>", commands) == ["narrow", "wide"]


def test_weights_that_test_data_chose_are_marked(tmp_path):
    study = make_study(measures=("best_test_top1",))
    plan = fake_plan(tmp_path, study, wide=(0.9, 0.92, 0.91), narrow=(0.8, 0.81, 0.805))
    assert "were selected\nwithout test data" in write_report(read_table(plan)).read_text()
    path = plan.runs[0].folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"watched": "test_top1"}))
    text = write_report(read_table(plan)).read_text()
    assert "<th>test top-1, best by test data†</th>" in text
    assert "were selected\nwithout test data" not in text
    assert r"best by test data\dag{}" in (plan.folder / "report.tex").read_text()


@pytest.mark.parametrize(
    ("measure", "label", "shown"),
    [
        ("test_top1_at_epoch_1", "test top-1 after epoch 1", "50.00 %"),
        ("learning_rate_at_highest_test_top1", "rate at the highest test top-1†", "0.5"),
        ("best_test_aux1_top1", "test aux1 top-1, best by validation", "50.00 %"),
        ("grayscale.top1", "grayscale pictures, top-1", "50.00 %"),
        ("epoch_of_highest_test_top1", "epoch of the highest test top-1†", "0.5"),
        ("cifar10_top1", "cifar10 top-1", "50.00 %"),
        ("area_test_top1", "test top-1, mean over the epochs", "50.00 %"),
        ("change_of_train_top1_after_epoch_9", "train top-1, change after epoch 9", "50.00 %"),
        ("gap_test_top1", "top-1, training minus test, last epoch", "50.00 %"),
    ],
)
def test_measures_have_names_and_units(tmp_path, measure, label, shown):
    plan = fake_plan(tmp_path, make_study(measures=(measure,)), wide=(0.9, 0.9, 0.9), narrow=(0.8, 0.8, 0.8))
    assert f"<th>{label}</th>" in write_report(read_table(plan)).read_text()
    assert show(measure, 0.5) == shown


def test_a_comparison_with_another_difference_is_written_out(tmp_path):
    claim = Claim("x", "best_test_top1", "wide", "narrow", than=("narrow", "wide"))
    plan = fake_plan(tmp_path, make_study(claims=(claim,)), wide=(0.9, 0.91, 0.9), narrow=(0.8, 0.8, 0.81))
    assert "wide minus narrow, minus (narrow minus wide)" in write_report(read_table(plan)).read_text()


@pytest.mark.parametrize(("first", "axis"), [(15.0, ""), (1e5, ", on a logarithmic axis")])
def test_a_loss_that_starts_high_leaves_the_others_to_be_seen(first, axis, tmp_path, drawn):
    plan = fake_plan(tmp_path, wide=(0.9, 0.92, 0.91), narrow=(0.8, 0.81, 0.805))
    path = plan.runs[0].folder / "metrics.csv"
    head, row, *rows = path.read_text().splitlines()
    values = dict(zip(head.split(","), row.split(","), strict=True)) | {"validation_loss": str(first)}
    path.write_text("\n".join([head, ",".join(values.values()), *rows]) + "\n")
    assert f"validation loss over the epochs{axis}: " in write_report(read_table(plan)).read_text()


def test_the_same_runs_give_the_same_report(tmp_path, drawn):
    plan = fake_plan(tmp_path, wide=(0.9, 0.92, 0.91), narrow=(0.8, 0.81, 0.805))
    first = write_report(read_table(plan)).read_bytes()
    assert write_report(read_table(plan)).read_bytes() == first


def test_there_is_no_chart_of_a_single_point(tmp_path):
    plan = fake_plan(tmp_path, wide=(0.9, 0.92, 0.91), narrow=(0.8, 0.81, 0.805))
    for planned in plan.runs:
        lines = (planned.folder / "metrics.csv").read_text().splitlines()
        (planned.folder / "metrics.csv").write_text("\n".join(lines[:2]) + "\n")
        norms = {when: {"conv1": 1.0} for when in ("start", "end")}
        (planned.folder / EXTRAS).write_text(json.dumps({"gradient_norms": norms}))
    assert "<figure" not in write_report(read_table(plan)).read_text()
