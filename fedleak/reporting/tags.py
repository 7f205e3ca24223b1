"""Names of a run's tags and sub-runs in TensorBoard, for writing and for reading them."""

import re

# Tags with the same text before the first slash form a group of cards. TensorBoard sorts groups by
# name and unfolds the first two; the digits put the attacks' results on the first screen.
RECONSTRUCTIONS = "1 reconstructions"
ATTACKS = "2 attacks"
TRAINING = "3 training"
CLIENTS = "4 clients"
VICTIMS = "5 victims"
RESULTS = "6 results"

PICTURES = f"{RECONSTRUCTIONS}/original beside each attack"
ITEMS = f"{RECONSTRUCTIONS}/items"
COST = f"{ATTACKS}/cost (median of victims)"


def attack_run(attack: str, model: str) -> str:
    """The sub-run of an attack on a model; a model's own sub-run has the model's name."""
    return f"{attack} on {model}"


def split_attack_run(run: str) -> tuple[str, str] | None:
    """Attack and model of a sub-run, or None if it is not of an attack."""
    match = re.fullmatch(r"(.+?) on (.+)", run)
    return (match[1], match[2]) if match else None


def by_round(metric: str) -> str:
    """The mean score of an attack by round."""
    return f"{ATTACKS}/{metric} by round"


def by_victim(metric: str) -> str:
    """The score of an attack by victim."""
    return f"{ATTACKS}/{metric} by victim"


def global_model(metric: str) -> str:
    """A metric of the global model by round; round 0 is the untrained model."""
    return f"{TRAINING}/global model/{metric}"


def mean_of_clients(metric: str) -> str:
    """The mean over a round's clients of a metric that they report, by round."""
    return f"{TRAINING}/mean of clients/{metric}"


def of_client(metric: str, client: int) -> str:
    """A metric that one client reports, by round."""
    return f"{CLIENTS}/{metric}/client {client}"


def epsilon_spent(unit: str, trust: str) -> str:
    """The largest epsilon that a client of a round has come to; none where no epsilon holds."""
    return f"{TRAINING}/privacy/epsilon so far of a {unit}, {trust}"


def epsilon_of_client(unit: str, trust: str, client: int) -> str:
    """The epsilon that one client has come to by a round."""
    return of_client(f"epsilon so far of a {unit}, {trust}", client)


def victim_cost(key: str) -> str:
    """The cost of an attack on one update by iteration."""
    return f"{VICTIMS}/cost of {key}"


def result(name: str) -> str:
    """A metric of the HPARAMS tab, with one value."""
    return f"{RESULTS}/{name}"


def split_global_model(tag: str) -> str | None:
    """The last part of a global model's metric, such as accuracy, or None for another tag."""
    match = re.fullmatch(re.escape(global_model("")) + r"(?:.+/)?([^/]+)", tag)
    return match[1] if match else None


def split_victim_cost(tag: str) -> str | None:
    """The update's key of a victim's cost, or None for another tag."""
    match = re.fullmatch(re.escape(victim_cost("")) + r"(r\d+-c\d+)", tag)
    return match[1] if match else None


# ---------------------------------------------------------------------------- of an audit

AUDIT_PICTURES = "5 reconstructions/true, guess, reconstruction"
AUDIT_CANARY = "5 reconstructions/the audit's own client"


def audit_text(name: str) -> str:
    """A text of an audit: its verdict, or the table of its answers."""
    return f"1 verdict/{name}"


def audit_answer(question: str) -> str:
    """The answer to a question of an audit; the step is the rung."""
    return f"2 answers/{question}"


def audit_guess(question: str) -> str:
    """The guess beside the answer."""
    return f"3 guesses/{question}"


def audit_share(question: str) -> str:
    """The share of the way from the guess to the exact answer."""
    return f"4 share of the way to the exact answer/{question}"
