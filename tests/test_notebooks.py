"""Notebooks as they are stored: stripped, short cells, parameters with help, the question first; and as
executed: in order, without noise.
"""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient

from pursuhint_lib.distillers import distiller
from pursuhint_lib.paths import NOTEBOOKS, ROOT
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.engine.plan import check_parameters

FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
EXECUTED = sorted(ROOT.glob("results/*/notebooks/*.ipynb"))
# What a progress bar leaves in a text.
BAR = re.compile(r"\d+%\||\d(it/s|s/it)\b|\r")


def cells(file) -> list[dict]:
    return json.loads(file.read_text())["cells"]


def code(file) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(file) if cell["cell_type"] == "code"]


def prose(file) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(file) if cell["cell_type"] == "markdown"]


def parameters(file) -> str:
    (found,) = [
        "".join(cell["source"]) for cell in cells(file) if "parameters" in cell["metadata"].get("tags", [])
    ]
    return found


def test_they_are_numbered_from_the_start():
    assert FILES[0].stem == "00_start_here"
    assert all(re.fullmatch(r"\d\d_[a-z_]+", file.stem) for file in FILES)
    numbers = [file.stem[:2] for file in FILES]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
class TestEveryNotebook:
    def test_is_stored_without_outputs_for_the_default_kernel(self, file):
        assert all(
            not cell["outputs"] and cell["execution_count"] is None
            for cell in cells(file)
            if cell["cell_type"] == "code"
        )
        assert json.loads(file.read_text())["metadata"]["kernelspec"]["name"] == "python3"

    def test_has_one_parameters_cell_typed_and_explained_line_by_line(self, file):
        for line in parameters(file).splitlines():
            assert re.fullmatch(r"\w+: (str|int|float|bool|list) = .+  # .{10,}", line), line
        nodes = ast.parse(parameters(file)).body
        assert all(isinstance(node, ast.AnnAssign) for node in nodes)
        for node in nodes:
            assert type(ast.literal_eval(node.value)).__name__ == node.annotation.id

    def test_its_parameters_are_what_papermill_lists_with_help(self, file):
        listed = papermill.inspect_notebook(str(file))
        assert list(listed) == [node.target.id for node in ast.parse(parameters(file)).body]
        for name, entry in listed.items():
            assert entry["inferred_type_name"] in ("str", "int", "float", "bool", "list"), name
            assert len(entry["help"].split()) > 1, name

    def test_has_short_cells_and_functions_of_twelve_lines_at_most(self, file):
        lengths = [len(source.splitlines()) for source in code(file)]
        assert max(lengths) <= 24
        assert statistics.median(lengths) <= 12
        defined = [
            node
            for source in code(file)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        ]
        assert [node.name for node in defined if node.end_lineno - node.lineno >= 12] == []

    def test_has_no_line_of_code_over_95_columns(self, file):
        lines = [line for source in code(file) for line in source.splitlines()]
        assert [line for line in lines if len(line) > 95] == []

    def test_asks_first_and_explains_itself(self, file):
        assert prose(file)[0].startswith("# ")
        assert "?" in prose(file)[0]
        assert sum(len(text.split()) for text in prose(file)) > sum(
            len(source.splitlines()) for source in code(file)
        )

    def test_ends_with_an_answer_or_with_where_to_go(self, file):
        headings = re.findall(r"^## (.+)$", "\n".join(prose(file)), flags=re.M)
        assert "Answer" in headings[-1] or re.search(r"\]\([\w./-]+\.(ipynb|md)\)", prose(file)[-1])

    def test_shows_its_note_once_all_is_published_that_the_note_was_written_for(self, file):
        published = re.findall(r"page\.(\w+)\(", "\n".join(code(file)))
        assert "note" not in published[:-1]

    def test_refuses_a_parameter_that_it_does_not_declare(self, file):
        check_parameters(file, {"profile": "smoke"})
        with pytest.raises(SettingsError, match="parameter.*'profil'.*did you mean 'profile'"):
            check_parameters(file, {"profil": "smoke"})

    def test_links_lead_somewhere(self, file):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(prose(file))):
            assert (NOTEBOOKS / target).exists(), target


@pytest.mark.parametrize("file", EXECUTED, ids=lambda f: f"{f.parts[-3]}-{f.stem}")
def test_executed_copies_ran_from_top_to_bottom_and_hold_results_only(file):
    assert file.stat().st_size < 1_000_000
    assert "To be read again" not in file.read_text(), "its note is about other numbers"
    ran = [cell for cell in cells(file) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    outputs = [output for cell in ran for output in cell["outputs"]]
    assert outputs
    assert not [
        output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    texts = ["".join(output["text"]) for output in outputs if output["output_type"] == "stream"]
    assert not [text for text in texts if BAR.search(text)]


def test_the_first_notebook_runs_as_it_is_stored_from_its_own_folder(tmp_path):
    notebook = nbformat.read(NOTEBOOKS / "00_start_here.ipynb", as_version=4)
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name=notebook.metadata.kernelspec.name,
        resources={"metadata": {"path": NOTEBOOKS}},
    ).execute()
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert [
        output.name
        for cell in ran
        for output in cell.outputs
        if output.output_type == "stream" and output.name != "stdout"
    ] == []
    # conftest.py moves the results.
    assert (tmp_path / "results" / "quick" / "figures" / "00_start_here-toy.png").is_file()


def test_the_kernel_is_that_of_the_environment_whatever_the_user_has_installed(tmp_path):
    foreign = tmp_path / ".local" / "share" / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(
        json.dumps({"argv": ["/nowhere/python"], "display_name": "another", "language": "python"})
    )
    # Jupyter is told to prefer the user's kernels, as it does by itself outside virtual environments. (On a
    # Mac the user's folder is another.)
    environment = {**os.environ, "HOME": str(tmp_path), "JUPYTER_PREFER_ENV_PATH": "0"}
    code = (
        "import sys; from pursuhint_lib.inherited import settle; settle('run'); "
        "from jupyter_client.kernelspec import get_kernel_spec as found; "
        "print(found('python3').resource_dir, sys.prefix, sep=chr(10))"
    )
    command = [sys.executable, "-c", code]
    folder, prefix = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert Path(folder).is_relative_to(prefix)


def test_every_method_of_a_committed_profile_has_its_formula_in_its_notebook():
    """In the executed notebook, where a reader sees it."""
    for drawn in sorted(ROOT.glob("results/*/notebooks/03_distillation-*.ipynb")):
        cells = json.loads(drawn.read_text(encoding="utf-8"))["cells"]
        given = next(cell for cell in cells if "injected-parameters" in cell["metadata"].get("tags", []))
        (method,) = re.findall(r'^method = "(.*)"$', "".join(given["source"]), flags=re.M)
        shown = [
            "".join(output["data"].get("text/latex", []))
            for cell in cells
            for output in cell.get("outputs", [])
            if "data" in output
        ]
        assert any(distiller(method).formula in text for text in shown), drawn.name
