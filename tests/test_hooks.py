"""The hooks of .pre-commit-config.yaml mend what they can and refuse the rest, in a repository of their own,
without network.
"""

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from pursuhint_lib.paths import NOTEBOOKS, ROOT

MIB = 1 << 20
# What JupyterLab writes into a notebook that was run and saved.
SAVED = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": "3.11.7",
}


def as_saved_by_jupyterlab(text: str) -> str:
    """A stored notebook after it was run."""
    notebook = json.loads(text)
    notebook["metadata"]["language_info"] = SAVED
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        cell["execution_count"] = number + 1
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["12 layers\n"]}]
        cell["metadata"]["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00.000000Z"}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A repository with the hooks installed by the one command that a contributor gives; called with git's
    arguments.
    """
    folder = tmp_path / "checkout"
    for name in ("notebooks", "pursuhint_lib", "results/quick/tables"):
        (folder / name).mkdir(parents=True)
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "pursuhint_lib" / "__init__.py").write_text('"""The library."""\n')
    monkeypatch.chdir(folder)
    # Of the environment that runs the tests, as there is no .venv here; and none of the user's settings of
    # git.
    places = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PRE_COMMIT_HOME": str(tmp_path / "hooks"),
    }
    for name, value in {**places, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)

    def call(*words: str) -> subprocess.CompletedProcess:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(["git", *who, *words], capture_output=True, text=True, check=False)

    call("init", "--quiet")
    subprocess.run([sys.executable, "-m", "pre_commit", "install"], capture_output=True, check=True)
    return call


def test_a_commit_is_mended_or_refused_and_then_goes_through(git):
    stored = (NOTEBOOKS / "00_start_here.ipynb").read_text()
    notebook, code, large, table = (
        Path(name)
        for name in ("notebooks/00_start_here.ipynb", "code.py", "large.bin", "results/quick/tables/a.csv")
    )
    notebook.write_text(as_saved_by_jupyterlab(stored))
    code.write_text('import os\nx   = {"a":1 }\n')
    large.write_bytes(bytes(22 * MIB))
    table.write_text("accuracy\n71\n")
    (table.parent.parent / "SHA256SUMS").write_text(
        f"{sha256(b'accuracy' + bytes([10]) + b'70' + bytes([10])).hexdigest()}  tables/a.csv\n"
    )
    git("add", "--all")

    refused = git("commit", "--message", "all at once")
    told = refused.stdout + refused.stderr
    assert refused.returncode == 1
    assert notebook.read_text() == stored
    assert code.read_text() == 'x = {"a": 1}\n'
    assert "22 MiB or more; keep it out of git: large.bin" in told
    assert "tables/a.csv: FAILED" in told
    assert git("log").returncode != 0, "nothing was committed"

    large.write_bytes(bytes(22 * MIB - 1))
    table.write_text("accuracy\n70\n")
    git("add", "--all")
    accepted = git("commit", "--message", "mended")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert (accepted.stdout + accepted.stderr).count("Passed") == 5
