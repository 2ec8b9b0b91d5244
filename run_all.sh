#!/usr/bin/env bash
# Reproduce the study of one profile: ./run_all.sh [PROFILE] [--plan] [--check] [--force] [--cores N] [-- engine options]
# Also where it is started as `sh run_all.sh`.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
unset CDPATH
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/workflow/environment.sh"
exec "$PYTHON" -m pursuhint_lib run "$@"
