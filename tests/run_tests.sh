#!/bin/sh
# Runs every test, two files at a time; what `make test` calls once the programs are built. Arguments go to pytest
# (tests/run_tests.sh -n 0 -k oracle: one after the other).
set -eu
cd "$(dirname "$0")/.."
tests/venv.sh
exec build/venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests "$@"
