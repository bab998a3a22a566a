"""Which runs a study has, with which configs, and where."""

import dataclasses
import re

import pytest
from fake_runs import make_study

from inception_jax.errors import UserError
from inception_jax.experiment import build_model
from inception_jax.runs.folder import config_differences
from inception_jax.studies import Claim, Form, Range, Search, Variation
from inception_jax.studies.plan import load_study, make_plan, shipped_studies, start


def test_fields_come_from_the_study_then_the_variation_then_the_form(tmp_path):
    variations = {"long": Variation({"num_epochs": 9, "model.norm": "none"}), "plain": Variation()}
    study = make_study(variations=variations, claims=())
    by_name = {
        form: {planned.variation: planned.load_config() for planned in make_plan("s", study, form, tmp_path).runs}
        for form in study.forms
    }
    assert by_name["full"]["long"].num_epochs == 9
    assert by_name["full"]["plain"].num_epochs == 4
    assert by_name["smoke"]["long"].num_epochs == 1
    assert by_name["full"]["long"].model.norm == "none"
    assert by_name["full"]["plain"].model.norm == "batch"


def test_every_seed_has_its_folder_and_its_command(tmp_path):
    plan = make_plan("widths", make_study(), "full", tmp_path, fields=["--config.batch_size=32"])
    assert [planned.seed for planned in plan.runs_of("wide")] == [0, 1, 2]
    assert plan.runs[0].folder == tmp_path / "widths" / "full" / "narrow" / "seed0"
    assert plan.runs_of("wide")[2].load_config().seed == 2
    assert all(planned.load_config().batch_size == 32 for planned in plan.runs)
    assert "'--config.model.stage_features=(8, 16)'" in plan.runs_of("wide")[0].shown()
    classes = ('caf\u00e9 "noir"', "\U0001f98a", "O'Neil\\")
    assert dataclasses.replace(plan.runs[0], fields={"data.classes": classes}).load_config().data.classes == classes
    splits = dataclasses.replace(plan.runs[0], fields={"evaluate.splits": ("validation", "test")})
    assert '\'--config.evaluate.splits=("validation", "test")\'' in splits.shown()
    assert splits.load_config().evaluate.splits == ("validation", "test")


def test_a_budget_of_epochs_has_a_folder_of_its_own(tmp_path):
    plan = make_plan("widths", make_study(), "full", tmp_path, epochs=2, only=["w*"])
    assert {planned.variation for planned in plan.runs} == {"wide"}
    assert plan.folder.name == "full-2epochs"
    assert plan.runs[0].load_config().num_epochs == 2


def test_a_form_has_fields_of_single_variations(tmp_path):
    form = Form({"batch_size": 16}, own={"wide": {"batch_size": 32, "num_epochs": 3}})
    plan = make_plan("widths", make_study(forms={"full": form}), "full", tmp_path)
    configs = {planned.variation: planned.load_config() for planned in plan.runs}
    assert (configs["narrow"].batch_size, configs["wide"].batch_size) == (16, 32)
    assert configs["wide"].num_epochs == 3


def test_runs_of_another_study_are_shared(tmp_path):
    shared = make_study(forms={"full": Form(shared={"wide": "other/broad"})})
    plan = make_plan("widths", shared, "full", tmp_path)
    assert plan.runs_of("wide")[0].folder == tmp_path / "other/full/broad/seed0"
    assert plan.runs_of("narrow")[0].folder == tmp_path / "widths/full/narrow/seed0"
    assert make_plan("widths", shared, "full", tmp_path, epochs=2).runs_of("wide")[0].folder.parts[-3] == "full-2epochs"


@pytest.mark.parametrize("name", shipped_studies())
def test_runs_that_studies_share_have_the_same_config(name, tmp_path):
    _, study = load_study(name)
    for form_name, form in study.forms.items():
        for variation, row in form.shared.items():
            other, _, theirs = row.partition("/")
            (ours,) = make_plan(name, study, form_name, tmp_path, only=[variation]).runs_of(variation)[:1]
            found = make_plan(other, load_study(other)[1], form_name, tmp_path, only=[theirs]).runs_of(theirs)
            assert ours.folder == found[0].folder
            assert config_differences(found[0].load_config(), ours.load_config()) == []


def test_another_config_in_the_same_place_is_refused(tmp_path):
    study = make_study()
    start(make_plan("widths", study, "full", tmp_path).runs[0])
    start(make_plan("widths", study, "full", tmp_path).runs[0])
    with pytest.raises(UserError, match=r"another config: batch_size was 64, now 32\. Choose another --workdir"):
        start(make_plan("widths", study, "full", tmp_path, fields=["--config.batch_size=32"]).runs[0])


def test_a_grid_has_all_combinations(tmp_path):
    search = Search({"schedule.learning_rate": (0.1, 0.2), "model.norm": ("none", "batch")})
    plan = make_plan("s", make_study(variations={}, claims=(), search=search), "smoke", tmp_path)
    found = {(planned.fields["schedule.learning_rate"], planned.fields["model.norm"]) for planned in plan.runs}
    assert found == {(0.1, "none"), (0.1, "batch"), (0.2, "none"), (0.2, "batch")}


def test_finer_draws_are_near_the_best_of_the_first(tmp_path):
    search = Search({"schedule.learning_rate": Range(1e-4, 1.0, log=True)}, draws=8, finer=20, shrink=0.25)
    study = make_study(variations={}, claims=(), search=search)
    first = make_plan("s", study, "smoke", tmp_path)
    rates = {name: variation.fields["schedule.learning_rate"] for name, variation in first.variations.items()}
    assert len(rates) == len(set(rates.values())) == 8
    assert make_plan("s", study, "smoke", tmp_path).variations == first.variations  # the same draws again
    best = sorted(rates)[3]
    plan = make_plan("s", study, "smoke", tmp_path, found={name: float(name == best) for name in rates})
    finer = [v.fields["schedule.learning_rate"] for name, v in plan.variations.items() if name.startswith("finer")]
    assert len(finer) == 20
    reach = (1.0 / 1e-4) ** 0.125
    assert all(rates[best] / reach * 0.999 <= rate <= rates[best] * reach * 1.001 for rate in finer)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"form_name": "large"}, "unknown form 'large'. Known: full, smoke"),
        ({}, {"only": ["thin"]}, "unknown variation 'thin'. Known: narrow, wide"),
        ({}, {"fields": ["--batch_size=3"]}, "unexpected argument '--batch_size=3'"),
        ({"fields": {"batch_sise": 3}}, {}, "did you mean --config.batch_size?"),
        ({"fields": {"batch_size": 0}}, {}, "variation narrow: "),
    ],
)
def test_mistakes_are_named(tmp_path, change, options, message):
    given = {"form_name": "full", "folder": tmp_path} | options
    with pytest.raises(UserError, match=re.escape(message)):
        make_plan("widths", make_study(**change), **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Claim("x", "m", "wide", expected="better"), "unknown expectation 'better'"),
        (lambda: Claim("x", "m", "wide"), "must have a second variation"),
        (lambda: Claim("x", "m", "wide", "narrow", "same"), "needs a margin"),
        (lambda: make_study(claims=(Claim("x", "m", "wide", "thin"),)), "unknown variation in the claim 'x' 'thin'"),
        (lambda: make_study(claims=(Claim("x", "m", "wide", "narrow", than=("wide", "x1")),)), "the claim 'x' 'x1'"),
        (lambda: make_study(forms={"full": Form(own={"thin": {}})}), "unknown variation in a form 'thin'"),
        (lambda: make_study(forms={"full": Form(shared={"thin": "a/b"})}), "unknown variation in a form 'thin'"),
        (lambda: make_study(forms={"full": Form(shared={"wide": "narrow"})}), "it must be STUDY/VARIATION"),
        (lambda: Claim("x", "m", "wide", "narrow", than=("wide",)), "must compare two variations with two others"),
        (lambda: make_study(variations={}, claims=()), "neither variations nor a search"),
        (lambda: Search({"a": Range(0, 1)}), "needs the number of draws"),
        (lambda: Range(0, 1, log=True), "is not a range"),
    ],
)
def test_wrong_definitions_are_named(make, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_plan_in_every_form(name, tmp_path):
    _, study = load_study(name)
    assert {"full", "cpu", "smoke"} <= study.forms.keys()
    for form in study.forms:
        runs = make_plan(name, study, form, tmp_path).runs
        assert runs
        for config in (planned.load_config() for planned in runs if planned.seed == runs[0].seed):
            if config.model.name:  # else it is that of the weights
                build_model(config, 10)  # has the options


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_can_conclude_something_and_show_what_was_published(name, tmp_path):
    _, study = load_study(name)
    assert len(study.forms["full"].seeds) >= max(2, study.minimum.seeds)
    for planned in make_plan(name, study, "full", tmp_path).runs:
        assert planned.load_config().num_epochs >= study.minimum.epochs
    for row in (*study.variations.values(), *study.pairs.values()):
        assert row.published.keys() <= set(study.measures)


def test_the_naive_and_the_reduced_network_differ_in_nothing_else(tmp_path):
    plan = make_plan("inception_modules", load_study("inception_modules")[1], "full", tmp_path)
    naive, reduced = (build_model(plan.runs_of(name)[0].load_config(), 10) for name in ("naive", "reduced"))
    assert naive.clone(reductions=True) == reduced


def test_l2_is_kerass(tmp_path):
    plan = make_plan("tiny_vgg", load_study("tiny_vgg")[1], "full", tmp_path)
    decays = {name: plan.runs_of(name)[0].load_config().optimizer.weight_decay for name in plan.variations}
    assert decays == {"a": 0, "b": 0, "c": 0, "d": 0, "d_regularized": 2e-3, "e": 2e-3, "f": 1e-2}
