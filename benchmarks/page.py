"""Writes the figures of results.json into docs/benchmarks.md, between its markers.

``python -m benchmarks.page`` does so; ``make bench`` does it after each figure. What is written by
hand in the page stays.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.conditions import ROOT
from benchmarks.registry import BENCHMARKS

PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results.json"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADER = (
    "| figure | what is compared | value | min to max (n) | threshold | all values so far |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)

Results = Mapping[str, Any]

# What a figure compares, filled with its setting and details.
COMPARED = {
    "mlp_matching_speedup": (
        "IGA on one SMLP victim, {iterations} iterations: a plain autograd loop "
        "({plain_seconds:.3g} s) over the engine ({engine_seconds:.3g} s)"
    ),
    "lenet_batched_speedup": (
        "IGA on LeNet, for each victim: {victims_one_by_one} one by one ({one_by_one_seconds:.3g} "
        "s) over {victims_together} together ({together_seconds:.3g} s)"
    ),
    "bandwidth_share": (
        "IGA on one SMLP victim: weights that must be read ({gb_per_second:.3g} GB/s) over the "
        "higher of two measured bandwidths (memory {memory_gb_per_second:.3g} GB/s, cache "
        "{cache_gb_per_second:.3g} GB/s)"
    ),
    "sweep_two_process_speedup": (
        "a sweep of {runs} runs: one process ({one_process_seconds:.3g} s) over two "
        "({two_processes_seconds:.3g} s)"
    ),
    "time_to_leak_dmlp": (
        "DMLP + PRECODE until SSIM {ssim}: NRA by this engine ({nra_seconds:.3g} s) over "
        "`exact_nra` ({exact_nra_seconds:.2g} s). `analytic`, a closed form of 2018, needs "
        "{analytic_seconds:.2g} s; NRA as a plain loop about {nra_plain_loop_seconds:.3g} s "
        "({nra_plain_loop_ratio:.3g} times `exact_nra`)"
    ),
    "time_to_leak_lenet": (
        "LeNet + PRECODE until SSIM {ssim}: NRA by this engine ({nra_seconds:.3g} s; "
        "{nra_outcome}, highest SSIM {nra_best_ssim:.2f}) over `exact_nra` "
        "({exact_nra_seconds:.2g} s). `analytic` does not apply"
    ),
    "exact_seconds": (
        "`exact_nra` on one 32x32 victim: LeNet {lenet_seconds:.2g} s (SSIM at least "
        "{lenet_ssim_min:.3f}), LeNetR {lenetr_seconds:.2g} s ({lenetr_ssim_min:.3f})"
    ),
    "exact_seconds_large": (
        "`exact_nra` on one 64x64 victim: LeNet {lenet_seconds:.2g} s (SSIM at least "
        "{lenet_ssim_min:.3f}), LeNetR {lenetr_seconds:.2g} s ({lenetr_ssim_min:.3f})"
    ),
    "fedvae_attack_speedup": (
        "NRA on one FedVAE user, {iterations} iterations: a plain autograd loop "
        "({plain_seconds:.3g} s) over the engine ({engine_seconds:.3g} s)"
    ),
    "fedvae_together_speedup": (
        "NRA on {users} FedVAE users, {iterations} iterations: one by one "
        "({one_by_one_seconds:.3g} s) over together ({together_seconds:.3g} s)"
    ),
    "fedvae_round_ratio": (
        "a round of {users} FedVAE users: Flower on Ray ({federation_seconds:.3g} s) over a plain "
        "loop in one process ({plain_seconds:.3g} s)"
    ),
    "fedvae_round_peak_ratio": (
        "peak memory with such rounds: Flower on Ray ({federation_gb:.3g} GB) over the plain loop "
        "({plain_gb:.3g} GB)"
    ),
    "fedvae_users_peak_ratio": (
        "peak memory of a federation of {users_in_all[1]:,} users ({many_users_gb:.3g} GB) over "
        "one of {users_in_all[0]:,} ({few_users_gb:.3g} GB)"
    ),
    "two_worker_speedup": (
        "IGA on {victims} LeNet victims, a task on Ray each: one worker "
        "({one_worker_seconds:.3g} s) over two ({two_workers_seconds:.3g} s)"
    ),
    "malicious_round_overhead": (
        "a round of {clients} clients of a Flower app: every update intercepted and written to "
        "disk by `MaliciousStrategy` ({listening_round_seconds:.3g} s) over FedAvg alone "
        "({plain_round_seconds:.3g} s)"
    ),
    "audit_round_overhead": (
        "a round of {clients} clients of a Flower app: audited, its batches recorded "
        "({listening_round_seconds:.3g} s) over the app alone ({plain_round_seconds:.3g} s)"
    ),
    "peer_breaching_speedup": (
        "IGA on one LeNet victim, {iterations} iterations: breaching {peer[breaching]} "
        "({breaching_iterations_per_second:.3g} iterations/s, mean SSIM {breaching_ssim:.4f}) over "
        "fedleak ({fedleak_iterations_per_second:.3g} iterations/s, {fedleak_ssim:.4f})"
    ),
    "peer_breaching_speedup_smlp": (
        "IGA on one SMLP victim, {iterations} iterations: breaching {peer[breaching]} "
        "({breaching_iterations_per_second:.3g} iterations/s, mean SSIM {breaching_ssim:.4f}) over "
        "fedleak ({fedleak_iterations_per_second:.3g} iterations/s, {fedleak_ssim:.4f})"
    ),
}


def rendered(page: str, results: Results) -> str:
    """The page with its generated blocks made anew.

    Args:
        page: the page's text, with a block for the table and one for each benchmark.
        results: what results.json holds.

    Raises:
        ValueError: if the page does not have each block once.
    """
    expected = ["table", *BENCHMARKS]
    found = [match[1] for match in BLOCK.findall(page)]
    if sorted(found) != sorted(expected):
        raise ValueError(f"Expected one block of each of {expected} in the page, got {found}.")
    blocks = {name: facts(name, results) for name in BENCHMARKS} | {"table": table(results)}
    return BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}{match[3]}", page)


def table(results: Results) -> str:
    """The table of all figures, in Markdown."""
    return HEADER + "".join(_row(name, results) for name in BENCHMARKS)


def facts(name: str, results: Results) -> str:
    """When, where and with which setting a figure was measured, in Markdown."""
    record = results["figures"].get(name)
    lines = ["Not measured with the current procedure yet."] if record is None else _lines(record)
    for earlier in results["earlier"].get(name, []):
        lines.append(
            f"Earlier: {_number(earlier['value'])}; committed {earlier['committed']}, commit "
            f"{earlier['commit']}, machine {earlier['machine']}"
            + (f"; {earlier['note']}" if earlier["note"] else "")
        )
    return "".join(f"- {line}\n" for line in lines)


def compared(name: str, record: Mapping[str, Any]) -> str:
    """What a figure compares, in words, with the quantities of both sides."""
    fields = record["setting"] | record["details"]
    if "nra_reached" in fields:
        reached, victims = fields["nra_reached"], record["n"]
        within = f"within {fields['iterations']:,} iterations"
        fields["nra_outcome"] = (
            f"{reached} of {victims} victims {within}" if reached else f"never {within}"
        )
    return COMPARED[name].format_map(fields)


def value_text(record: Mapping[str, Any]) -> str:
    """The value with its unit's first word; "at least" before a lower bound."""
    unit = record["unit"].split()[0]
    text = _number(record["value"])
    text += {"times": " times", "seconds": " s", "share": " of the bandwidth"}[unit]
    return f"at least {text}" if record["lower_bound"] else text


def write_page(results: Results, page: Path = PAGE) -> None:
    """Write the figures into the page."""
    page.write_text(rendered(page.read_text(), results))


def _row(name: str, results: Results) -> str:
    record = results["figures"].get(name)
    values = [item["value"] for item in results["earlier"].get(name, [])]
    if record is None:
        cells = ["not measured with the current procedure yet", "", "", ""]
    else:
        values.append(record["value"])
        spread, threshold = record["spread"], record["threshold"]
        ((kind, limit),) = threshold.items()
        cells = [
            compared(name, record),
            value_text(record),
            f"{_number(spread['min'])} to {_number(spread['max'])} ({record['n']})",
            f"at {kind} {limit:g}",
        ]
    span = " to ".join(dict.fromkeys(map(_number, (min(values), max(values))))) if values else ""
    return f"| [{name}](#{name}) | {' | '.join([*cells, span])} |\n"


def _lines(record: Mapping[str, Any]) -> list[str]:
    measured = record["measured"]
    machine = measured["machine"]
    versions = ", ".join(f"{name} {text}" for name, text in measured["versions"].items())
    return [
        f"Measured {measured['date']}, commit {measured['commit']}, {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; load average "
        f"before it {measured['load_average']:g}; {versions}",
        f"Value: {value_text(record)}, {record['unit']}; median of {record['n']} {record['n_of']}",
        f"Setting: {_pairs(record['setting'])}",
        f"Details: {_pairs(record['details'])}",
    ]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_pairs(value)})"
    if isinstance(value, list):
        return " and ".join(map(_text, value))
    return _number(value) if isinstance(value, float) else f"{value}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    write_page(json.loads(RESULTS.read_text()))
