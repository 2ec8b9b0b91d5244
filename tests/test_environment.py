"""pyproject.toml, environment.yml and requirements.lock name the same packages."""

import re
import tomllib

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
