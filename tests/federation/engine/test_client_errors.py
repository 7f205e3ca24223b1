"""A client's own error message."""

from fedleak.federation.engine.client_errors import last_message


def test_a_client_is_quoted_without_the_report_around_its_message() -> None:
    report = "<class 'flwr.X'>: Exception ClientAppException occurred. Message: out of\n memory'>"
    assert last_message(report) == "out of memory"
    assert last_message("it did not  answer") == "it did not answer"
    dead = "<class 'ray.exceptions.ActorUnavailableError'>:<'The actor 12 is unavailable: ...'>"
    assert last_message(dead) == "its worker process died"


def test_a_node_of_a_deployment_is_quoted_likewise() -> None:
    assert last_message("<class 'fedleak.errors.BadInput'>:<'Expected a file.'>") == (
        "Expected a file."
    )
