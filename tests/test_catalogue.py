"""The page of methods and networks is that of the registries."""

from pursuhint_lib.distillers import DISTILLERS
from pursuhint_lib.models import MODELS
from pursuhint_lib.paths import ROOT
from pursuhint_lib.study.publish.catalogue import catalogue, methods_table, networks_table


def test_the_committed_page_is_up_to_date():
    assert (ROOT / "docs" / "catalogue.md").read_text() == catalogue(), "run python -m pursuhint_lib docs"


def test_every_entry_has_a_row_with_its_source():
    methods, networks = methods_table(), networks_table()
    assert list(methods["method"]) == [f"`{name}`" for name in DISTILLERS]
    assert list(networks["network"]) == [f"`{name}`" for name in MODELS]
    assert methods["source"].str.contains(r"\d{4}|no distillation").all()
    dated = networks["source"].str.contains(r"\(\d{4}\)")
    assert list(networks["network"][~dated]) == [], "a file begins with paper and (year)"
    trained = methods.set_index("method")["trains parts"]
    assert trained["`fitnet`"] == "yes"
    assert trained["`at`"] == trained["`kd`"] == ""
    assert networks.set_index("network").loc[
        "`wrn_40_2`", ["parameters", "sub-blocks", "stages"]
    ].tolist() == [2_255_156, 18, 3]
