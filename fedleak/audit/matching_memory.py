"""Memory that gradient matching on an update takes, so that a large one is not begun."""

import math

import torch
from torch import Tensor

from fedleak.updates.knowledge import Knowledge
from fedleak.updates.private_model import private_copy

# The tensors of a backward pass through each local step, which is differentiated once more: so many
# times those that the steps' forward passes keep, and copies of the weights for each step.
OF_FORWARD, WEIGHTS_OF_A_STEP = 6, 3


def matching_bytes(facts: Knowledge) -> float:
    """Estimate of the memory in bytes for matching an update of several local steps.

    It is that of the tensors which autograd keeps for the loss of two samples, for all samples of
    all steps, and of the steps' weights.

    Args:
        facts: what is known of the client's training.

    Returns:
        The estimate; infinity where the loss of two samples that are 0 cannot be computed.
    """
    model = private_copy(facts.model)
    if facts.training is not None:
        model.train(facts.training)
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept = 0

    def keep(value: Tensor) -> Tensor:
        nonlocal kept
        # Autograd keeps weights too, once for all samples.
        if value.untyped_storage().data_ptr() not in own:
            kept += value.numel() * value.element_size()
        return value

    inputs = torch.zeros(2, *facts.input_shape)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            facts.loss(model, (inputs, facts.dummy_labels(2)))
    except Exception:  # of the app's own code
        return math.inf
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    passes = facts.total_steps / len(facts.local_batches)
    of_samples = kept / 2 * facts.num_samples * passes
    return OF_FORWARD * of_samples + WEIGHTS_OF_A_STEP * facts.total_steps * weights
