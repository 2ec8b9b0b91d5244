"""Imports of the library go downward only, and its files and functions stay small."""

import ast

import pytest

from pursuhint_lib.paths import ROOT

LIBRARY = ROOT / "pursuhint_lib"

# From the ground up; a module imports from its own room and from lower layers only.
LAYERS = [
    {"paths", "settings", "digits", "forks", "gradients"},
    {"files"},
    {"faults", "inherited", "progress", "processes"}
    | {"similarity", "clustering", "quality", "losses", "statistics"},
    {"data", "models", "taps", "teachers", "plots"},
    {"profiling", "attention", "distillers", "records"},
    {"training", "export"},
    {"study"},
    {"cli"},
    {"__main__"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
# The rooms of the study, likewise.
ROOMS = ["grid", "experiments", "engine", "publish"]
NOTEBOOK_TOOLS = {"papermill", "snakemake", "IPython", "nbformat", "nbclient", "jupyterlab"}

FILES = sorted(LIBRARY.rglob("*.py"))


def module_name(file) -> str:
    return file.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imported(file) -> set[tuple[str, ...]]:
    """Modules of the library that a file imports, as path parts, and packages from outside as one part."""
    here = file.relative_to(LIBRARY).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {("outside", alias.name.split(".")[0]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = (*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else ()))
            found |= {base} if node.module else {(*base, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(("outside", node.module.split(".")[0]))
    return found


def test_every_module_has_a_layer():
    assert {module_name(file) for file in FILES} - {"__init__"} == set(LEVEL)
    assert [file.name for file in (LIBRARY / "study").glob("*.py")] == ["__init__.py"]
    rooms = {file.parent for file in FILES} - {LIBRARY}
    assert {room.name for room in rooms if room.parent.name == "study"} == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_imports_go_downward(file):
    own = module_name(file)
    for parts in imported(file) - {("outside", "pursuhint_lib")}:
        if parts[0] == "outside" or own == "__init__":
            continue
        if own == parts[0] == "study":
            assert ROOMS.index(parts[1]) <= ROOMS.index(file.parent.name), f"{file} imports {parts[1]}"
        elif own != parts[0]:
            assert LEVEL[parts[0]] < LEVEL[own], f"{own} imports {parts[0]}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_notebook_tools_are_used_in_study_only(file):
    outside = {parts[1] for parts in imported(file) if parts[0] == "outside"}
    assert module_name(file) == "study" or not outside & NOTEBOOK_TOOLS
    assert "pursuhint_lib" not in outside, "inside the library imports are relative"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_files_and_functions_are_small_and_documented(file):
    text = file.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 400, "move a part into a file of its own"
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [argument for argument in given if argument.arg not in ("self", "cls")]
            assert len(own) <= 7, node.name
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_no_device_is_hard_wired_and_no_pickle_can_execute(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr != "cuda" or isinstance(node.value, ast.Name), "use .to(device)"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert {k.arg: ast.unparse(k.value) for k in node.keywords}["weights_only"] == "True"


@pytest.mark.parametrize("room", [*ROOMS, "../training"])
def test_a_room_has_ten_files_at_most(room):
    files = [file.name for file in (LIBRARY / "study" / room).glob("*.py")]
    assert len(files) <= 10, "put two that belong together into one file"


def test_one_place_is_a_command():
    assert [file.name for file in FILES if '__name__ == "__main__"' in file.read_text()] == ["__main__.py"]
