"""``summary.json``: the status of a run and the means of its results."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.errors import require
from fedleak.runs.folder import Row, RunFolder
from fedleak.runs.results import COLUMNS, columns_of, is_unsupported, read_rows
from fedleak.runs.scoring import EXTRA_COLUMNS
from fedleak.runs.text_files import is_count, is_number, parse_json, read_text, write_whole
from fedleak.servers.files import reading_facts
from fedleak.updates.files import short, update_files

MEANS = ("mse", "psnr", "ssim", "success", "seconds")
GUESS = "_of_guess"
"""End of the name of a guess's score."""
MAX_ROUNDS = 10
"""Number of rounds that a sentence names."""
Status = Literal["running", "interrupted", "failed", "complete"]


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means of the results: an entry for every attack on every model, in the order of the rows.

    Args:
        rows: rows of results.csv.

    Returns:
        Entries with attack, defense, model, dataset, n (number of samples), the means of mse, psnr,
        ssim, success (as asr) and seconds, and of the extra columns that rows have, and unsupported
        (number of samples that the update does not support). A mean is None if no row has a value,
        or if the mean is not finite.
    """
    means = (*MEANS, *columns_of(rows)[len(COLUMNS) :])
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("attack", "defense", "model", "dataset"))
        groups.setdefault(key, []).append(row)
    entries = []
    for (attack, defense, model, dataset), members in groups.items():
        entry: dict[str, Any] = {
            "attack": attack, "defense": defense, "model": model, "dataset": dataset,
            "n": len(members),
        }  # fmt: skip
        for name in means:
            values = [row[name] for row in members if row.get(name) not in (None, "")]
            entry[name if name != "success" else "asr"] = _mean(values)
        entry["unsupported"] = sum(map(is_unsupported, members))
        entries.append(entry)
    return entries


def summarise_rounds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means of the results by round, since leakage changes as the model is trained.

    Args:
        rows: rows of results.csv.

    Returns:
        The entries of :func:`summarise`, each with its round, ordered by attack; empty if only one
        round was attacked.
    """
    rounds = sorted({row["round"] for row in rows})
    if len(rounds) < 2:
        return []
    entries = [
        {"round": round_} | entry
        for round_ in rounds
        for entry in summarise([row for row in rows if row["round"] == round_])
    ]
    order = [(entry["attack"], entry["model"]) for entry in summarise(rows)]
    return sorted(entries, key=lambda entry: order.index((entry["attack"], entry["model"])))


def data_facts(config: RunConfig, data: PrivateData) -> dict[str, Any]:
    """The properties of a data set that are needed to read a run without loading the data.

    Args:
        config: the run's configuration.
        data: its data set.

    Returns:
        Name, kind, input_shape, classes, and mean and std of each channel on the scale [0, 1].
    """
    return {
        "name": config.data_name,
        "kind": data.kind,
        "input_shape": list(data.input_shape),
        "classes": data.num_classes,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def write_summary(
    folder: RunFolder,
    config: RunConfig,
    status: Status,
    federation: dict[str, Any],
    data: dict[str, Any],
    *,
    privacy: Sequence[Mapping[str, Any]] = (),
    ceilings: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write summary.json from results.csv.

    Args:
        folder: the run's folder.
        config: its configuration.
        status: the run's status.
        federation: rounds, clients, failures, accuracy, and lost_rounds, diverged_round and ended,
            see :func:`federation_notes`.
        data: see :func:`data_facts`.
        privacy: what each federation has spent, see :meth:`fedleak.runs.spending.Spending.facts`.
        ceilings: what attacks can reach at best, see :func:`fedleak.runs.ceilings.ceiling_facts`.

    Returns:
        The contents of the file.
    """
    summary = {
        "status": status,
        "config_hash": config.hash,
        "data": data,
        "attacks": summarise(read_rows(folder.results)),
        "federation": federation,
    }
    if privacy:
        summary["privacy"] = list(privacy)
    if ceilings:
        summary["ceilings"] = list(ceilings)
    if config.server is not None:
        summary["server"] = server_facts(folder, config)
    write_whole(folder.summary, json.dumps(summary, indent=2) + "\n")
    return summary


def server_facts(folder: RunFolder, config: RunConfig) -> dict[str, Any]:
    """What a malicious server sent and read, from the files of a run.

    Args:
        folder: the run's folder.
        config: its configuration, with a server.

    Returns:
        ``threat_model`` in words; ``sent``, the number of messages that it changed; ``answered``,
        the number of those with an update; and ``readings``, an entry for each, with client,
        rounds, samples and what :func:`fedleak.runs.readings.score_reading` says.
    """
    variants = list(config.variants)
    files = [path for name in variants for path in update_files(folder.readings(name))]
    sent = [(name, path) for name in variants for path in update_files(folder.sent(name))]
    return {
        "threat_model": config.server_text,
        "sent": len(sent),
        "answered": sum((folder.updates(name) / path.name).is_file() for name, path in sent),
        "readings": [reading_facts(path) for path in files],
    }


def server_notes(server: Mapping[str, Any]) -> list[str]:
    """What a malicious server did, in sentences.

    Args:
        server: ``server`` of a summary.
    """
    number, answered = server["sent"], server["answered"]
    notes = [
        f"The server is a {server['threat_model']}: it changed {number} "
        f"message{'s' * (number != 1)}, of which {answered} {'was' if answered == 1 else 'were'} "
        "answered, and left the replies out of the global model."
    ]
    for entry in server["readings"]:
        rounds = ", ".join(map(str, entry["rounds"]))
        exact = entry.get("exact")
        parts = [f"{entry['certified']} certified"]
        parts += [f"{exact} with features that are exact"] if exact is not None else []
        parts += [f"{entry['success']} recognisable"] if entry.get("success") is not None else []
        score = next((n.removesuffix(GUESS) for n in entry if n.endswith(GUESS)), None)
        if score is not None and entry.get(score) is not None:
            guess = entry[score + GUESS]
            beside = "" if guess is None else f", of a guess {guess:.3g}"
            parts.append(f"mean {score} {entry[score]:.3g}{beside}")
        notes.append(
            f"Client {entry['client']}, round{'s' * (len(entry['rounds']) > 1)} {rounds}: it read "
            f"{entry['found']} of {entry['samples']} samples ({', '.join(parts)})."
        )
    return notes


def read_summary(path: Path) -> dict[str, Any]:
    """The contents of a summary.json.

    Args:
        path: the file.

    Returns:
        What :func:`write_summary` wrote: ``status``, ``attacks``, ``federation`` and ``data``
        (empty in runs of early versions, which did not record it, nor lost rounds), and, where the
        run has them, ``server``, ``privacy`` and ``ceilings``.

    Raises:
        BadInput: if the file is missing, is not JSON, or one of these is invalid.
    """
    summary = parse_json(read_text(path), str(path))
    require(
        isinstance(summary, dict),
        f"Expected a run's summary in {path}, got {short(summary)}.",
    )
    status = summary.get("status")
    require(
        isinstance(status, str) and status in get_args(Status),
        f"Expected `status` to be one of {', '.join(get_args(Status))} in {path}, got "
        f"{short(status)}.",
    )
    attacks = summary.get("attacks")
    require(
        isinstance(attacks, list) and all(map(_is_entry, attacks)),
        f"Expected `attacks` to be a list of means by attack and model in {path}, got "
        f"{short(attacks)}.",
    )
    federation = summary.get("federation")
    require(
        isinstance(federation, dict)
        and all(is_count(federation.get(name)) for name in ("rounds", "clients", "failures"))
        and _is_mean(federation.get("accuracy", math.nan)),
        f"Expected `federation` to hold the numbers rounds, clients, failures and accuracy in "
        f"{path}, got {short(federation)}.",
    )
    lost = federation.setdefault("lost_rounds", [])
    diverged = federation.setdefault("diverged_round", None)
    require(
        isinstance(lost, list)
        and all(is_count(round_, 1) for round_ in lost)
        and (diverged is None or is_count(diverged)),
        f"Expected `lost_rounds` and `diverged_round` to be numbers of rounds in {path}, got "
        f"{short(lost)} and {short(diverged)}.",
    )
    ended = federation.get("ended", "")
    require(isinstance(ended, str), f"Expected `ended` to be text in {path}, got {short(ended)}.")
    privacy = summary.get("privacy", [])
    require(
        isinstance(privacy, list) and all(map(is_spending, privacy)),
        f"Expected `privacy` to be a list of model, delta, budget, ended, spent and findings in "
        f"{path}, got {short(privacy)}.",
    )
    ceilings = summary.get("ceilings", [])
    require(
        isinstance(ceilings, list) and all(map(_is_ceiling, ceilings)),
        f"Expected `ceilings` to be a list of attack, model, n, psnr, ceiling and guess in {path}, "
        f"got {short(ceilings)}.",
    )
    server = summary.get("server")
    require(
        server is None or _is_server(server),
        f"Expected `server` to hold threat_model, sent, answered and readings in {path}, got "
        f"{short(server)}.",
    )
    data = summary.setdefault("data", {})
    require(
        isinstance(data, dict) and (not data or _is_data(data)),
        f"Expected `data` to hold name, kind, input_shape, classes, mean and std in {path}, got "
        f"{short(data)}.",
    )
    return summary  # type: ignore[no-any-return]


def federation_notes(federation: Mapping[str, Any]) -> list[str]:
    """What a reader of a run's results has to know of its federation, in sentences.

    Args:
        federation: ``federation`` of a summary: ``failures`` counts replies that were missing,
            errors or refused, in the rounds ``lost_rounds``; ``diverged_round`` is the first round
            after which the global model or its loss was not finite; ``ended`` says why it ended
            before its last round.
    """
    notes = [f"The federation ended. {federation['ended']}"] if federation.get("ended") else []
    failures, lost = federation["failures"], federation["lost_rounds"]
    if failures:
        names = ", ".join(map(str, lost[:MAX_ROUNDS])) + ", ..." * (len(lost) > MAX_ROUNDS)
        where = f" in round{'s' * (len(lost) > 1)} {names}" if lost else ""
        notes.append(
            f"{failures} repl{'y was' if failures == 1 else 'ies were'} lost{where}: the clients "
            "failed, or what they sent could not be used."
        )
    if federation["diverged_round"] is not None:
        notes.append(
            f"The training diverged in round {federation['diverged_round']}: the global model or "
            "its loss is not finite, and nothing follows from the rounds since."
        )
    return notes


def _is_data(data: dict[str, Any]) -> bool:
    """Whether this has the form of :func:`data_facts`."""
    texts = all(isinstance(data.get(name), str) for name in ("name", "kind"))
    lists = [data.get(name) for name in ("input_shape", "mean", "std")]
    if not (texts and is_count(data.get("classes"), 1) and all(isinstance(v, list) for v in lists)):
        return False
    shape, mean, std = (list(values or ()) for values in lists)
    return (
        all(is_count(side, 1) for side in shape)
        and all(is_number(value) for value in [*mean, *std])
        and len(mean) == len(std) > 0
        and all(value > 0 for value in std)
    )


def privacy_notes(privacy: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a run has spent of its clients' privacy, in sentences.

    Args:
        privacy: ``privacy`` of a summary.
    """
    notes = []
    for each in privacy:
        for spent in each["spent"]:
            worth = (
                f"epsilon {spent['epsilon']:.4g} at delta {spent['delta']:g}"
                if spent["epsilon"] is not None
                else f"no epsilon holds, as {spent['reason']}"
            )
            declared = spent["declared_epsilon"]
            said = "" if declared is None else f", where {declared:g} is declared"
            budget = "" if each["budget"] is None else f", of a budget of {each['budget']:g}"
            rounds = spent["rounds"]
            notes.append(
                f"Privacy of a {spent['unit']} on {each['model']} "
                f"({', '.join(spent['mechanisms'])}; {spent['adjacency']}, {spent['trust']}): "
                f"{worth}{said}{budget}, after {rounds} round{'s' * (rounds != 1)}."
            )
    return notes


def is_spending(entry: Any) -> bool:
    """Whether this has the form of :meth:`fedleak.runs.spending.Spending.facts`.

    Args:
        entry: a value of a file.
    """
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("model", "ended"))
        and is_number(entry.get("delta"))
        and _is_mean(entry.get("budget"))
        and all(isinstance(entry.get(name), list) for name in ("spent", "findings"))
        and all(isinstance(text, str) for text in entry["findings"])
        and all(map(_is_spent, entry["spent"]))
    )


def _is_spent(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and is_count(entry.get("rounds"), 1)
        and all(
            isinstance(entry.get(name), str)
            for name in ("unit", "adjacency", "trust", "accountant", "reason")
        )
        and isinstance(entry.get("mechanisms"), list)
        and all(isinstance(name, str) for name in entry["mechanisms"])
        and is_number(entry.get("delta"))
        and all(
            _is_mean(entry.get(name, math.nan))
            for name in ("epsilon", "declared_epsilon", "declared_delta")
        )
    )


def _is_ceiling(entry: Any) -> bool:
    """Whether this has the form of an entry of :func:`fedleak.runs.ceilings.ceiling_facts`."""
    numbers = ("psnr", "ceiling", "guess", "asr", "most_asr", "guess_asr")
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("attack", "model", "reason"))
        and is_count(entry.get("n"))
        and all(_is_mean(entry.get(name, math.nan)) for name in numbers)
        and all(
            (entry[one] is None) == (entry[other] is None)
            for one, other in (
                ("psnr", "ceiling"),
                ("ceiling", "guess"),
                ("most_asr", "guess_asr"),
            )
        )
    )


def _is_server(server: Any) -> bool:
    """Whether this has the form of :func:`server_facts`."""
    return (
        isinstance(server, dict)
        and isinstance(server.get("threat_model"), str)
        and is_count(server.get("sent"))
        and is_count(server.get("answered"))
        and isinstance(server.get("readings"), list)
        and all(map(_is_reading, server["readings"]))
    )


def _is_reading(entry: Any) -> bool:
    counts = ("client", "samples", "found", "certified")
    optional = ("matched", "success", "exact")
    return (
        isinstance(entry, dict)
        and all(is_count(entry.get(name)) for name in counts)
        and all(entry.get(name) is None or is_count(entry[name]) for name in optional)
        and isinstance(entry.get("rounds"), list)
        and bool(entry["rounds"])
        and all(is_count(round_, 1) for round_ in entry["rounds"])
        and all(
            _is_mean(entry[name]) and _is_mean(entry.get(name.removesuffix(GUESS)))
            for name in entry
            if name.endswith(GUESS)
        )
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    texts, means = ("attack", "defense", "model", "dataset"), ("mse", "psnr", "ssim", "asr")
    return (
        all(isinstance(entry.get(name), str) for name in texts)
        and is_count(entry.get("n"), 1)
        and is_count(entry.get("unsupported", 0))
        and all(_is_mean(entry.get(name, math.nan)) for name in (*means, "seconds"))
        and all(_is_mean(entry[name]) for name in EXTRA_COLUMNS if name in entry)
    )


def _is_mean(value: Any) -> bool:
    """Whether it is a number, or None for the mean of no values."""
    return value is None or is_number(value)


def _mean(values: Sequence[float]) -> float | None:
    """The mean; None if it is not finite, since JSON has neither NaN nor infinity."""
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None
