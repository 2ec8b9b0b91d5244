#!/usr/bin/env bash
# Set up as run_all.sh does, then run the tests: ./run_tests.sh [--all] [pytest's arguments]; --all runs those that take minutes too.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
unset CDPATH
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/workflow/environment.sh"
cd "$here"
chosen=(-m "not slow")
if [ "${1:-}" = --all ]; then
    shift
    chosen=()
fi
# Files of tests are shared out among two processes, as most tests use one core; in the order of tests/conftest.py, the longest first.
exec "$PYTHON" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder ${chosen[@]+"${chosen[@]}"} "$@"
