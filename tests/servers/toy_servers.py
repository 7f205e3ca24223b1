"""Small malicious servers for the tests of what surrounds them."""

from dataclasses import dataclass

import torch
from torch import nn

from fedleak.errors import BadInput
from fedleak.servers import Crafted, MaliciousServer, Reading


def first_linear(model: nn.Module) -> str:
    """The path of a model's first linear layer."""
    return next(name for name, part in model.named_modules() if isinstance(part, nn.Linear))


@dataclass(kw_only=True, eq=False, repr=False)
class FirstLayer(MaliciousServer):
    """Scales the last weights, and reads the mean input of each batch from the first layer.

    Of a batch of one sample the quotient of a row's gradient and its bias's is the sample (Phong et
    al., TIFS 2018, section 3). It reads as many samples as it was asked for rounds.

    Args:
        factor: factor on every weight that is sent.
        rounds: rounds before it reads.
        rate: learning rate that it sets. If None, none.
        copies: number of times that it reports each sample.
        features: whether it says that it reads features.
    """

    factor: float = 0.5
    rounds: int = 1
    rate: float | None = None
    copies: int = 1
    features: bool = False

    name = "first_layer"
    paper = "Phong et al., TIFS 2018"
    threat_model = "malicious server that chooses parameters"
    changes = frozenset({"parameters"})
    needs = "a linear layer with bias first"

    def craft(self, knowledge, *, public, generator, earlier=()):
        """See :meth:`MaliciousServer.craft`."""
        if len(earlier) >= self.rounds:
            raise AssertionError("it should have read by now")
        assert knowledge.labels is None
        self.public = public
        state = knowledge.model.state_dict()
        weights = {
            name: self.factor * value if value.is_floating_point() else value.clone()
            for name, value in state.items()
        }
        config = {} if self.rate is None else {"lr": self.rate}
        return Crafted(weights, config, {"number": torch.tensor([len(earlier)])})

    def read(self, knowledge, rounds, *, public, generator):
        """See :meth:`MaliciousServer.read`."""
        assert len(rounds) == self.rounds
        assert [int(crafted.memory["number"]) for crafted, _ in rounds] == list(range(self.rounds))
        found = []
        for crafted, update in rounds:
            path = first_linear(knowledge.model)
            if update.protocol == "fedsgd":
                change = update.received
            else:
                change = update.change([f"{path}.weight", f"{path}.bias"])
            if not all(torch.equal(update.sent[n], v) for n, v in crafted.weights.items()):
                raise BadInput("Expected the weights that were sent.")
            row = int(change[f"{path}.bias"].abs().argmax())
            sample = change[f"{path}.weight"][row] / change[f"{path}.bias"][row]
            found += [sample.float().reshape(knowledge.input_shape)] * self.copies
        inputs = torch.stack(found)
        return Reading(
            inputs=inputs,
            labels=torch.full((len(found),), -1),
            certified=torch.arange(len(found)) == 0,
            features=inputs.flatten(1) if self.features else torch.empty(len(found), 0),
            findings=(f"read from {len(rounds)} round(s)",),
        )

    def features_of(self, model, inputs):
        """See :meth:`MaliciousServer.features_of`."""
        return inputs.flatten(1) if self.features else None

    def refuses_model(self, model):
        """See :meth:`MaliciousServer.refuses_model`."""
        linear = any(isinstance(part, nn.Linear) for part in model.modules())
        return None if linear else "it has no linear layer"


@dataclass(kw_only=True, eq=False, repr=False)
class Nothing(FirstLayer):
    """Reads no sample at all."""

    name = "nothing"

    def read(self, knowledge, rounds, *, public, generator):
        """See :meth:`MaliciousServer.read`."""
        none = torch.empty(0, *knowledge.input_shape)
        return Reading(
            none, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.bool),
            torch.empty(0, 0), ("nothing was found",),
        )  # fmt: skip


@dataclass(kw_only=True, eq=False, repr=False)
class OnlyOnce(FirstLayer):
    """Can make something of one global model alone."""

    name = "only_once"

    def craft(self, knowledge, *, public, generator, earlier=()):
        """See :meth:`MaliciousServer.craft`."""
        if hasattr(self, "public"):
            raise BadInput("Expected a new model, got one that was trained.")
        return super().craft(knowledge, public=public, generator=generator, earlier=earlier)
