"""Folding BatchNorm into convolutions changes nothing but the rounding, and leaves alone what it
cannot fold.
"""

import pytest
import torch
from torch import nn

from pursuhint_lib.models import build_model
from pursuhint_lib.models.rewriting import folded
from pursuhint_lib.taps import LayerTap, candidate_points

NETWORKS = [
    "resnet20",
    "wrn_16_2",
    "vgg8",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "torchvision/resnet18",
    "torchvision/densenet121",
]


def settled(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """With BatchNorm numbers that are not the neutral ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    for _ in range(3):
        model.train()(images)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_answers_and_features_stay_what_they_are(name):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    model = settled(build_model(name, 10), images)
    points = candidate_points(model, images[:1])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    copy = folded(model, points)
    assert norms(copy) < norms(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    found = []
    for network in (model, copy):
        with LayerTap(network, points) as tap:
            found.append((network(images), tap.features))
    (answers, features), (again, features_again) = found
    torch.testing.assert_close(again, answers, rtol=1e-3, atol=1e-4 * float(answers.abs().max()))
    for point in points:
        torch.testing.assert_close(
            features_again[point], features[point], rtol=1e-3, atol=1e-4 * float(features[point].abs().max())
        )


def test_every_norm_of_a_plain_resnet_is_folded():
    assert norms(folded(build_model("resnet56", 10))) == 0


class Crossed(nn.Module):
    """Convolutions whose norm cannot be folded: read by others too, called twice, and after an activation;
    one that can.
    """

    def __init__(self):
        super().__init__()
        self.shared, self.twice, self.apart, self.plain = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x):
        a = self.shared(x)
        b = self.norms[0](a) + a
        c = self.norms[1](self.twice(b)) + self.twice(x)
        d = self.norms[2](torch.relu(self.apart(c)))
        return self.norms[3](self.plain(d))


@torch.no_grad()
def test_only_a_norm_that_alone_reads_a_convolution_is_folded():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    model = settled(Crossed(), images)
    copy = folded(model)
    assert [type(norm) for norm in copy.norms] == [nn.BatchNorm2d] * 3 + [nn.Identity]
    torch.testing.assert_close(copy(images), model(images))
    assert norms(folded(model, ["plain"])) == 4


def test_a_network_that_cannot_be_traced_is_copied_as_it_is():
    class Picky(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.mean() > -10 else x

    model = Picky(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train()
    copy = folded(model)
    assert norms(copy) == 1
    assert not copy.training
    assert model.training
