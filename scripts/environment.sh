# shellcheck shell=bash
# Sourced by test.sh and demo.sh: activates a virtual environment with the package and what
# scripts/requirements-test.txt pins. Makes it on the first run, uses it again after that.
# PYTHON chooses the interpreter (default: python3).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-scripts
python=${PYTHON:-python3}

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python: not found; set PYTHON to Python 3.10 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail \
    "$("$python" --version 2>&1) is too old: set PYTHON to Python 3.10 or newer"

# The environment is as new as what it was made from, or it is made again.
wanted=$("$python" -c 'import sys; print(sys.version, sys.executable)'
    cat "$root/pyproject.toml" "$root/scripts/requirements-test.txt")
if [ ! -f "$venv/made-from" ] || [ "$(cat "$venv/made-from")" != "$wanted" ]; then
    echo "Installing into $venv (once; torch is large) ..."
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "$python -m venv failed (Debian: apt install python3-venv)"
    # torch alone first: everything after it then takes this build as it is.
    "$venv/bin/python" -m pip install --quiet torch==2.13.0
    "$venv/bin/python" -m pip install --quiet \
        --requirement "$root/scripts/requirements-test.txt" --editable "$root"
    printf '%s\n' "$wanted" >"$venv/made-from"
fi
PATH=$venv/bin:$PATH
unset PYTHONPATH PYTHONHOME
