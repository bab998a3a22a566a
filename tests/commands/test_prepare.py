"""The sub-command that prepares a data set."""

import argparse

import pytest

from inception_jax.commands import prepare
from inception_jax.errors import UserError


def call(*arguments):
    parser = argparse.ArgumentParser()
    prepare.add_parser(parser.add_subparsers())
    args = parser.parse_args(["prepare", *map(str, arguments)])
    return args.run(args)


def test_prepare_says_what_it_prepared_and_where(tmp_path, capsys):
    assert call("digits", "--data-dir", tmp_path) == 0
    first = capsys.readouterr().out
    assert (
        first.split()
        == f"digits: images 8x8x1, 10 classes train 1,442 examples test 355 examples in {tmp_path}/digits/1.0.0".split()
    )
    assert call("digits", "--data-dir", tmp_path) == 0
    assert capsys.readouterr().out == first


def test_prepare_leaves_a_users_mistake_to_the_shell(tmp_path):
    with pytest.raises(UserError, match="no folder with files"):
        call("cifar10", "--data-dir", tmp_path, "--archives", tmp_path / "missing")
