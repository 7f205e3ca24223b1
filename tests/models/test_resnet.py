"""ResNet-18."""

import functools

import pytest
import torch
import torchvision
from torch import nn

from fedleak.models import ResNet18
from tests.cases import CLASSES, pictures


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet_computes_what_torchvisions_does(norm: str) -> None:
    own = ResNet18(input_shape=(3, 16, 16), num_classes=CLASSES, norm=norm)
    layer = None if norm == "batch" else functools.partial(nn.GroupNorm, 32)
    twin = torchvision.models.resnet18(norm_layer=layer, num_classes=CLASSES)
    twin.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    twin.maxpool = nn.Identity()
    twin.load_state_dict({
        n.removeprefix("features.").replace("classifier.", "fc."): value
        for n, value in own.state_dict().items()
    })  # fmt: skip
    images = pictures(3, (3, 16, 16)).float()
    assert torch.equal(own(images), twin(images))
    assert torch.equal(own.eval()(images), twin.eval()(images))
