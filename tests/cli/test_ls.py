"""``uld ls methods``: a line a method, with everything that its user has to know."""

import re

from typer.testing import CliRunner

from uld.cli.main import app
from uld.methods.registry import all_methods


def lines() -> list[list[str]]:
    done = CliRunner().invoke(app, ["ls", "methods"], env={"COLUMNS": "40"})
    assert done.exit_code == 0
    return [re.split(r" {2,}", line) for line in done.output.splitlines()]


def test_every_method_has_one_line_whatever_the_width_of_the_terminal():
    methods = all_methods()
    assert [line[0] for line in lines()] == list(methods)
    for name, trains, needs, options, paper, summary in lines():
        method = methods[name]
        assert (trains, paper, summary) == (method.trains, method.paper, method.summary)
        assert needs == ("; ".join(method.needs) or "–")
        given = dict(one.split("=") for one in options.split()) if options != "–" else {}
        assert {name: float(value) for name, value in given.items()} == method.options


def test_options_can_be_copied_from_the_list():
    for name, _, _, options, *_ in lines():
        texts = options.split() if options != "–" else []
        assert all_methods()[name].read_options(texts) == all_methods()[name].options


def test_what_a_method_needs_is_said():
    needs = {line[0]: line[2] for line in lines()}
    assert needs["rmu"] == needs["kl-min"] == "frozen model in every step"
    assert needs["altpo"] == "frozen log-likelihoods, once; alternative answers"
    assert needs["simnpo"] == "–" and needs["task-vector"] == "no retain rows"
