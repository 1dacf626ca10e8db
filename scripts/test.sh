#!/usr/bin/env bash
# Install everything that is needed into an environment of its own, then lint, type-check and test.
# Arguments go to pytest: scripts/test.sh -k header -x
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
[ $# -gt 0 ] || set -- -n 2

ruff check
ruff format --check
mypy
lint-imports
python -m pytest "$@"
