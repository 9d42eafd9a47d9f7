"""Numbers in tables."""

import pytest

from seerkit.io.tables import apart_from


@pytest.mark.parametrize(
    ("bound", "value", "told"),
    [
        (0.97, 0.9696, "0.9696"),  # as 0.970 it would seem to reach what it does not
        (0.97, 0.9704, "0.9704"),
        (0.97, 0.97, "0.970"),
        (0.97, 0.950, "0.950"),
        (2.0, 1.99999999999999999, "2.000"),
    ],
)
def test_a_value_is_told_apart_from_what_it_is_judged_by(bound, value, told):
    assert apart_from(bound, value, 3) == told
