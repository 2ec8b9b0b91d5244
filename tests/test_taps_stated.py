"""Hint layers that a network states itself, and networks in which none are found."""

import pytest
import torch
from torch import nn

from pursuhint_lib.models import build_model
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.taps import candidate_points, point_shapes, stage_ends

IMAGE = torch.zeros(1, 1, 4, 4)


class SmallBlock(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())


class Crossed(nn.Module):
    """Blocks are called in another order than they are registered and stated in, and one of them
    is left out.
    """

    hint_points = ("last", "first.0")

    def __init__(self):
        super().__init__()
        self.last, self.first, self.middle = SmallBlock(), SmallBlock(), SmallBlock()

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class TwinBlock(nn.Module):
    """A block that hands on more than its map."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.unit(x), x


class First(nn.Module):
    """The first of what it is given."""

    def forward(self, both):
        return both[0]


class Odd(nn.Module):
    """A module called twice, one never called, and one with two outputs."""

    def __init__(self):
        super().__init__()
        self.fine, self.twice, self.never, self.pair = SmallBlock(), SmallBlock(), SmallBlock(), TwinBlock()

    def forward(self, x):
        return self.pair(self.twice(self.twice(self.fine(x))))[0]


def test_stated_points_come_in_forward_order():
    assert candidate_points(Crossed(), IMAGE) == ("first.0", "last")
    assert stage_ends(Crossed(), IMAGE) == ("last",)
    assert [tuple(shape) for shape in point_shapes(Crossed(), IMAGE, ("first.0", "last"))] == [(1, 4, 4)] * 2


def test_they_may_be_a_property_and_take_the_place_of_the_blocks():
    model, image = build_model("resnet8x0.25", 10, 1), torch.zeros(1, 1, 8, 8)
    assert candidate_points(model, image) == ("layer1.0", "layer2.0", "layer3.0")

    class Later(type(model)):
        @property
        def hint_points(self):
            return [f"layer{stage}.0.bn1" for stage in (2, 3)]

    model.__class__ = Later
    assert candidate_points(model, image) == stage_ends(model, image) == ("layer2.0.bn1", "layer3.0.bn1")


@pytest.mark.parametrize("name", ["absent", "never", "twice", "pair", ""])
def test_a_stated_point_that_cannot_be_used_is_named(name):
    model = Odd()
    model.hint_points = ("fine", name)
    with pytest.raises(
        SettingsError,
        match=f"^hint layer '{name}' of Odd must be a module that is called once and gives one map$",
    ):
        candidate_points(model, IMAGE)


@pytest.mark.parametrize(
    ("model", "words", "points"),
    [
        (
            nn.Sequential(TwinBlock(), First()),
            "no sub-blocks found in Sequential: 0 and the like give no single map; ",
            ("0.unit",),
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
            "no sub-blocks found in Sequential: it has neither blocks nor convolutions; ",
            ("1",),
        ),
        # Branches side by side, and decoders.
        (
            nn.Sequential(SmallBlock(), nn.Upsample(scale_factor=2), SmallBlock()),
            "the sub-blocks of Sequential are no chain: 0 gives 4×4 and then 2 8×8; ",
            ("0", "1", "2"),
        ),
    ],
)
def test_a_network_in_which_none_are_found_may_state_its_own(model, words, points):
    for call in (candidate_points, stage_ends):
        with pytest.raises(SettingsError) as caught:
            call(model, IMAGE)
        assert str(caught.value).startswith(words)
        assert "hint_points of its class" in str(caught.value)
    model.hint_points = points
    assert candidate_points(model, IMAGE) == points
