#!/usr/bin/env bash
# Reproduce the study of one profile: ./run_all.sh [PROFILE] [--plan] [--check] [--force] [--cores N] [-- engine options]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/workflow/environment.sh"
exec "$PYTHON" -m pursuhint_lib run "$@"
