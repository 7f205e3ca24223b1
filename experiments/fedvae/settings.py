"""NRA on FedVAE by default and with other settings, and IGA, on Last.fm and on made-up users.

    python experiments/fedvae/settings.py --output experiments/fedvae/results/settings.csv

Neither MovieLens 100K nor Steam 200k can be handed on; their made-up users have the numbers of
users and items of these and as uneven a distribution of items over users (lognormal) and of users
over items (Zipf); others are more even or more uneven. Rows are appended as they come, and what is
in the file is not computed again.
"""

import argparse
import csv
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedleak import IGA, NRA, Attack, FedVAE, GroundTruth, InterceptedUpdate, Knowledge
from fedleak.data import LastFM, MovieLens, RecommenderData, Steam
from fedleak.metrics import score_items
from fedleak.models.noise import record
from fedleak.updates.knowledge import batch_loss

COLUMNS = (
    "data", "setting", "user", "items", "precision", "recall", "f1", "exact", "ranked", "explained",
    "seconds",
)  # fmt: skip
# Users, items, median and spread (of the logarithm) of a user's items, and Zipf's exponent.
Shape = tuple[int, int, float, float, float]
MOVIELENS: Shape = (943, 1682, 65, 1.0, 0.9)
STEAM: Shape = (3757, 5155, 9, 1.2, 1.1)
# By name: the shape, and the seed of the made-up users.
MOVIELENS_LIKE: dict[str, tuple[Shape, int]] = {
    "movielens-like": (MOVIELENS, 0),
    "movielens-like, more even": ((943, 1682, 65, 0.8, 0.7), 2),
    "movielens-like, less even": ((943, 1682, 65, 1.6, 1.3), 3),
}
STEAM_LIKE: dict[str, tuple[Shape, int]] = {
    "steam-like": (STEAM, 1),
    "steam-like, more even": ((3757, 5155, 9, 0.8, 0.7), 4),
    "steam-like, less even": ((3757, 5155, 9, 1.6, 1.3), 5),
}

IGA_OF_THE_STUDY: dict[str, Any] = {
    "iterations": 600, "cost": "relative_error", "decay": False, "at_once": 8,
}  # fmt: skip
SETTINGS: dict[str, Attack] = {
    "default": NRA(at_once=8),
    "300 iterations": NRA(iterations=300, at_once=8),
    "cosine": NRA(cost="cosine", at_once=8),
    "normal start": NRA(start="normal", at_once=8),
    "iga": IGA(**IGA_OF_THE_STUDY),
    "iga, zeros": IGA(**IGA_OF_THE_STUDY, start="zeros"),
    "dropout 0.5": NRA(at_once=8),
}
# Of the model; without where a setting is not named.
DROPOUT = {"dropout 0.5": 0.5}
# Other settings than the default are tried on these alone.
MAIN = ("lastfm", "movielens-like", "steam-like")


def made_up(shape: Shape, seed: int) -> Iterator[tuple[int, int]]:
    """Pairs of user and item."""
    users, items, middle, spread, exponent = shape
    random = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, items + 1) ** exponent
    popularity /= popularity.sum()
    counts = np.exp(np.log(middle) + spread * random.standard_normal(users)).astype(int)
    for user, count in enumerate(counts.clip(5, items // 2)):
        for item in random.choice(items, size=count, replace=False, p=popularity):
            yield user, int(item)


def data_sets(scratch: Path) -> dict[str, RecommenderData]:
    """The data sets by name; the made-up ones are read by the classes of the real ones."""
    found: dict[str, RecommenderData] = {"lastfm": LastFM(path="lastfm_user_artists.dat")}
    films, games = scratch / "u.data", scratch / "steam-200k.csv"
    for name, (shape, seed) in MOVIELENS_LIKE.items():
        lines = (f"{user}\t{film}\t5\t0\n" for user, film in made_up(shape, seed))
        films.write_text("".join(lines), "utf-8")
        found[name] = MovieLens(path=str(films), held_out=100)
        found[name].setup()  # reads the file, which the next ones replace
    for name, (shape, seed) in STEAM_LIKE.items():
        lines = (f"{user},game {game},play,1.0,0\n" for user, game in made_up(shape, seed))
        games.write_text("".join(lines), "utf-8")
        found[name] = Steam(path=str(games))
        found[name].setup()
    return found


def victims(
    data: RecommenderData, number: int, dropout: float
) -> list[tuple[InterceptedUpdate, GroundTruth]]:
    """Users of an untrained FedVAE, as in study.yaml."""
    model = model_for(data, dropout)
    sent = {name: value.detach().clone() for name, value in model.state_dict().items()}
    chosen = np.linspace(0, len(data.train_set) - 1, number).astype(int)
    made = []
    for client, position in enumerate(chosen.tolist()):
        inputs, labels = data.train_set.batch([position])
        torch.manual_seed(1000 + client)
        with record(model) as notes:
            loss = batch_loss(model, (inputs, labels))
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        names = [name for name, _ in model.named_parameters()]
        received = dict(zip(names, gradient, strict=True))
        noise = {name: values[0] for name, values in notes.items() if values}
        update = InterceptedUpdate(1, client, "fedsgd", 1, "fedvae", sent, received)
        made.append((update, GroundTruth(inputs, labels, noise)))
    return made


def model_for(data: RecommenderData, dropout: float) -> FedVAE:
    """The untrained model, the same every time."""
    torch.manual_seed(0)
    return FedVAE(input_shape=data.input_shape, dropout=dropout)


def measure(output: Path, users: int, chosen: list[str]) -> None:
    """Attack the users of every data set with every setting that is not in the file."""
    done: set[tuple[str, str]] = set()
    if output.exists():
        with output.open(newline="", encoding="utf-8") as file:
            done = {(row["data"], row["setting"]) for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in data_sets(Path(scratch)).items():
            wanted = [
                setting for setting in chosen
                if (name, setting) not in done and (name in MAIN or setting == "default")
            ]  # fmt: skip
            for setting in wanted:
                dropout = DROPOUT.get(setting, 0.0)
                made, model = victims(data, users, dropout), model_for(data, dropout)
                knowledge = Knowledge(
                    model, data.input_shape, 1, num_samples=1,
                    labels=torch.zeros(1, dtype=torch.long), value_range=data.value_range,
                )  # fmt: skip
                found = SETTINGS[setting]([update for update, _ in made], knowledge)
                rows = []
                for user, ((_, truth), result) in enumerate(zip(made, found, strict=True)):
                    (score,) = score_items(truth, result)
                    rows.append(
                        {
                            "data": name, "setting": setting, "user": user,
                            "items": int(truth.inputs.sum()),
                            "precision": f"{score.precision:.6f}", "recall": f"{score.recall:.6f}",
                            "f1": f"{score.f1:.6f}", "exact": int(score.exact),
                            "ranked": f"{ranked(truth.inputs, result.inputs):.6f}",
                            "explained": f"{result.explained:.6f}",
                            "seconds": f"{result.seconds:.1f}",
                        }
                    )  # fmt: skip
                append(output, rows)
                means = [float(row["f1"]) for row in rows]
                exact = sum(int(row["exact"]) for row in rows)
                print(
                    f"{name}, {setting}: F1 {statistics.fmean(means):.4f} (lowest "
                    f"{min(means):.4f}), exact {exact} of {len(rows)}",
                    flush=True,
                )


def ranked(truth: torch.Tensor, found: torch.Tensor) -> float:
    """Share of a user's n items among the n highest values, which needs no threshold."""
    has = truth.flatten() >= 0.5
    return float(has[found.flatten().topk(int(has.sum())).indices].float().mean())


def append(output: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows; a new file gets a header."""
    new = not output.exists()
    with output.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--setting", action="append", choices=SETTINGS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(arguments.output, arguments.users, arguments.setting or list(SETTINGS))
