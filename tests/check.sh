#!/bin/sh
# The short tests, with numpy and pytest alone: kernels and threads, two model families beside the logits of
# transformers, the command line, sessions, the layout of the sources. `make check` calls it once the programs are
# built; with arguments it runs those tests instead. The interpreter's own packages serve, or build/venv-check.
set -eu
cd "$(dirname "$0")/.."
python=python3
if ! $python -c 'import numpy, pytest; assert int(pytest.__version__.split(".")[0]) >= 9' 2>/dev/null; then
    tests/venv.sh build/venv-check tests/requirements-check.txt
    python=build/venv-check/bin/python
fi
[ $# -gt 0 ] || set -- tests/test_c.py tests/test_oracle.py tests/test_cli.py tests/test_session.py \
    tests/test_system.py tests/test_layout.py -k "not (test_oracle and not (v2lite or glm52)) \
    and not (hostile or flipped_bit or killed_at_any_time or test_bench)" # the longest ones
exec $python -m pytest "$@"
