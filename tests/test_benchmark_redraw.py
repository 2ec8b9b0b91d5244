"""The benchmark of drawing anew: how turns become a ratio, and what is refused."""

import pytest
from benchmark import loaded


@pytest.fixture(scope="module")
def redraw():
    with loaded("redraw") as module:
        yield module


def test_a_ratio_is_that_of_each_turn_and_not_of_the_medians(redraw):
    turns = {
        "papermill": [{"processor": value} for value in (10.0, 20.0, 90.0)],
        "forks": [{"processor": value} for value in (2.0, 5.0, 10.0)],
    }
    found = redraw.compared(turns, "processor")
    assert found["papermill"] == {"median": 20.0, "min": 10.0, "max": 90.0}
    assert found["ratio"] == {"median": 5.0, "min": 4.0, "max": 9.0}


def test_the_steps_commands_are_those_of_the_workflow(redraw):
    step = {"notebook": "n/a.ipynb", "draft": "d.ipynb", "parameters": {"k": 3}, "name": "a-3", "key": "0"}
    papermill, take_over = redraw.commands(step, "quick")
    assert papermill[:3] == ["papermill", "n/a.ipynb", "d.ipynb"]
    assert papermill[-2:] == ["--parameters_yaml", '{"k": 3}']
    assert take_over == ["pursuhint_lib", "take-over", "quick", "a-3", "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--turns", "0"], "numbers above 0"), (["--profile", "qick"], "did you mean 'quick'")],
)
def test_what_cannot_be_measured_is_refused(arguments, message, redraw, capsys):
    assert redraw.main(arguments) == 2
    assert message in capsys.readouterr().err
