#!/bin/sh
# The tests' Python in build/venv: made once, and again whenever requirements.txt changes; with it in place no network is needed.
set -eu
cd "$(dirname "$0")/.."
venv=build/venv

if ! cmp -s tests/requirements.txt $venv/requirements.txt; then
    echo "making $venv"
    rm -rf $venv
    python3 -m venv $venv || { echo "tests: python3 with its venv module is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
    $venv/bin/pip install -q --disable-pip-version-check -r tests/requirements.txt ||
        { echo "tests: pip could not install tests/requirements.txt; it needs Python 3.10 and, once, the network" >&2; exit 1; }
    cp tests/requirements.txt $venv/requirements.txt # last: a venv that is not finished is made again
fi
