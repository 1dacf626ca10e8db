#!/usr/bin/env bash
# Show the whole job on a small real language model: expand it, prove that it says the same, train the
# new blocks, save them alone, put them on the model again, and take them out again.
# Everything is made under demo/. Packages are downloaded, and one of them carries the model; where it
# is not to be had, a random Mistral stands in for it.
set -euo pipefail
echo "installs its own environment (once), makes a model of 269 MB under demo/, and takes some minutes"
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

mkdir -p demo
rm -rf demo/expanded demo/trained demo/trained.training demo/blocks demo/again demo/base-again
if ! run python scripts/make_real_model.py demo/source; then
    echo "a random Mistral stands in for it: what it says is nonsense, but the same nonsense"
    rm -rf demo/source
    run python scripts/make_checkpoint.py demo/source --shape demo
fi
head -c 8000 tests/data/king_james.txt >demo/text.txt

run python -m blockexpand --src demo/source --out demo/expanded --new-layers 6 --position interleaved
run python -m blockexpand verify demo/source demo/expanded --logits
run python scripts/compare_generation.py demo/source demo/expanded
run python -m blockexpand train demo/expanded --text demo/text.txt --out demo/trained \
    --steps 12 --batch-size 2 --length 64
run python -m blockexpand diff demo/source demo/trained
run python -m blockexpand show demo/trained
run python -m blockexpand extract demo/trained --base demo/source --out demo/blocks
run python -m blockexpand apply demo/source demo/blocks --out demo/again
run python -m blockexpand diff demo/trained demo/again --quiet
run python -m blockexpand apply demo/source demo/blocks --out demo/base-again --scale 0
run python scripts/compare_generation.py demo/source demo/base-again

printf '\nnext: blockexpand suggest MODEL, then docs/training.md\n'
