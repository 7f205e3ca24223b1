"""Check everything that a run needs before any file is written."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedleak.attacks import second_derivative
from fedleak.attacks.base import Attack, check_device
from fedleak.attacks.labels import refusal
from fedleak.build import (
    client_samples,
    knowledge_of,
    make_attacks,
    make_data,
    make_defenses,
    make_model,
    make_mods,
    make_server,
    public_samples,
    usual_samples,
)
from fedleak.config import BOTTLENECK, RunConfig
from fedleak.data import PrivateData
from fedleak.errors import BadInput, require
from fedleak.metrics import require_lpips_channels
from fedleak.runs.scoring import Scoring, make_scoring
from fedleak.servers.base import MaliciousServer
from fedleak.servers.exchanges import check_obeyed, craft
from fedleak.updates.knowledge import Knowledge, batch_loss
from fedleak.updates.private_model import private_copy
from fedleak.updates.update import InterceptedUpdate


@dataclass(frozen=True)
class Parts:
    """The objects of a run, made from its configuration.

    Args:
        data: the data set, loaded.
        models: variant of the run -> global model before the first round.
        attacks: the attacks, in order.
        scoring: how reconstructions are scored.
        server: the malicious server. If None, the server only listens.
    """

    data: PrivateData
    models: dict[str, nn.Module]
    attacks: list[Attack]
    scoring: Scoring
    server: MaliciousServer | None = None


def prepare(config: RunConfig, *, trains: bool = True) -> Parts:
    """Make and check everything that a run needs.

    Args:
        config: the run's configuration.
        trains: whether clients will train. Attacks on saved updates need neither defences nor mods.

    Raises:
        BadInput: if the configuration cannot work; no file has been written then.
    """
    check_device(config.device)
    attacks = make_attacks(config)
    for attack in attacks:
        reason = attack.refuses_device(config.device)
        require(reason is None, f"Expected settings of {attack.name} that fit, but {reason}.")
    defenses = make_defenses(config) if trains else []
    server = None
    if trains:
        make_mods(config)
        server = make_server(config)
        _check_server(config, server, attacks)
    data = make_data(config)
    config = config.with_clients(len(data.train_set))
    _check_recovery(config, data, client_samples(config, data))
    if config.metrics.lpips:
        require(
            data.kind == "images",
            f"Expected images for `metrics.lpips`, got {config.data_name}: leave it out.",
        )
        require_lpips_channels(data.input_shape[0])
    scoring = make_scoring(config, data)
    models = {variant: make_model(part, data) for variant, part in config.variants.items()}
    for variant, part in config.variants.items():
        check_model(models[variant], part, data)
        reason = None if server is None else server.refuses_model(models[variant])
        if server is not None and reason is not None:
            raise BadInput(
                f"Expected a model that {server.name} can attack, but {reason}: choose another "
                "`model` or `server`."
            )
        for defense in defenses:
            reason = defense.refuses_model(models[variant])
            require(
                reason is None,
                f"Expected a model that {defense.name} can defend, but {reason}: choose another "
                "`model` or other `defenses`"
                + (", or leave `baseline` out." if variant == "baseline" else "."),
            )
    if server is not None:
        _check_victims(config, data, server, models)
    if trains and any(getattr(attack, "family", "") == "optimisation-based" for attack in attacks):
        for model in models.values():
            refused = second_derivative.refusal(knowledge_of(config, data, model, labels=None))
            if refused is not None:
                raise BadInput(refused)
    for attack in attacks:
        reasons = [
            attack.refuses(knowledge_of(config, data, model, labels=None))
            for model in models.values()
        ]
        if None not in reasons:
            raise BadInput(
                f"Expected a model that {attack.name} can attack, but {reasons[0]}: "
                f"choose another `model` (with `model.{BOTTLENECK}` it draws noise) or other "
                "settings, or leave the attack out."
            )
    return Parts(data, models, attacks, scoring, server)


def _check_server(
    config: RunConfig, server: MaliciousServer | None, attacks: Sequence[Attack]
) -> None:
    """Check that a malicious server fits the run.

    Raises:
        BadInput: if an attack has its name, it takes more rounds than there are, or it sets entries
            of the training configuration that the clients ignore.
    """
    if server is None:
        return
    require(
        server.name not in [attack.name for attack in attacks],
        f"Expected `attacks` of other names than the server's, got {server.name} twice.",
    )
    rounds = config.victims.rounds or range(1, config.federation.rounds + 1)
    require(
        server.rounds <= len(rounds),
        f"Expected at least {server.rounds} rounds in which {server.name} attacks a client before "
        f"it reads, got {len(rounds)}: raise `federation.rounds`.",
    )
    check_obeyed(server.name, server.config_names(), config.federation.obeys)


def _check_victims(
    config: RunConfig, data: PrivateData, server: MaliciousServer, models: dict[str, nn.Module]
) -> None:
    """Check that a malicious server can make weights for its victims and read what they send.

    Raises:
        BadInput: if it can make none for clients of the usual size, or read no victim.
    """
    federation, victims = config.federation, config.victims
    sizes = [len(samples) for samples in client_samples(config, data)]
    own = [sizes[client] for client in victims.clients or range(len(sizes)) if client < len(sizes)]
    if federation.protocol == "fedsgd":
        own = [min(size, federation.batch_size) for size in own]
    clients = max(1, len(own)) if victims.aggregated else 1
    usual = clients * usual_samples(config, data)
    public = public_samples(config, data)

    def known(variant: str, samples: int) -> Knowledge:
        sent = dict(models[variant].state_dict())
        expected = InterceptedUpdate(
            1, victims.first, federation.protocol, samples, config.model_name, sent, {}, clients
        )
        return knowledge_of(config, data, models[variant], labels=None, update=expected)

    for variant, model in models.items():
        refused = server.refuses_training(known(variant, usual))
        if refused is None and own and not victims.aggregated:
            reasons = [server.refuses_training(known(variant, number)) for number in {*own}]
            refused = None if None in reasons else reasons[0]
        require(
            refused is None,
            f"Expected clients whose updates {server.name} can read, but {refused}: choose another "
            "`federation.protocol` or `server`.",
        )
        # Another one is asked, as it may keep something of what it has made.
        again = make_server(config)
        assert again is not None
        generator = torch.Generator().manual_seed(0)
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        craft(again, known(variant, usual), state, public=public, generator=generator)


def check_model(model: nn.Module, config: RunConfig, data: PrivateData) -> None:
    """Check that a model computes a loss on samples of a data set; its state is left unchanged.

    Raises:
        BadInput: if it fails on them; the message has both shapes if the model has an
            ``input_shape``.
    """
    batch = data.train_set.batch([0, 0])
    own = getattr(model, "input_shape", None)
    title = f"{data.kind} of shape {data.input_shape}"
    sentence = f"Expected a model for {title} ({config.data_name}), "
    if own is not None and tuple(own) != data.input_shape:
        raise BadInput(f"{sentence}got {config.model_name} for samples of shape {tuple(own)}.")
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            batch_loss(private_copy(model), batch)
    except (Exception, SystemExit) as error:  # of the user's own code
        if isinstance(error, BadInput):
            raise
        text = " ".join(str(error).split())
        if isinstance(error, SystemExit):
            text = f"its code called sys.exit({text})"
        raise BadInput(f"{sentence}but {config.model_name} fails on them: {text}") from error


def _check_recovery(config: RunConfig, data: PrivateData, samples: list[list[int]]) -> None:
    """Refuse a method of label recovery that works on no client's batch."""
    if config.victims.labels == "known" or data.num_classes == 1:
        return
    # A client that sends weights has used all its samples, so the smallest client counts.
    smallest = min(map(len, samples))
    count = config.federation.batch_size if config.federation.protocol == "fedsgd" else smallest
    method = config.victims.label_recovery
    reason = refusal(method, num_samples=count, num_classes=data.num_classes)
    require(reason is None, f"Expected `victims.labels` to fit the batches, but {reason}.")
