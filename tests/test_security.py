"""Nothing that comes from outside is run: no pickled code, no shell that reads values, no
unchecked download.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from pursuhint_lib.files import write_json
from pursuhint_lib.paths import CONFIG, NOTEBOOKS, ROOT, SNAKEFILE
from pursuhint_lib.settings import SettingsError, read_profile
from pursuhint_lib.study.engine.plan import make_plan, write_plan
from pursuhint_lib.study.grid.profiles import load_profile

SHELLS = [ROOT / "run_all.sh", ROOT / "run_tests.sh", *sorted((ROOT / "workflow").glob("*.sh"))]


def sources() -> dict[str, str]:
    """Every Python source outside the tests, notebooks and the Snakefile among them."""
    found = {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in ("pursuhint_lib", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        found[path.name] = "\n".join("".join(cell["source"]) for cell in cells)
    # Up to its rules a Snakefile is Python; what follows is looked at as it is rendered.
    found["Snakefile"] = SNAKEFILE.read_text().partition("\nrule all:")[0]
    return found


SOURCES = sources()


# Why a call is wrong → how it begins, function and arguments as Python writes them back.
WRONG_CALLS = {
    "runs code": r"(eval|exec|compile|__import__|os\.(system|popen|exec\w*|spawn\w*))\(",
    "torch.load without weights_only=True": r"torch\.load\((?!.*\bweights_only=True)",
    "allow_pickle": r"(np|numpy)\.load\(.*\ballow_pickle=(?!False)",
    # But for the one of settings.yaml_file, a subclass that makes no more than yaml.SafeLoader does.
    "yaml, but not safe_load": r"yaml\.(load(?!\(.*\bLoader=_SafeLoader)|full_load|unsafe_load)\w*\(",
    "unpacks by the archive's own names": r"[^(]*\b(extractall|extract|unpack_archive)\(",
    "shell": r"[^(]*\(.*\bshell=(?!False)",
    "unsafe": r"[^(]*\b(mktemp|urlretrieve)\(",
}
LOADS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def wrong_in(source: str) -> list[str]:
    """What a source may not say, with its line."""
    nodes = ((node, _reason(node)) for node in ast.walk(ast.parse(source)))
    return [f"line {node.lineno}: {ast.unparse(node)[:80]} ({reason})" for node, reason in nodes if reason]


def _reason(node: ast.AST) -> str | None:
    text = ast.unparse(node) if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call)) else ""
    # The error that torch raises where it refuses pickled code lives there, and a count of cores.
    harmless = ("from pickle import UnpicklingError", "from joblib import cpu_count")
    if isinstance(node, (ast.Import, ast.ImportFrom)) and text not in harmless:
        names = [getattr(node, "module", None) or ""] + [alias.name for alias in node.names]
        return "loads code" if LOADS_CODE & {name.partition(".")[0] for name in names} else None
    if isinstance(node, ast.Constant) and re.match(r"(http|ftp)://", str(node.value)):
        return "an address that is not https"
    if isinstance(node, ast.Call):
        if text.startswith("subprocess.") and isinstance(
            next(iter(node.args), None), (ast.Constant, ast.JoinedStr, ast.BinOp)
        ):
            return "a command that is no list"
        return next((why for why, begins in WRONG_CALLS.items() if re.match(begins, text, re.S)), None)
    return None


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_runs_nothing_from_outside(name):
    assert wrong_in(SOURCES[name]) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import shelve as s",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t)",
        "yaml.unsafe_load(t)",
        "yaml.load(t, Loader=yaml.Loader)",
        "eval(t)",
        "exec(t)",
        "os.system(t)",
        "os.popen(t)",
        "subprocess.run(t, shell=True)",
        "subprocess.run('ls ' + t)",
        "subprocess.Popen(f'ls {t}')",
        "tar.extractall(p)",
        "shutil.unpack_archive(p)",
        "tempfile.mktemp()",
        "a = 'http://example.org/x.pth'",
    ],
)
def test_the_scan_finds_what_it_looks_for(line):
    assert len(wrong_in(line)) == 1


def bare_variables(line: str) -> list[str]:
    """Variables of a line of shell that are split into words: outside double quotes, and no plain
    assignment.
    """
    code = re.sub(r"'[^']*'|(^|\s)#.*", "", line)
    # The only way to hand on an array that may be empty.
    code = re.sub(r'\$\{(\w+)\[@\]\+"\$\{\1\[@\]\}"\}', "", code)
    found = []
    # From the inside out, since quotes begin anew in every command substitution.
    while inner := re.search(r"\$\(([^()]*)\)|\$\(\(([^()]*)\)\)", code):
        found += bare_variables(inner[1] or "")
        code = code[: inner.start()] + "X" + code[inner.end() :]
    code = re.sub(r'"(\\.|[^"\\])*"', "", code)
    code = re.sub(r"(^|\s)\w+=\$(\w+|\{\w+(:[?-]\w*)?\})(?=\s|$)", " ", code)
    return found + [variable for variable in re.findall(r"\$\{?[\w@*#]+", code) if variable != "$#"]


@pytest.mark.parametrize("script", SHELLS, ids=lambda path: path.name)
def test_a_shell_script_stops_at_errors_quotes_its_variables_and_evaluates_nothing(script):
    text = script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in text or text.startswith("# Sourced by ")
    # Python in a here-document is no shell.
    for line in re.sub(r"<<'PYTHON'\n.*?\nPYTHON\n", "\n", text, flags=re.DOTALL).splitlines():
        assert not re.search(r"(^|[\s;&|(])eval\b|`", re.sub(r"(^|\s)#.*", "", line)), line
        assert bare_variables(line) == [], line
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, "--severity=warning", "--external-sources", str(script)], check=True)


@pytest.mark.parametrize(
    "line",
    ["rm $file", 'cd "$(dirname $0)"', "for f in $files; do", 'cp ${a} "$b"', "[ -n $x ]", 'echo $@ "$@"'],
)
def test_the_scan_finds_variables_without_quotes(line):
    assert len(bare_variables(line)) == 1


def test_every_value_in_the_command_of_a_step_is_quoted():
    _, _, shell = SNAKEFILE.read_text().partition("shell:")
    values = re.findall(r"\{([^}]*)\}", shell)
    assert len(values) > 8
    # Threads are a number.
    assert {value for value in values if not value.endswith(":q")} == {"threads"}


HOSTILE = {
    "spaces": "a b  c",
    "quotes": 'it\'s "so"',
    "command": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "semicolon": "x; touch pwned #",
    "braces": "{input} {params.python} {0} {{x}}",
    "newline": "a\ntouch pwned\n",
    "options": "--output pwned",
    "redirect": "> pwned",
    "unicode": "naïve → ∞",
    "percent": "%s %(x)s \\n",
}


def printed_command(plan: Path, folder: Path) -> str:
    """The command of the plan's step as snakemake would give it to the shell."""
    options = ["--snakefile", str(SNAKEFILE), "--directory", str(plan.parent)]
    command = [sys.executable, "-m", "snakemake", *options, "--nolock", "--cores", "1", "-n", "-p"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout + done.stderr


def words_of(command: str, folder: Path) -> list[list[str]]:
    """What bash takes a command for: the words of each program that it would start, none of which is really
    started.
    """
    log = folder / "words.json"
    stub = folder / "python-stub"
    stub.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + "
        "chr(10))\n"
    )
    stub.chmod(0o755)
    subprocess.run(
        ["bash", "-c", command.replace(sys.executable, str(stub))], cwd=folder, check=True, timeout=60
    )
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_hostile_values_reach_the_notebook_as_they_are_and_run_nothing(tmp_path):
    profile = load_profile("smoke")
    step = make_plan(profile, "smoke")[0]
    odd = tmp_path / "a b $(touch pwned) 'q'"
    odd.mkdir()
    steps = [
        replace(
            step,
            name=f"step{number}",
            parameters={"profile": value, "pair": value},
            key=f"key{number}",
            stamp=str(odd / f"stamp{number}.json"),
        )
        for number, value in enumerate(HOSTILE.values())
    ]
    plan = write_plan(profile, steps, 1, 0)
    # Names that no profile could have: the shell must take them all the same.
    content = json.loads(plan.read_text()) | {
        "profile": "pro $(touch pwned) file",
        "forks": str(odd / "forks"),
    }
    for number, entry in enumerate(content["steps"]):
        entry |= {
            "log": str(odd / f"log{number}.txt"),
            "draft": str(odd / f"draft{number}.ipynb"),
        }
    write_json(plan, content)
    said = printed_command(plan, tmp_path)
    commands = re.findall(r"^Shell command: (PURSUHINT_PROGRESS=.*)$", said, flags=re.MULTILINE)
    assert len(commands) == len(steps), said
    given = []
    for command in commands:
        (tmp_path / "words.json").unlink(missing_ok=True)
        by = ["-I", "-S", str(ROOT / "workflow" / "forked.py"), str(odd / "forks")]
        papermill, finish = words_of(command, tmp_path)
        assert papermill[:4] == finish[:4] == by
        papermill, finish = papermill[5:], finish[5:]
        assert papermill[:2] == ["-m", "papermill"]
        given.append(yaml.safe_load(papermill[papermill.index("--parameters_yaml") + 1]))
        assert finish[:4] == ["-m", "pursuhint_lib", "take-over", "pro $(touch pwned) file"]
    assert sorted(map(str, given)) == sorted(str(step.parameters) for step in steps)
    assert not list(tmp_path.rglob("pwned"))
    assert not (ROOT / "pwned").exists()


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_notebooks_parameter_is_a_value_and_never_code(value, tmp_path):
    notebook = load_notebook_node(str(NOTEBOOKS / "01_teacher_and_layers.ipynb"))
    filled = parameterize_notebook(
        notebook, {"profile": value, "teacher": value}, kernel_name="python3", language="python"
    )
    (cell,) = [cell for cell in filled.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assigned = ast.parse(cell.source).body
    assert {node.targets[0].id: ast.literal_eval(node.value) for node in assigned} == {
        "profile": value,
        "teacher": value,
    }


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "!!python/name:os.system",
        "name: !!python/object/new:str [x]",
    ],
)
def test_yaml_that_would_run_code_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingsError, match="not a YAML file.*could not determine a constructor"):
        read_profile(tmp_path / "mine.yaml")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "name", [value for key, value in HOSTILE.items() if key != "unicode"] + ["..", "-x", "/etc"]
)
def test_a_profile_cannot_have_a_name_that_leads_elsewhere(name, tmp_path):
    content = {**yaml.safe_load((CONFIG / "smoke.yaml").read_text()), "name": name}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SettingsError, match="cannot be a folder"):
        read_profile(tmp_path / "mine.yaml")
