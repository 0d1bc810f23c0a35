#!/bin/sh
# Runs every test; what `make test` calls once the programs are built. Arguments go to pytest
# (tests/run_tests.sh -k oracle).
set -eu
cd "$(dirname "$0")/.."
tests/venv.sh
exec build/venv/bin/python -m pytest tests "$@"
