#!/usr/bin/env bash
# Set up as run_all.sh does, then run the tests; arguments go to pytest.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/workflow/environment.sh"
cd "$here"
exec "$PYTHON" -m pytest "$@"
