#!/usr/bin/env bash
# Show the whole job on a small real checkpoint: build it, expand it, prove the result, use it.
# Everything is made under demo/ and made anew by each run; nothing is downloaded but packages.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf demo
run python scripts/make_checkpoint.py demo/source --shape demo
run python -m blockexpand --src demo/source --out demo/expanded --new-layers 4 --position end
run python -m blockexpand verify demo/source demo/expanded --logits
run python scripts/compare_generation.py demo/source demo/expanded
