"""Errors and logs of object stores: what they say, and no secrets."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import templax as tx
from templax.storage import open_source
from templax.storage.event_loop import run_request
from templax.storage.request_errors import describe_error, redact
from templax.storage.requests import Requests

SIGNED = "https://host/bucket/run/x?X-Amz-Signature=hidden&X-Amz-Credential=hidden%2Fus"
NAMED = "https://user:hidden@host/bucket/run/x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SIGNED, "https://host/bucket/run/x?…"),
        (NAMED, "https://host/bucket/run/x"),
        ("http://hidden@host/x?sig=hidden", "http://host/x?…"),
        (
            f"error sending request for url ({SIGNED})",
            "error sending request for url (https://host",
        ),
        (
            f'"{SIGNED}", then <{NAMED}>: refused',
            '"https://host/bucket/run/x?…", then <https://host/',
        ),
        ("object `a@b` of s3://bucket changed?", "object `a@b` of s3://bucket changed?"),
    ],
)
def test_what_may_be_secret_in_an_address_is_removed(text: str, expected: str) -> None:
    assert redact(text).startswith(expected)
    assert "hidden" not in redact(text)


class GenericError(Exception):
    """As obstore's, which has addresses in its text."""


def test_the_reason_of_a_failure_has_no_secrets() -> None:
    for address in (SIGNED, NAMED):
        error = GenericError(
            f"Generic S3 error: HTTP error: error sending request for url ({address})\n\n"
            f"Debug source:\nGeneric {{ source: Reqwest {{ url: {address} }} }}"
        )
        said = describe_error(error)
        assert "error sending request for url (https://host/bucket/run/x" in said
        assert "hidden" not in said


def test_errors_and_logs_of_requests_have_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    requests = Requests(lambda: None, "https://host/bucket", timeout_s=0.2)
    failed: list[Any] = []

    async def fail() -> None:
        failed.append(None)
        raise ConnectionError(f"connection reset: {SIGNED if len(failed) % 2 else NAMED}")

    with caplog.at_level(logging.DEBUG), pytest.raises(tx.SourceError) as caught:
        run_request(requests.repeat(fail, "run/x"))
    assert len(failed) > 1
    assert "trying `https://host/bucket/run/x` again after connection reset" in caplog.text
    assert "connection reset: https://host/bucket/run/x" in str(caught.value)
    assert "hidden" not in caplog.text + str(caught.value)


@pytest.mark.parametrize("url", [SIGNED, NAMED])
def test_an_address_with_secrets_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(tx.SourceError, match="can't read `https://host/bucket/run/x") as caught:
        open_source(url)
    assert "hidden" not in str(caught.value)
