"""Soteria on models that call their layers in other ways than by one positional argument."""

import torch
from torch import Tensor, nn

from fedleak.defenses import Outgoing, Soteria, protect
from fedleak.defenses.soteria import feature_sensitivity


class ByKeyword(nn.Module):
    """Gives its classifier the features as ``classifier(input=features)``."""

    def __init__(self, *, keyword: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.classifier = nn.Linear(6, 5), nn.Linear(5, 3)
        self._keyword = keyword

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.stem(inputs.flatten(1)).tanh()
        return self.classifier(input=features) if self._keyword else self.classifier(features)


def test_a_classifier_called_by_keyword_has_the_same_sensitivity_and_protection() -> None:
    inputs = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2])
    models = [ByKeyword(keyword=keyword) for keyword in (False, True)]
    positional, keyword = (feature_sensitivity(model, "classifier", inputs) for model in models)
    assert torch.equal(positional, keyword)
    assert bool((keyword > 0).all())
    update = {name: torch.ones_like(value) for name, value in models[1].named_parameters()}
    outgoing = Outgoing(update, models[1], batch=(inputs, labels))
    sent, _ = protect([Soteria(ratio=0.4)], outgoing, seed=0, memory={})
    hidden = keyword.sum(dim=0).argsort(descending=True)[:2]
    expected = torch.ones(3, 5)
    expected[:, hidden] = 0
    assert torch.equal(sent["classifier.weight"], expected)
