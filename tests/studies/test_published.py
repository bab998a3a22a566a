"""Results of studies as files, and the pages that are made from them."""

import json
import re
from pathlib import Path

import pytest
from fake_runs import fake_plan, make_study, write_study

from inception_jax.__main__ import main
from inception_jax.errors import UserError
from inception_jax.studies import Claim, Minimum, Variation, page
from inception_jax.studies.numbers import publish
from inception_jax.studies.plan import load_study, shipped_studies
from inception_jax.studies.results import read_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
FILES = sorted(RESULTS.glob("*.json"))
TOP1 = {"wide": (0.90, 0.92, 0.91), "narrow": (0.80, 0.81, 0.805)}


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def row(text, name):
    """The cells of the first table row whose first cell starts with the name, by column."""
    lines = text.splitlines()
    found = next(number for number, line in enumerate(lines) if re.match(rf"\| {name}[ <|]", line))
    head = max(number for number in range(found) if lines[number].startswith("| ---")) - 1
    return dict(zip(cells(lines[head]), cells(lines[found]), strict=True))


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Makes a study the only shipped one; returns the page of what is published of it in a folder."""

    def ship(study):
        monkeypatch.setattr(page, "shipped_studies", lambda: {"widths": tmp_path / "widths.py"})
        monkeypatch.setattr(page, "load_study", lambda name: (name, study))
        return page.markdown(tmp_path / "published")

    return ship


def test_a_file_has_every_measure_of_every_run_and_how_it_was_made(tmp_path):
    plan = fake_plan(tmp_path, **TOP1)
    options = "--seeds 0,1,2 --config.data.archives=/home/me/archives --config.num_devices=1"
    path = publish(read_table(plan), tmp_path / "published", options)
    assert path.name == "widths-full.json"
    content = json.loads(path.read_text())
    assert content["command"] == "inception-jax study widths --form full --seeds 0,1,2 --config.num_devices=1"
    assert [run["best_test_top1"] for run in content["results"]["wide"]] == list(TOP1["wide"])
    assert {run["epochs"] for run in content["results"]["wide"]} == {4.0}
    assert content["published"]["wide"] == {"best_test_top1": 0.9}
    assert (content["hardware"], content["versions"]) == (["1 x cpu"], {"jax": "0.12.0"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", content["date"])
    assert [claim["verdict"] for claim in content["claims"]] == ["holds"]


def test_rows_without_a_complete_run_are_left_out_with_their_claims(tmp_path):
    plan = fake_plan(tmp_path, wide=TOP1["wide"])
    content = json.loads(publish(read_table(plan), tmp_path / "published").read_text())
    assert content["results"].keys() == content["published"].keys() == {"wide"}
    assert content["claims"] == []
    with pytest.raises(UserError, match="no complete run"):
        publish(read_table(fake_plan(tmp_path / "none")), tmp_path)


def test_the_command_publishes_without_training(tmp_path, capsys):
    fake_plan(tmp_path / "work", wide=TOP1["wide"])
    study = write_study(tmp_path / "widths.py")
    assert main(["study", study, f"--workdir={tmp_path / 'work'}", f"--publish={tmp_path / 'published'}"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "published" / "widths-full.json")
    assert not (tmp_path / "work" / "widths" / "full" / "narrow").exists()


def test_the_page_has_ours_beside_the_published_numbers_and_the_verdicts(tmp_path, shipped):
    claims = (
        Claim("wider is better", "best_test_top1", "wide", "narrow"),
        Claim("best in the middle", "epoch_of_lowest_validation_loss", "wide", expected="between", limits=(2, 3.5)),
    )
    study = make_study(claims=claims)
    publish(read_table(fake_plan(tmp_path, study, **TOP1)), tmp_path / "published")
    text = shipped(study)
    found = row(text, "wide")
    assert found["test top-1, best by validation"] == "91.00 ± 1.00 %"
    assert found["test top-1, best by validation, published"] == "90.00 %"
    assert found["highest test top-1†"] == "92.00 ± 1.00 %"
    assert found["runs"] == "3: 1,280 images, 4 epochs"
    assert "- **holds**: wider is better (test top-1, best by validation, wide minus narrow: +10.50 points, " in text
    assert "best in the middle (epoch of the lowest validation loss, wide: 3, 3 to 3" in text


def test_the_page_has_published_rows_that_were_not_run(tmp_path, shipped):
    study = make_study(claims=())
    assert row(shipped(study), "wide") == {
        "": "wide",
        "runs": "not run",
        "test top-1, best by validation, published": "90.00 %",
    }
    publish(read_table(fake_plan(tmp_path, study, wide=TOP1["wide"])), tmp_path / "published")
    text = shipped(study)
    assert row(text, "wide")["runs"].startswith("3: ")
    assert row(text, "narrow")["runs"] == "not run"


def test_rows_too_small_for_a_conclusion_are_folded(tmp_path, shipped):
    study = make_study(minimum=Minimum(images=5000))
    publish(read_table(fake_plan(tmp_path, study, form="smoke", wide=(0.5, 0.6))), tmp_path / "published")
    shown, _, folded = shipped(study).partition("<details")
    assert "50.00" not in shown
    assert "55.00 ± 7.07 %" in folded.partition("</details>")[0]
    assert "no verdict" not in shipped(study)


def test_the_readmes_table_has_the_recipes_beside_others(tmp_path, monkeypatch):
    study = make_study(
        variations={
            "wide": Variation({"model.stage_features": (8, 16)}, published={"best_test_top1": 0.9}, source="others"),
            "narrow": Variation({"model.stage_features": (4, 8)}),
        }
    )
    plan = fake_plan(tmp_path, study, **TOP1)
    publish(read_table(plan), tmp_path / "published").rename(tmp_path / "published" / "recipes-full.json")
    monkeypatch.setattr(page, "load_study", lambda name: (name, study))
    text = page.with_table(
        "before\n<!-- results: x -->\nold\n<!-- end of results -->\nafter", page.recipes_table(tmp_path / "published")
    )
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert [*row(text, "`wide`").values()][1:4] == ["test top-1, best by validation", "91.00 ± 1.00 %", "3"]
    assert row(text, "`wide`")["others"] == "90.00 %, others"
    with pytest.raises(UserError, match="the place of the table"):
        page.with_table("no marks", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_files_are_of_shipped_studies_as_they_are_now(path):
    content = json.loads(path.read_text())
    _, study = load_study(content["study"])
    assert path.stem == f"{content['study']}-{content['form']}"
    assert content["study"] in shipped_studies()
    assert content["form"] in study.forms
    rows = {**study.variations, **study.pairs}
    assert content["published"] == {name: dict(rows[name].published) for name in content["results"]}
    assert path.stat().st_size < 50_000


def test_the_pages_are_those_of_the_files():
    renew = "renew them: python -m inception_jax.studies.page docs/results README.md"
    assert (RESULTS / "all.md").read_text() == page.markdown(RESULTS), renew
    readme = (ROOT / "README.md").read_text()
    assert readme == page.with_table(readme, page.recipes_table(RESULTS)), renew
