"""Damages every kind of file of a small run, and reads it as ``report`` and ``attack`` read it.

Called with a folder to work in, a seed and a number of damages for each kind of file. It prints
JSON: for each kind how many damages were accepted and refused, and whatever else happened. Its
memory is limited: what would take more ends in an error here, and not in a machine without memory.
"""

import io
import json
import re
import resource
import shutil
import struct
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from flwr.serverapp.strategy import FedAdam
from PIL import Image
from safetensors.torch import load, save
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from fedleak.audit.config import AuditConfig
from fedleak.audit.findings import Findings
from fedleak.audit.folder import AuditFolder
from fedleak.audit.summary import AuditSummary
from fedleak.config import Federation, RunConfig
from fedleak.data.image_folder import ImageFolder
from fedleak.data.lastfm import LastFM
from fedleak.data.movielens import MovieLens
from fedleak.data.npz import Npz
from fedleak.data.steam import Steam
from fedleak.errors import BadInput
from fedleak.federation.engine.checkpoint import Outcome, read_outcome, restore, write_checkpoint
from fedleak.federation.engine.client_state import ClientStateFolder
from fedleak.models.mlp import SMLP
from fedleak.registry import Plugin
from fedleak.reporting.audit_report import write_audit_report
from fedleak.reporting.charts import read_scalars
from fedleak.reporting.report import write_report
from fedleak.runs.diagnostics import Diagnostics, append_diagnostics, read_diagnostics
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import append_rows, read_rows, repair_results
from fedleak.runs.summary import read_summary, write_summary
from fedleak.updates.compression import CompactTensors, encode
from fedleak.updates.files import update_files
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate, gradient_to_weights
from tests.audit.made_audit import made_audit
from tests.cases import client_gradient

MEMORY = 2**30
"""Bytes beyond what reading the undamaged files takes."""
SHAPE, CLASSES = (1, 8, 8), 4
Random = np.random.Generator
TABLES = (
    ("ratings.csv", ["userId,movieId,rating"], "{},{},4.5"),
    ("listens.dat", ["userID\tartistID\tweight"], "{}\t{}\t3"),
    ("artists.dat", ["id\tname"], "{1}\tArtist {0}"),
    ("games.csv", [], '{},"Game {}",play,2.5,0'),
)
Damage = Callable[[bytes, Random], bytes]

# ------------------------------------------------------------------------------ an undamaged run


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return SMLP(input_shape=SHAPE, num_classes=CLASSES, width=12)


def small_run(path: Path) -> None:
    """A run of one round, two clients and one attack, with each kind of file that a run has."""
    data = Plugin("fedleak.data.npz.Npz", {"path": "x.npz", "mean": [0.5], "std": [0.25]})
    model = small_model()
    config = RunConfig(
        data=data,
        model=Plugin("fedleak.models.mlp.SMLP", {"width": 12}),
        attacks=(Plugin("fedleak.attacks.iga.IGA", {"iterations": 10}),),
        output=str(path),
        federation=Federation(clients=2),
    )
    folder = RunFolder(path)
    folder.open(config, resume=False, overwrite=False)
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    rows = []
    for client in range(2):
        inputs, labels = torch.randn(1, *SHAPE).clamp(-2, 2), torch.tensor([client])
        gradient, noise = client_gradient(model, inputs, labels)
        names = list(gradient)
        factors = {names[0]: (gradient[names[1]], inputs.flatten())}
        gradient[names[2]] = gradient[names[2]] * (torch.rand(gradient[names[2]].shape) < 0.2)
        update = InterceptedUpdate(
            1, client, "fedsgd", 1, "smlp", sent, CompactTensors(encode(gradient, factors))
        )
        if client:
            weights = gradient_to_weights(sent, gradient, learning_rate=0.1)
            update = InterceptedUpdate(1, client, "fedavg", 1, "smlp", sent, weights)
        update.save(folder.updates())
        noise = {"slot": torch.randn(1, 3)}
        GroundTruth(inputs, labels, noise).save(folder.truth() / f"{update.key}.safetensors")
        rows.append({
            "round": 1, "client": client, "sample": 0, "attack": "iga", "defense": "none",
            "model": "smlp", "dataset": "x", "batch_size": 1, "mse": 0.5, "psnr": 3.0,
            "ssim": 0.25, "success": 0, "noise_mse": None, "cost": 0.125, "iterations": 7,
            "seconds": 2.0,
        })  # fmt: skip
        pixels = np.random.default_rng(client).integers(0, 256, SHAPE[1:], dtype=np.uint8)
        Image.fromarray(pixels).save(folder.reconstruction(rows[-1]))
        append_diagnostics(
            folder.diagnostics, Diagnostics("smlp", "iga", 1, client, ("one", "two"))
        )
    append_rows(folder.results, rows)
    federation = {"rounds": 1, "clients": 2, "failures": 0, "accuracy": 0.5}
    data = {
        "name": "x", "kind": "images", "input_shape": list(SHAPE), "classes": 2,
        "mean": [0.5] * SHAPE[0], "std": [0.25] * SHAPE[0],
    }  # fmt: skip
    write_summary(folder, config, "complete", federation, data)
    with SummaryWriter(str(folder.tensorboard)) as writer:
        for step in range(8):
            writer.add_scalar("smlp/iga/cost/r0001-c0000", 1 / (step + 1), step)
            writer.add_scalar("smlp/global/test/accuracy", step / 8, step)
    strategy = FedAdam()
    strategy.m_t = {name: value.numpy() for name, value in sent.items()}
    outcome = Outcome(1, 0, {0: {"accuracy": 0.1}, 1: {"accuracy": 0.5}})
    write_checkpoint(folder.checkpoint(), sent, strategy, outcome)
    ClientStateFolder(folder.updates() / "unfinished").write(1, 0, {"0/weight": torch.ones(2, 3)})


def small_recommender_run(path: Path) -> None:
    """What a report reads of a run on users' interactions."""
    folder = RunFolder(path)
    config = RunConfig(
        data=Plugin("fedleak.data.planted.PlantedGroups"),
        model=Plugin("fedleak.models.fedvae.FedVAE"),
        output=str(path),
        federation=Federation(clients=2),
    )
    folder.open(config, resume=False, overwrite=False)
    row = {
        "round": 1, "client": 0, "sample": 0, "attack": "analytic", "defense": "none",
        "model": "fedvae", "dataset": "planted_groups", "batch_size": 1, "mse": None, "psnr": None,
        "ssim": None, "success": 1, "noise_mse": None, "cost": 0.0, "iterations": 0, "seconds": 0.1,
        "precision": 1.0, "recall": 1.0, "f1": 1.0,
    }  # fmt: skip
    append_rows(folder.results, [row])
    lines = ["item,name,value,found,true", '3,"Blade, Runner",1,1,1', "17,Alien,0.9,1,0"]
    folder.reconstruction(row, ".csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def small_data(path: Path) -> None:
    """A data set of each kind of file."""
    path.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    np.savez_compressed(path / "set.npz", images=images, labels=np.arange(20) % CLASSES)
    for label in ("cat", "dog"):
        (path / "folder" / label).mkdir(parents=True)
        for number, pixels in enumerate(images[:10]):
            Image.fromarray(pixels).save(path / "folder" / label / f"{number}.png")
    pairs = [(user, (user + step) % 30) for user in range(12) for step in range(6)]
    for name, header, row in TABLES:
        lines = [row.format(user, item) for user, item in pairs]
        (path / name).write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")


# -------------------------------------------------------------------------------------- readers


def read_source(run: Path) -> None:
    """What ``fedleak attack SOURCE`` reads of a run."""
    folder, model = RunFolder(run), small_model()
    for path in update_files(folder.updates()):
        update = InterceptedUpdate.load(path)
        update.check(model)
        assert all(update.received[name].numel() for name in update.received)
        truth = folder.read_truth("", update.round, update.client)
        if truth is not None:
            truth.check(update.key, update.num_examples, SHAPE, CLASSES)
    if folder.summary.exists():
        read_summary(folder.summary)


def read_report(run: Path) -> None:
    """What ``fedleak report RUN`` reads and writes."""
    write_report(RunFolder(run)).unlink()


def read_audit(folder: Path) -> None:
    """What ``fedleak report FOLDER`` reads and writes of an audit."""
    write_audit_report(folder).unlink()


def read_findings(folder: Path) -> None:
    """What a resumed audit reads."""
    AuditConfig.load(folder / "config.yaml")
    files = AuditFolder(folder)
    Findings(files, AuditSummary.load(files.summary))


def read_results(run: Path) -> None:
    """What a resumed run and the tables of a terminal read."""
    folder = RunFolder(run)
    read_rows(folder.results)
    read_diagnostics(folder.diagnostics)
    read_summary(folder.summary)
    repair_results(folder.results)
    read_scalars(folder.tensorboard)


def read_state(run: Path) -> None:
    """What a resumed federation reads."""
    folder = RunFolder(run)
    read_outcome(folder.checkpoint(), 3)
    restore(folder.checkpoint(), FedAdam(), small_model().state_dict())
    ClientStateFolder(folder.updates() / "unfinished").read(0)


def read_data(path: Path) -> None:
    """What every command reads of the data."""
    Npz(path=str(path / "set.npz")).setup()
    ImageFolder(root=str(path / "folder"), test_fraction=0.3).setup()


def read_tables(path: Path) -> None:
    """What every command reads of users and their items."""
    listens, artists = str(path / "listens.dat"), str(path / "artists.dat")
    for data in (
        MovieLens(path=str(path / "ratings.csv"), held_out=2),
        LastFM(path=listens, artists=artists, held_out=2),
        Steam(path=str(path / "games.csv"), held_out=2),
    ):
        data.setup()
        assert len(data.item_names()) == data.input_shape[0]


# -------------------------------------------------------------------------------------- damages

NUMBERS = [
    "-1",
    "0",
    "",
    "nan",
    "inf",
    "1e400",
    "9" * 5000,
    "1.5",
    "٣",
    "1_0",
    " 1",
    "0x10",
    "True",
]
TEXTS = [
    "../../x", "/tmp/x", "a/b", "..", "a\nb", "a\0b", "x" * 200_000, '"', "'; --", "<script>", "é",
    "\u2028", "=1+1", "r0001-c0000",
]  # fmt: skip
VALUES: list[Any] = [
    None, [], {}, "", "text", -1, 0, 10**400, 1e308, 1.5, True, [[]], [1, 2], {"a": 1},
    float("nan"), float("-inf"), "1",
]  # fmt: skip
DTYPES = [
    torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64, torch.complex128, torch.int64, torch.int8, torch.float16, torch.float64,
]  # fmt: skip


def pick(random: Random, values: Any) -> Any:
    return values[int(random.integers(len(values)))]


def bytes_lost(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def bytes_flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        changed[int(random.integers(len(changed)))] = int(random.integers(256))
    return bytes(changed)


def bytes_moved(content: bytes, random: Random) -> bytes:
    begin, end, to = sorted(int(random.integers(len(content) + 1)) for _ in range(3))
    return content[:begin] + content[end:to] + content[begin:end] + content[to:] + content[:begin]


def emptied(content: bytes, random: Random) -> bytes:
    return pick(random, [b"", b"\0", b"\n", b"\xff" * 64, b"[" * 200_000, b"{}", b"null"])


ANY: list[Damage] = [bytes_lost, bytes_flipped, bytes_moved, emptied]


def header_of(content: bytes) -> dict[str, Any]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length])


def header_changed(content: bytes, random: Random) -> bytes:
    """A value of the texts in a safetensors header."""
    header = header_of(content).get("__metadata__", {})
    if header:
        name = pick(random, sorted(header))
        if random.random() < 0.2:
            del header[name]
        elif header[name].startswith("{"):
            header[name] = json_changed(header[name].encode(), random).decode()
        else:
            header[name] = pick(random, NUMBERS + TEXTS)
    return save(load(content), header)


def header_forged(content: bytes, random: Random) -> bytes:
    """Shape, type or place of a tensor in a safetensors header, which then belies the rest."""
    header = header_of(content)
    name = pick(random, sorted(set(header) - {"__metadata__"}))
    key = pick(random, ["shape", "dtype", "data_offsets"])
    header[name][key] = {
        "shape": pick(random, [[2**40], [0, 2**62], [0, 2**63], [-1], [], "x", [2**20, 2**20]]),
        "dtype": pick(random, ["F4", "F8_E8M0", "C64", "U64", "I128", 3, "F64"]),
        "data_offsets": pick(random, [[0, 2**40], [4, 0], [0], None, [0, 0]]),
    }[key]
    text = json.dumps(header).encode()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    return struct.pack("<Q", len(text)) + text + content[start:]


def tensor_changed(content: bytes, random: Random) -> bytes:
    """Type, shape, name or numbers of a tensor."""
    tensors = load(content)
    name = pick(random, sorted(tensors))
    value = tensors.pop(name)
    kind = int(random.integers(7))
    if kind == 0:
        value = value.to(pick(random, DTYPES))
    elif kind == 1:
        value = pick(random, [value.flatten(), value[None], value[:0] if value.dim() else value])
    elif kind == 2 and value.is_floating_point():
        value = torch.full_like(value, pick(random, [float("nan"), float("inf"), 1e38]))
    elif kind == 3:
        value = torch.full_like(value, pick(random, [0, 1, 100]))
    elif kind == 4:
        name = pick(random, [name + "..rows", name + "..shape", "..", "x", "noise/" + name, "a..b"])
    elif kind == 5 and not value.is_floating_point():
        value = torch.full_like(value, pick(random, [-1, 2**31 - 1, -(2**31)]))
    elif kind == 6:
        return save(tensors, header_of(content).get("__metadata__"))
    # Sizes that only the form of a compact gradient gives.
    if name.endswith("..shape") and random.random() < 0.7:
        value = pick(random, [
            torch.tensor([2**40, 2**40]), torch.tensor([-5, -5]), torch.tensor([2**35]),
            torch.tensor([0, 2**62]), torch.tensor([], dtype=torch.int64), torch.tensor([2.5]),
        ])  # fmt: skip
    if name.endswith(("..rows", "..columns")) and random.random() < 0.5:
        value = torch.zeros(2**17)
    tensors[name] = value.contiguous()
    return save(tensors, header_of(content).get("__metadata__"))


TENSORS: list[Damage] = [*ANY, header_changed, header_forged, tensor_changed, tensor_changed]


def cell_changed(content: bytes, random: Random) -> bytes:
    """A cell of a table, which is put in quotes or not."""
    lines = [line.split(",") for line in content.decode().splitlines()]
    line = pick(random, lines[1:])
    value = pick(random, NUMBERS + TEXTS)
    line[int(random.integers(len(line)))] = f'"{value}"' if random.random() < 0.5 else value
    return "\n".join(",".join(cells) for cells in lines).encode() + b"\n"


def word_changed(content: bytes, random: Random) -> bytes:
    """A word or a number of a text, whatever stands between them."""
    text = content.decode()
    word = pick(random, list(re.finditer(r"\w+", text)))
    return f"{text[: word.start()]}{pick(random, NUMBERS + TEXTS)}{text[word.end() :]}".encode()


def columns_changed(content: bytes, random: Random) -> bytes:
    lines = [line.split(",") for line in content.decode().splitlines()]
    place, kind = int(random.integers(len(lines[0]))), int(random.integers(4))
    for line in lines if kind < 3 else lines[-1:]:
        if kind == 0:
            del line[place % len(line)]
        elif kind == 1:
            line.insert(place, line[place % len(line)])
        else:
            line[place % len(line)] = "x" if line is lines[0] else line[place % len(line)]
    if kind == 3:
        lines[-1] = lines[-1][:-2]
    return "\n".join(",".join(cells) for cells in lines).encode() + b"\n"


def json_changed(content: bytes, random: Random) -> bytes:
    """A value somewhere in JSON, or one that is gone."""
    whole = json.loads(content)
    places = list(_places(whole))
    if not places:
        return content
    owner, key = pick(random, places)
    if random.random() < 0.2:
        del owner[key]
    elif random.random() < 0.1:
        owner[key] = "HERE"
        return json.dumps(whole).replace('"HERE"', "[" * 50_000 + "]" * 50_000).encode()
    else:
        owner[key] = pick(random, VALUES)
    return json.dumps(whole).replace(str(10**400), "1" * 6000).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys if isinstance(value, dict | list) else ():
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def line_changed(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    place = int(random.integers(len(lines) - 1))
    lines[place] = json_changed(lines[place], random)
    return b"\n".join(lines)


def another_picture(content: bytes, random: Random) -> bytes:
    """A whole picture of another size, kind or format."""
    size = pick(random, [(8, 8), (1, 1), (9, 9), (8, 4), (20_000, 20_000), (9_000, 9_000)])
    mode = pick(random, ["1", "L", "RGB", "P"] if size[0] < 100 else ["1"])
    file = io.BytesIO()
    Image.new(mode, size).save(file, pick(random, ["PNG", "GIF", "TIFF", "BMP"]))
    return file.getvalue()


def record_changed(content: bytes, random: Random) -> bytes:
    """A record of an event file, whose checksum holds."""
    records, at = [], 0
    while at < len(content):
        length = struct.unpack("<Q", content[at : at + 8])[0]
        records.append(content[at + 12 : at + 12 + length])
        at += 16 + length
    place = int(random.integers(len(records)))
    change = pick(random, [bytes_lost, bytes_flipped, bytes_moved])
    records[place] = change(records[place], random)
    found = b""
    for each in records:
        length = len(each) if random.random() < 0.95 else 2**50
        head = struct.pack("<Q", length)
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (head, each)]
        found += head + sums[0] + each + sums[1]
    return found


def array_changed(content: bytes, random: Random) -> bytes:
    """Type or shape of an array of an npz file."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    name = pick(random, sorted(arrays))
    value = arrays.pop(name)
    kind = int(random.integers(4))
    if kind == 0:
        value = value.astype(pick(random, ["f2", "f8", "c16", "u8", "i8", "?", "O", "U8", "M8[s]"]))
    elif kind == 1:
        value = pick(random, [value[:0], value[..., None], value.ravel(), value[0], value[:3]])
    elif kind == 2:
        value = np.full(value.shape, pick(random, [np.nan, np.inf, -1, 1e30]), "f4")
    elif value.ndim == 1:
        value = value.astype("i8") + pick(random, [-1, 10**12, 2**62])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays, **{pick(random, [name, name, "x"]): value})
    return file.getvalue()


def array_forged(content: bytes, random: Random) -> bytes:
    """The shape that an array of an npz file tells of itself."""
    shape = pick(random, [(2**40, 3), (20, 2**20, 2**20, 3), (20, 6, 5, -3), (20, 60_000, 60_000)])
    head, file = io.BytesIO(), io.BytesIO()
    kind = pick(random, ["|u1", "<f8", "<i8"])
    description = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, description)
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        forged = pick(random, old.namelist())
        for name in old.namelist():
            new.writestr(name, head.getvalue() if name == forged else old.read(name))
    return file.getvalue()


READS: dict[str, Callable[[Path], None]] = {
    "source": read_source, "report": read_report, "results": read_results, "state": read_state,
    "data": read_data, "tables": read_tables, "audit": read_audit,
    "findings": read_findings,
}  # fmt: skip
KINDS: dict[str, tuple[str, str, tuple[str, ...], list[Damage]]] = {
    "update": ("run", "updates/r0001-c0000.safetensors", ("source",), TENSORS),
    "weights": ("run", "updates/r0001-c0001.safetensors", ("source",), TENSORS),
    "global": ("run", "updates/r0001-global.safetensors", ("source",), TENSORS),
    "truth": ("run", "truth/r0001-c0000.safetensors", ("source", "report"), TENSORS),
    "results": (
        "run", "results.csv", ("report", "results"), [*ANY, cell_changed, cell_changed,
                                                      cell_changed, columns_changed],
    ),
    "summary": ("run", "summary.json", ("source", "report"), [*ANY, *[json_changed] * 4]),
    "diagnostics": ("run", "diagnostics.jsonl", ("report", "results"), [*ANY, *[line_changed] * 4]),
    "picture": (
        "run", "figures/victims/smlp-iga-r0001-c0000-0.png", ("report",), [*ANY, another_picture],
    ),
    "events": ("run", "tensorboard/events", ("report", "results"), [*ANY, *[record_changed] * 4]),
    "checkpoint": ("run", "updates/unfinished.safetensors", ("state",), TENSORS),
    "memory": ("run", "updates/unfinished/0/1.safetensors", ("state",), TENSORS),
    "audit": ("audit", "config.yaml", ("audit", "findings"), [*ANY, *[word_changed] * 4]),
    "verdict": ("audit", "summary.json", ("audit", "findings"), [*ANY, *[json_changed] * 4]),
    "samples": (
        "audit", "results.csv", ("audit", "findings"), [*ANY, cell_changed, cell_changed,
                                                        columns_changed],
    ),
    "facts": ("audit", "facts/r0001-c0001.json", ("audit",), [*ANY, *[json_changed] * 4]),
    "truths": (
        "audit", "figures/victims/r0001-c0000-0-true.png", ("audit",), [*ANY, another_picture],
    ),
    "table": (
        "tokens", "figures/victims/r0001-c0000-0.csv", ("audit",),
        [*ANY, cell_changed, columns_changed],
    ),
    "items": (
        "items", "figures/victims/fedvae-analytic-r0001-c0000-0.csv", ("report",),
        [*ANY, cell_changed, columns_changed],
    ),
    "npz": ("data", "set.npz", ("data",), [*ANY, *[array_changed] * 3, array_forged]),
    "image": ("data", "folder/cat/3.png", ("data",), [*ANY, another_picture]),
    **{name: ("data", name, ("tables",), [*ANY, *[word_changed] * 4]) for name, _, _ in TABLES},
}  # fmt: skip

# ----------------------------------------------------------------------------------------- the test


def limit_memory(more: int) -> None:
    """Give this process so many bytes more than it has; elsewhere than on Linux nobody heeds it."""
    if sys.platform == "linux":
        most = psutil.Process().memory_info().vms + more
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def attempt(read: Callable[[Path], None], where: Path) -> tuple[bool, str]:
    """Whether a damage was accepted, and what is wrong about how it was dealt with."""
    before = snapshot(where.parent)
    try:
        read(where)
    except BadInput as error:
        text = str(error)
        if "\n" in text or len(text) > 1200 or not text.startswith(("Expected", "Unknown")):
            return False, f"no sentence: {text[:2000]}"
        changed = [n for n, content in snapshot(where.parent).items() if before.get(n) != content]
        return False, f"written: {changed}" if changed else ""
    except BaseException:
        return False, traceback.format_exc()[-2000:]
    return True, ""


def main(folder: Path, seed: int, count: int) -> dict[str, Any]:
    small_run(folder / "run")
    small_recommender_run(folder / "items")
    small_data(folder / "data")
    made_audit(folder / "audit")
    made_audit(folder / "tokens", whole=True, shape=(9,))
    events = next((folder / "run" / "tensorboard").iterdir())
    for name, read in READS.items():
        places = {"data": "data", "tables": "data", "audit": "audit", "findings": "audit"}
        read(folder / places.get(name, "run"))
    read_report(folder / "items")
    limit_memory(MEMORY)
    found: dict[str, Any] = {}
    for kind, (owner, name, reads, damages) in KINDS.items():
        path = events if kind == "events" else folder / owner / name
        content, result = path.read_bytes(), {"accepted": 0, "refused": 0, "wrong": []}
        for number in range(count):
            random = np.random.default_rng([seed, number])
            damage = damages[number % len(damages)]
            path.write_bytes(damage(content, random))
            for read in reads:
                accepted, wrong = attempt(READS[read], folder / owner)
                result["accepted" if accepted else "refused"] += 1
                if wrong:
                    result["wrong"].append(f"{damage.__name__} {number}, {read}: {wrong}")
                    # What a reader has broken is made whole again.
                    shutil.rmtree(folder / owner)
                    {
                        "run": small_run, "items": small_recommender_run, "data": small_data,
                        "audit": made_audit,
                        "tokens": partial(made_audit, whole=True, shape=(9,)),
                    }[owner](folder / owner)  # fmt: skip
                    path.write_bytes(damage(content, np.random.default_rng([seed, number])))
        path.write_bytes(content)
        found[kind] = result
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
