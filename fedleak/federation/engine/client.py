"""The client: a Flower ClientApp that trains and evaluates with Lightning."""

import copy
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType, MethodType
from typing import Any, cast

import pytorch_lightning as pl
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from fedleak.build import (
    build_model,
    client_samples,
    make_data,
    make_defenses,
    make_mods,
    under_orders,
)
from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.defenses import Defense, Outgoing, protect
from fedleak.errors import BadInput, require
from fedleak.federation import records
from fedleak.federation.engine.client_state import ClientStateFolder
from fedleak.federation.engine.linear_factors import linear_factors
from fedleak.federation.engine.shared_weights import received_weights, sent_weights
from fedleak.federation.engine.virtual_clients import client_number
from fedleak.federation.guard import GuardMod
from fedleak.federation.nodes import node_number, tell_number
from fedleak.models.lightning import lightning_of, quiet_trainer
from fedleak.models.noise import record
from fedleak.runtime.seeds import derive_seed
from fedleak.runtime.threads import cap_threads
from fedleak.updates.compression import Factors, encode
from fedleak.updates.files import Tensors, update_key
from fedleak.updates.truth import GroundTruth

GUARD_SAMPLES = 2048
"""Most of a client's samples with which a guard looks at a received model."""


@dataclass(frozen=True)
class TruthFolder:
    """Stores the victims' ground truth for scoring; it is not part of any message.

    Args:
        path: an existing folder that all workers can access.
    """

    path: Path

    def write(self, round_: int, client: int, truth: GroundTruth) -> None:
        """Write one client's ground truth of one round."""
        truth.save(self.path / f"{update_key(round_, client)}.safetensors")


def client_app(
    config: RunConfig,
    truth: TruthFolder | None = None,
    client_states: ClientStateFolder | None = None,
    *,
    deployed: bool = False,
    own_data: bool = False,
    seed: int | None = None,
) -> ClientApp:
    """The ClientApp of a configuration, for simulations and deployments.

    It answers ``query`` with the client's number, ``train`` with a gradient or weights and the
    training metrics, ``evaluate`` with the metrics on its share of the test samples.

    Args:
        config: the run's configuration, which is sent to the workers.
        truth: where to store the victims' ground truth. If None, as in a deployment, it is not
            stored.
        client_states: where the defences' state is kept between rounds. If None, it is kept in the
            client's context, which Flower keeps as long as the client's process runs.
        deployed: whether it is a node of a deployment. It then takes nothing but weights and
            settings from a message, has the number in its own configuration, and sends gradients
            as they are: a factor of one is the input of a layer.
        own_data: whether all training and test samples of the data set are this client's own.
            Otherwise it has its part of them.
        seed: seed of its random draws, at least 0. If None, that of the configuration, which the
            server knows: it could take the noise of a defence off again.
    """
    app = ClientApp()
    number = _number_of_node if deployed else client_number
    weights = sent_weights if deployed else received_weights

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        return tell_number(message, number(message, context))

    # Mods wrap the training only, since Flower's mods expect weights in every message.
    @app.train(mods=[_without_exit, *_mods(config, number, own_data)])
    def train(message: Message, context: Context) -> Message:
        client, round_ = number(message, context), _round(message)
        with _resource_limits(config):
            if client_states is None:
                client_state = _read_client_state(context)
            else:
                client_state = client_states.read(client)
            content = _train(
                config, weights(message), client, round_, truth, client_state,
                samples=_samples(config, client, own_data), compact=not deployed,
                seed=config.seed if seed is None else seed, entries=_entries(message),
            )  # fmt: skip
            if client_state and client_states is not None:
                client_states.write(round_, client, client_state)
            elif client_state:
                context.state[records.DEFENSES] = records.to_record(client_state)
        return Message(content, reply_to=message)

    @app.evaluate(mods=[_without_exit])
    def evaluate(message: Message, context: Context) -> Message:
        client, round_ = number(message, context), _round(message)
        with _resource_limits(config):
            data = _data(config)
            model = _model(config, weights(message))
            samples = len(data.test_set)
            # With fewer samples than clients, several clients share a sample.
            first, step = (0, 1) if own_data else (client % samples, config.federation.size)
            share = range(first, samples, step)
            seed = derive_seed(config.seed, round_, client)
            metrics = evaluate_model(model, Subset(data.test_set, list(share)), seed)
        content = RecordDict({records.METRICS: records.to_metrics(metrics, len(share))})
        return Message(content, reply_to=message)

    return app


def _mods(
    config: RunConfig, number: Callable[[Message, Context], int], own_data: bool
) -> list[Callable[..., Any]]:
    """The configuration's mods; a guard is given the run's model and each client's samples."""

    def model() -> nn.Module:
        return copy.deepcopy(_prototype(_key(config)))

    def samples(message: Message, context: Context) -> Tensor:
        data = _data(config)
        chosen = _samples(config, number(message, context), own_data)[:GUARD_SAMPLES]
        return torch.stack([data.train_set[position][0] for position in chosen])

    mods = make_mods(config)
    return [mod.of_run(model, samples) if isinstance(mod, GuardMod) else mod for mod in mods]


def _without_exit(
    message: Message, context: Context, call: Callable[[Message, Context], Message]
) -> Message:
    """A mod that makes an error of sys.exit, after which a worker is not started anew."""
    try:
        return call(message, context)
    except SystemExit as error:
        raise RuntimeError(f"its code called sys.exit({error.code!r:.60})") from error


def evaluate_model(
    model: pl.LightningModule,
    samples: Dataset[tuple[Tensor, Tensor]],
    seed: int,
) -> dict[str, float]:
    """Evaluate a model with its ``test_step`` (or, if it has none, its ``validation_step``).

    Args:
        model: the module; it is evaluated in eval mode.
        samples: the test samples.
        seed: seed of the model's random draws; torch's random state is restored afterwards.

    Returns:
        Metric by name; empty if the module has neither method.
    """
    lightning = lightning_of(model)
    overridden = {
        name: getattr(type(model), name) is not getattr(lightning.LightningModule, name)
        for name in ("test_step", "validation_step")
    }
    if not any(overridden.values()):
        return {}
    trainer = quiet_trainer(model)
    loader = DataLoader(samples, batch_size=256)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter("ignore")
        run = trainer.test if overridden["test_step"] else trainer.validate
        (metrics,) = run(model, dataloaders=loader, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


class _Capture:
    """A callback that records the first epoch's batches and the gradient of a single step.

    The gradient is that with which the optimiser would make its step: after the hooks of the module
    that clip it or add noise. The step itself is the server's.
    """

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self.inputs: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.gradient: Tensors = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.rate is not None:
            require(
                not trainer.lr_scheduler_configs,
                f"Expected {type(module).__name__} to have no schedule of its learning rate where "
                "clients take the rate from the server, got one: leave one of them out.",
            )
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.rate

        def step(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
            return self._record(module, optimizer, closure)

        if trainer.max_steps == 1:
            for optimizer in trainer.optimizers:
                # A method, as schedulers wrap it.
                vars(optimizer)["step"] = MethodType(step, optimizer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            if trainer.max_steps == 1:
                vars(optimizer).pop("step", None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 0:
            self.inputs.append(batch[0].detach().cpu().clone())
            self.labels.append(batch[1].detach().cpu().clone())

    def _record(
        self,
        module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
        closure: Callable[[], Any] | None = None,
    ) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        held = {id(value) for group in optimizer.param_groups for value in group["params"]}
        for name, value in module.named_parameters():
            if value.grad is None:
                self.gradient.setdefault(name, torch.zeros_like(value, device="cpu"))
            elif id(value) in held or name not in self.gradient:
                self.gradient[name] = value.grad.detach().cpu()
            if id(value) in held:
                value.grad = None  # frees its memory
        return loss


def _capture(model: pl.LightningModule, rate: float | None) -> Any:
    """A callback of the package of Lightning that the model comes from."""
    return type("Capture", (_Capture, lightning_of(model).Callback), {})(rate)


def _train(
    config: RunConfig,
    sent: Tensors,
    client: int,
    round_: int,
    truth: TruthFolder | None,
    client_state: Tensors,
    *,
    samples: Sequence[int],
    compact: bool,
    seed: int,
    entries: Mapping[str, Any],
) -> RecordDict:
    """Train on a client's samples; returns the reply and updates ``client_state`` in place."""
    told, rate = under_orders(config, entries)
    federation = told.federation
    data = _data(config)
    model = _model(config, sent)
    model.train(federation.mode == "train")
    pl.seed_everything(derive_seed(seed, round_, client), verbose=False)
    loader = DataLoader(
        Subset(data.train_set, samples), batch_size=federation.batch_size, shuffle=True
    )
    one_step = federation.protocol == "fedsgd"
    limit = {"max_steps": 1} if one_step else {"max_epochs": federation.local_epochs}
    capture = _capture(model, rate)
    factors: dict[str, Factors] = {}
    with record(model) as noise, ExitStack() as stack, warnings.catch_warnings():
        if one_step and compact:
            factors = stack.enter_context(linear_factors(model))
        warnings.simplefilter("ignore")
        trainer = quiet_trainer(model, callbacks=[capture], **limit)
        trainer.fit(model, train_dataloaders=loader)
    trainer.optimizers = []  # frees their moments, which the trainer would keep
    gradient, capture.gradient = capture.gradient, {}
    inputs, labels = torch.cat(capture.inputs), torch.cat(capture.labels)
    drawn = _noise_of_samples(noise, len(inputs), 1 if one_step else federation.local_epochs)
    if truth is not None and config.victims.includes(round_, client):
        truth.write(round_, client, GroundTruth(inputs, labels, drawn))
    scalars = {name: float(value) for name, value in trainer.callback_metrics.items()}
    owners = {id(value): name for name, value in model.named_parameters()}
    changed = {n: owners[id(v)] for n, v in model.named_parameters(remove_duplicate=False)}
    # A client that sends a gradient sends its buffers, but not its weights.
    state = {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if not (one_step and name in changed)
    }
    update = gradient if one_step else {name: state[name] - sent[name] for name in owners.values()}
    if config.defenses:
        model.load_state_dict(sent)
        # In a single step, the recorded noise belongs to the batch.
        outgoing = (
            Outgoing(update, model, (inputs, labels), drawn) if one_step
            else Outgoing(update, model, steps=trainer.global_step)
        )  # fmt: skip
        drawn_from = derive_seed(seed, round_, client, len(config.defenses))
        update, effect = protect(
            _defenses(_key(config)), outgoing, seed=drawn_from, memory=client_state
        )
        scalars |= effect
    # A tied weight is sent under each of its names, since the server does not know of the tie.
    update = {name: update[owner] for name, owner in changed.items()}
    metrics = records.to_metrics(scalars, len(inputs))
    if not one_step:
        if config.defenses:
            state |= {name: sent[name] + value for name, value in update.items()}
        return RecordDict({
            records.ARRAYS: records.to_record(state), records.METRICS: metrics
        })  # fmt: skip
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        records.GRADIENT: records.to_record(encode(update, factors)),
        records.METRICS: metrics,
    }
    buffers = {name: value for name, value in state.items() if name not in update}
    if buffers:
        content[records.BUFFERS] = records.to_record(buffers)
    return RecordDict(content)


def _noise_of_samples(noise: Mapping[str, list[Tensor]], samples: int, epochs: int) -> Tensors:
    """The noise that every slot drew during training, by sample.

    Returns:
        Slot -> noise ``(samples, ...)``, or ``(1, epochs, ...)`` for one sample in several epochs.
        Empty for several samples in several epochs, since their order differs between epochs.
    """
    if epochs == 1:
        found = {name: torch.cat(v).cpu() for name, v in noise.items() if v}
        complete = {name: len(noise[name]) == 1 or len(v) == samples for name, v in found.items()}
        return {name: value for name, value in found.items() if complete[name]}
    if samples > 1:
        return {}
    return {
        name: torch.stack(values, dim=1).cpu()
        for name, values in noise.items()
        if len(values) == epochs
    }


def _read_client_state(context: Context) -> Tensors:
    """The state of the client's defences after earlier rounds, from the client's context."""
    kept = context.state.array_records.get(records.DEFENSES)
    return {} if kept is None else records.to_tensors(kept)


def _number_of_node(_message: Message, context: Context) -> int:
    return node_number(context)


def _round(message: Message) -> int:
    return int(_entries(message)[records.ROUND])


def _entries(message: Message) -> Mapping[str, Any]:
    """The training configuration in a message."""
    return message.content.config_records[records.CONFIG]


def _samples(config: RunConfig, client: int, own_data: bool) -> Sequence[int]:
    """Positions of a client's samples in the training set."""
    size, batch = config.federation.size, config.federation.batch_size
    require(client < size, f"Expected the number of a client from 0 to {size - 1}, got {client}.")
    if not own_data:
        return _partition(_key(config))[client]
    found = len(_data(config).train_set)
    require(
        found >= batch,
        f"Expected a batch of `batch-size` {batch} in the client's own data, got {found} training "
        "samples: lower it.",
    )
    return range(found)


def _model(config: RunConfig, state: Tensors) -> pl.LightningModule:
    """A copy of the model that reuses the memory of the previous client's weights.

    Lightning's objects have reference cycles, so models with weights of their own would stay in
    memory until the garbage collector runs: gigabytes for large models.
    """
    prototype = _prototype(_key(config))
    own: dict[int, Any] = {
        id(value): nn.Parameter(value.detach(), value.requires_grad)
        for value in prototype.parameters()
        if type(value) is nn.Parameter
    }
    # Buffers that are not sent have their initial values in each client.
    own |= {id(v): v.detach() for name, v in prototype.named_buffers() if name in state}
    model = copy.deepcopy(prototype, own)
    model.load_state_dict(state)
    return model


# A worker serves many clients, so data, model and defences are cached. Configurations contain
# dictionaries and are not hashable, so the caches' keys are their hashes.
_configs: dict[str, RunConfig] = {}


def _key(config: RunConfig) -> str:
    return _configs.setdefault(config.hash, config).hash


def _data(config: RunConfig) -> PrivateData:
    return _cached_data(_key(config))


@lru_cache(maxsize=1)
def _cached_data(key: str) -> PrivateData:
    return make_data(_configs[key])


@lru_cache(maxsize=1)
def _prototype(key: str) -> pl.LightningModule:
    """The model, cached as initialising it takes long; its weights are those of the last client."""
    return cast(pl.LightningModule, build_model(_configs[key], _cached_data(key)))


@lru_cache(maxsize=1)
def _defenses(key: str) -> list[Defense]:
    return make_defenses(_configs[key])


@lru_cache(maxsize=1)
def _partition(key: str) -> list[list[int]]:
    return client_samples(_configs[key], _cached_data(key))


@contextmanager
def _resource_limits(config: RunConfig) -> Iterator[None]:
    """Within the block, limit the client's cores and its time."""
    cap_threads(config.federation.cpus_per_client)
    try:
        with _time_limit(config.federation.client_timeout):
            yield
    except BadInput as error:
        # Flower reports only the text.
        raise RuntimeError(str(error)) from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError within the block after a number of seconds."""
    if threading.current_thread() is not threading.main_thread():
        # Signals are delivered to the main thread only; elsewhere the server's timeout applies.
        yield
        return

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the client did not finish within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
