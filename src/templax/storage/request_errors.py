"""What the errors of obstore mean: whether a retry may help, and what to tell the user.

obstore puts the status, the address and the body of an answer into the text of its exceptions.
Addresses may contain signatures and settings contain keys: errors of templax repeat neither.
"""

from __future__ import annotations

import re
from typing import Literal

from ..errors import SourceError

Kind = Literal["transient", "expired", "missing", "changed", "exists", "refused", "ranges"]

_STATUS = re.compile(r"status code: (\d{3})|\((\d{3}) [A-Z]")

TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504, 509))
"""Statuses of answers after which the same request may succeed."""

_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired", "InvalidToken", "expired")

_QUERY = re.compile(r"(https?://[^\s?\"'<>]*)\?[^\s\"'<>)]*")

_USER = re.compile(r"(https?://)[^\s/@\"'<>]+@")

_REQUEST_ID = re.compile(
    r"<RequestId>([^<]{1,200})</RequestId>|(?:x-[a-z]+-request-id|RequestId)[:=] ?([\w+/=-]{1,200})"
)

_MESSAGE = re.compile(r"<Message>([^<]{1,500})</Message>")

_CODE = re.compile(r"<Code>(\w{1,100})</Code>")

_NETWORK = re.compile(
    r"invalid list response|\b(connect|timeout|interrupted|unknown|request|decode)\b"
    r"|timed out|connection|body|reset",
    re.IGNORECASE,
)

_PERFORMING = re.compile(r"(Error performing [^\n]*?)+ in \S+(, after \d+ retries[^-]*)? - ")

_MAX_TEXT = 400


class ObjectChanged(SourceError):
    """An object is no longer the version that was seen first."""


class PreconditionFailed(SourceError):
    """An object was not written, because what is there is not what the writer expected."""


def find_status(error: Exception) -> int | None:
    """The HTTP status that an exception of obstore reports, or None."""
    found = _STATUS.search(_first_part(error))
    return int(found[1] or found[2]) if found else None


def classify_error(error: Exception) -> Kind:
    """What an exception of obstore, or one of Python about the network, means.

    Returns:
        "transient": the same request may succeed later. "expired": it may succeed with new
        credentials. "missing": there is no such object. "changed": it is not the requested version.
        "exists": there is an object where none was expected. "ranges": the server sends only whole
        objects. "refused": anything else; a retry does not help.
    """
    name, text = type(error).__name__, _first_part(error)
    if isinstance(error, (TimeoutError, ConnectionError)):
        return "transient"
    if name in ("NotFoundError", "FileNotFoundError"):
        return "missing"
    if name in ("PreconditionError", "NotModifiedError"):
        return "changed"
    if name == "AlreadyExistsError":
        return "exists"
    status = find_status(error)
    if status in (400, 401, 403) and (any(word in text for word in _EXPIRED) or _is_bare(text)):
        return "expired"
    if name in ("PermissionDeniedError", "UnauthenticatedError", "ValueError"):
        return "refused"
    if name == "NotSupportedError" or ("range" in text.lower() and "not support" in text.lower()):
        return "ranges"
    if status is not None:
        if status == 412:
            return "changed"
        if status == 404:
            return "missing"
        return "transient" if status in TRANSIENT else "refused"
    return "transient" if name == "GenericError" and _NETWORK.search(str(error)) else "refused"


def _is_bare(text: str) -> bool:
    """Whether an answer gives no reason. To HEAD none does, so credentials may have expired."""
    return "HEAD" in text and _CODE.search(text) is None


def describe_error(error: Exception) -> str:
    """The reason that an exception of obstore gives, in one line, without secrets.

    It includes the request ID if the answer has one: operators of a store need it to look up a
    failure.
    """
    text = _first_part(error)
    status, code, message = find_status(error), _CODE.search(text), _MESSAGE.search(text)
    if status is not None:
        words = [f"status {status}"]
        words += [code[1]] if code else []
        reason = " ".join(words) + (f": {message[1]}" if message else "")
        if status in (400, 401, 403) and _is_bare(text):
            reason += " without a reason"
        if status in (401, 403) or "without a reason" in reason:
            reason += "; hint: check the credentials, or pass anonymous=True for a public bucket"
    else:
        reason = re.sub(r"^Generic \w+ error: ", "", text)
        reason = _PERFORMING.sub("", reason)
        cause = re.search(r'message: "([^"]{1,200})"', str(error))
        if cause and cause[1] not in reason:
            reason += f": {cause[1]}"
    if "path segment" in text:
        reason += "; hint: rename or delete the object of that name"
    found = _REQUEST_ID.search(text)
    if found:
        reason += f" (request {found[1] or found[2]})"
    return redact(reason)[:_MAX_TEXT]


def redact(text: str) -> str:
    """Removes what may be secret in addresses: queries, and names before an `@`."""
    return _USER.sub(r"\1", _QUERY.sub(r"\1?…", text))


def _first_part(error: Exception) -> str:
    return str(error).partition("\n\nDebug source")[0]
