"""A client's own error message, from the reports that Flower and Ray make of an exception."""

import re

# How Ray calls that a worker died.
DEAD_WORKER = re.compile(
    r"ray\.exceptions\.(Actor(Died|Unavailable)|WorkerCrashed|OutOfMemory)Error"
)
# How a node of a deployment begins the report of an exception.
EXCEPTION = re.compile(r"^<class '[\w.]+'>:<'")


def last_message(reason: str) -> str:
    """The message of the exception that ended a client.

    Args:
        reason: the reason of the error in its reply.
    """
    if DEAD_WORKER.search(reason):
        return "its worker process died"
    message = reason.rpartition("occurred. Message: ")[2].strip().removesuffix("'>")
    return " ".join(EXCEPTION.sub("", message).split())
