"""Notebooks as they are stored: stripped, with one typed parameters cell, short cells, the question first."""

import ast
import json
import re
import statistics

import pytest

from pursuhint_lib.paths import NOTEBOOKS
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.plan import check_parameters

FILES = sorted(NOTEBOOKS.glob("*.ipynb"))


def cells(file) -> list[dict]:
    return json.loads(file.read_text())["cells"]


def code(file) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(file) if cell["cell_type"] == "code"]


def prose(file) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(file) if cell["cell_type"] == "markdown"]


def parameters(file) -> str:
    (found,) = ["".join(cell["source"]) for cell in cells(file) if "parameters" in cell["metadata"].get("tags", [])]
    return found


def test_all_notebooks_are_there():
    first = ["00_start_here", "01_teacher_and_layers", "02_hint_points", "03_distillation", "04_imagenet"]
    assert [file.stem for file in FILES] == [*first, "05_results", "06_your_own_pair", "07_speed"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
class TestEveryNotebook:
    def test_is_stored_without_outputs_for_the_default_kernel(self, file):
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(file) if cell["cell_type"] == "code")
        assert json.loads(file.read_text())["metadata"]["kernelspec"]["name"] == "python3"

    def test_has_one_parameters_cell_typed_and_explained_line_by_line(self, file):
        for line in parameters(file).splitlines():
            assert re.fullmatch(r"\w+: (str|int|float|bool|list) = .+  # .{10,}", line), line
        assert all(isinstance(node, ast.AnnAssign) for node in ast.parse(parameters(file)).body)

    def test_has_short_cells_and_no_functions(self, file):
        lengths = [len(source.splitlines()) for source in code(file)]
        assert max(lengths) <= 20
        assert statistics.median(lengths) <= 12
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for source in code(file) for node in ast.walk(ast.parse(source)))

    def test_asks_first_and_explains_itself(self, file):
        assert prose(file)[0].startswith("# ")
        assert "?" in prose(file)[0]
        assert sum(len(text.split()) for text in prose(file)) > sum(len(source.splitlines()) for source in code(file))

    def test_refuses_a_parameter_that_it_does_not_declare(self, file):
        check_parameters(file, {"profile": "smoke"})
        with pytest.raises(SettingsError, match="parameter.*'profil'.*did you mean 'profile'"):
            check_parameters(file, {"profil": "smoke"})

    def test_links_lead_somewhere(self, file):
        for target in re.findall(r"\]\((\w+\.ipynb)\)", "\n".join(prose(file))):
            assert (NOTEBOOKS / target).is_file(), target
