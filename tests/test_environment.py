"""pyproject.toml, environment.yml and requirements.lock name the same packages."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from pursuhint_lib.paths import ROOT

# conda's names where they differ from PyPI's.
CONDA = {"torch": "pytorch", "snakemake": "snakemake-minimal"}


def pyproject() -> dict[str, tuple[str, str]]:
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return {
        m[1]: (m[2], m[3]) for m in (re.fullmatch(r"([a-z0-9-]+)(>=|==)(.+)", entry) for entry in entries)
    }


def locked() -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line).groups()
            versions.setdefault(name.lower(), set()).add(version)
    return versions


def numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)][:3]


def test_conda_environment_names_the_same_packages_and_versions():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {e for e in entries if isinstance(e, str)} - {"pip", "python>=3.11"}
    assert conda == {
        f"{CONDA.get(name, name)}{relation}{version}" for name, (relation, version) in pyproject().items()
    }


def test_the_lock_has_every_package_in_a_version_that_fits():
    pins = locked()
    for name, (relation, wanted) in pyproject().items():
        assert name in pins, f"{name} is not in requirements.lock"
        for pinned in pins[name]:
            assert numbers(pinned) >= numbers(wanted) if relation == ">=" else pinned == wanted, name


def test_the_lock_pins_every_line_and_names_no_place():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+( ; .+)?", line), line


def test_the_workflow_engine_is_pinned_exactly():
    assert pyproject()["snakemake"][0] == "=="


# A python that has what is needed once something is installed, and writes down what it is asked for.
PYTHON = """#!/bin/sh
echo "python $*" >>"$LOG"
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") touch "$ROOT/installed" ;;
"- $ROOT") test -e "$ROOT/installed" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >>"$LOG"
%s
"""


@pytest.mark.parametrize(("uv", "by"), [('touch "$ROOT/installed"', "uv"), ("exit 1", "python")])
def test_the_environment_is_made_by_uv_or_else_by_pip_from_the_same_lock(uv, by, tmp_path):
    for name, text in (("python3", PYTHON), ("python", PYTHON), ("uv", UV % uv)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "workflow").mkdir()
    shutil.copy(ROOT / "workflow" / "environment.sh", tmp_path / "workflow")
    log = tmp_path / "log"
    told = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "LOG": str(log), "ROOT": str(tmp_path)}
    script = f'set -euo pipefail; source "{tmp_path}/workflow/environment.sh"; echo "by $PYTHON"'
    for _ in range(2):
        done = subprocess.run(["bash", "-c", script], env=told, capture_output=True, text=True, timeout=60)
        assert done.stdout.endswith(f"by {tmp_path}/.venv/bin/python\n"), done.stdout + done.stderr
    asked = [line for line in log.read_text().splitlines() if "install" in line]
    mine = [line for line in asked if line.startswith(by)]
    ends = [["-r", f"{tmp_path}/requirements.lock"], ["-e", str(tmp_path)]]
    assert [line.split()[-2:] for line in mine] == ends
    assert asked[-2:] == mine
