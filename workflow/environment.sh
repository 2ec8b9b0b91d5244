# Sourced by run_all.sh and run_tests.sh: sets PYTHON to an interpreter that has what the study needs.
#
# The active environment is used if it has everything; otherwise .venv is made from requirements.lock.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Packages are those of one environment, not of another one (module load) or the home folder. What else is not
# inherited is listed in pursuhint_lib/inherited.py.
unset PYTHONHOME PYTHONPATH
export PYTHONNOUSERSITE=1
# Containers often forbid to keep compiled files. Each of the study's processes would compile all that it imports anew, for
# ten seconds.
unset PYTHONDONTWRITEBYTECODE

# Does this interpreter have every package of pyproject.toml, and this checkout's library?
has_needed() {
    "$1" - "$root" 2>/dev/null <<'PYTHON'
import importlib.util, re, sys, tomllib
from importlib.metadata import version
from pathlib import Path

root = Path(sys.argv[1])
numbers = lambda text: [int(n) for n in re.findall(r"\d+", text)][:3]
for entry in tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]:
    name, relation, wanted = re.fullmatch(r"([A-Za-z0-9._-]+)(>=|==)(.+)", entry).groups()
    found = numbers(version(name))
    assert found >= numbers(wanted) if relation == ">=" else found == numbers(wanted)
sys.path = [entry for entry in sys.path if entry not in ("", str(Path.cwd()))]
assert Path(importlib.util.find_spec("pursuhint_lib").origin).is_relative_to(root)
PYTHON
}

find_python() {
    local candidate
    for candidate in "$root/.venv/bin/python" python python3; do
        if command -v "$candidate" >/dev/null && has_needed "$candidate"; then
            PYTHON="$(command -v "$candidate")"
            return 0
        fi
    done
    return 1
}

# The first python on the path that is new enough to make the environment with.
base_python() {
    local candidate
    for candidate in python3 python python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# Make .venv from the lock: by uv, the user's or the package index's, which takes a fraction of pip's time; by pip where uv fails.
set_up() {
    local python="$root/.venv/bin/python" uv=uv
    "$base" -m venv "$root/.venv" || return
    command -v uv || { "$python" -m pip install --disable-pip-version-check uv && uv="$root/.venv/bin/uv"; }
    local own=(--no-deps --no-build-isolation -e "$root")
    { "$uv" pip install --python "$python" -r "$root/requirements.lock" && "$uv" pip install --python "$python" "${own[@]}"; } ||
        { "$python" -m pip install --disable-pip-version-check -r "$root/requirements.lock" &&
            "$python" -m pip install --disable-pip-version-check "${own[@]}"; }
}

if ! find_python; then
    if ! base="$(base_python)"; then
        echo "error: no Python 3.11 or later found; install one, or activate an environment made from environment.yml" >&2
        exit 2
    fi
    folder="$root/work"
    log="$folder/setup.log"
    mkdir -p "$folder" || { echo "error: cannot write to $root; make it writable" >&2; exit 2; }
    echo "Setting up .venv from requirements.lock (once; some 6 GB, mostly PyTorch; one minute to a few) …"
    while sleep 10 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        echo "  $SECONDS s: $(du -sm "$root/.venv" | cut -f 1) MB"
    done &
    progress=$! made=0
    set_up >"$log" 2>&1 || made=$?
    kill "$progress"
    if [ "$made" != 0 ]; then
        echo "error: the set-up failed: $(grep -iE '^error' "$log" | tail -n 1); whole log: $log" >&2
        exit 2
    fi
    if ! find_python; then
        echo "error: .venv lacks something after the set-up; remove it and run this again (log: $log)" >&2
        exit 2
    fi
fi
