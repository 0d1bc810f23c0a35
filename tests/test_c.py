"""The C tests: each program prints `ok NAME` or `FAIL NAME ...` for each case, and each line counts."""

import compare
import pytest
from support import C_TESTS, judge


@pytest.mark.parametrize("program", C_TESTS)
def test_program(program, subtests):
    judge([compare.BUILD / program], subtests)
