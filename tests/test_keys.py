"""The table of the YAML's keys: every key of every group has its default and its meaning."""

from dataclasses import MISSING, fields

import pytest

from pursuhint_lib.settings import Data, Pair, Profile, Schedule, Tuning, Weights
from pursuhint_lib.study.publish.catalogue import keys, meanings

GROUPS = [Profile, Data, Schedule, Pair, Weights, Tuning]


@pytest.mark.parametrize("settings", GROUPS)
def test_every_key_has_a_row_with_its_meaning(settings):
    rows = [line.split("|")[1:4] for line in keys().splitlines() if line.startswith("| `")]
    for field in fields(settings):
        meaning = meanings(settings)[field.name]
        assert len(meaning) > 5
        found = [row for row in rows if row[0].strip() == f"`{field.name}`" and row[2].strip() == meaning]
        assert len(found) == 1, field.name
        must = field.default is MISSING and field.default_factory is MISSING
        assert (found[0][1].strip() == "must be given") == must


def test_names_before_one_colon_share_a_meaning_and_a_colon_inside_begins_no_name():
    class Settings:
        """Something.

        **Arguments:**

        - ``one``, ``two``: a number, ``a`` or ``b``: whatever
          it is. ``three``: the ``last``.
        """

    both = "a number, `a` or `b`: whatever it is"
    assert meanings(Settings) == {"one": both, "two": both, "three": "the `last`"}
