#!/bin/sh
# tests/venv.sh [FOLDER [REQUIREMENTS]]: a Python for the tests with the packages that the file REQUIREMENTS lists
# (build/venv, tests/requirements.txt). Made once, and again whenever the list changes; no network is needed then.
set -eu
cd "$(dirname "$0")/.."
venv=${1:-build/venv}
list=${2:-tests/requirements.txt}

if ! cmp -s "$list" "$venv/requirements.txt"; then
    echo "making $venv"
    rm -rf "$venv"
    python3 -m venv "$venv" || { echo "tests: python3 with its venv module is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
    # Python compiles a module when it is first imported. To compile all of them now takes half a minute.
    "$venv/bin/pip" install -q --no-compile --disable-pip-version-check -r "$list" ||
        { echo "tests: pip could not install $list; it needs Python 3.10 and, once, the network" >&2; exit 1; }
    cp "$list" "$venv/requirements.txt" # last: a venv that is not finished is made again
fi
