"""Why a read failed, read off the words of obstore's error.

Takes text, gives causes, statuses and request ids. obstore tells neither class nor header: all that there is of an answer is its
status and its body, and of a broken connection the name that the operating system has for it. Knows no store and no policy.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Cause(StrEnum):
    """What kept one read from its bytes, as far as another one may get them."""

    TIMEOUT = "timeout"
    RESET = "reset"
    REFUSED = "refused"
    DNS = "dns"
    CONNECT = "connect"
    TRUNCATED = "truncated"
    WRONG_RANGE = "wrong_range"
    ROLE = "403"
    REQUEST_TIMEOUT = "408"
    TOO_MANY = "429"
    INTERNAL = "500"
    BAD_GATEWAY = "502"
    UNAVAILABLE = "503"
    GATEWAY_TIMEOUT = "504"


# Only what obstore says of the status: a bare number may be a part of the URL.
_STATUS = re.compile(r"status code: (\d{3})")
TRANSIENT_STATUSES = {int(cause): cause for cause in Cause if cause.isdigit() and cause is not Cause.ROLE}
# In this order: a body that was cut off by a reset is a reset. No URL has a space or a quote, so none can look like these.
_WORDS = (
    (re.compile(r"kind: Timeout\b|source: TimedOut|kind: TimedOut"), Cause.TIMEOUT),
    (re.compile(r'"dns error"'), Cause.DNS),
    (re.compile(r"kind: ConnectionRefused"), Cause.REFUSED),
    (re.compile(r"kind: (?:ConnectionReset|ConnectionAborted|BrokenPipe)\b|\bIncompleteMessage\b"), Cause.RESET),
    (re.compile(r"\bIncompleteBody\b|kind: UnexpectedEof"), Cause.TRUNCATED),
    (re.compile(r"\bUnexpectedRange\b|\bNoContentRange\b|\bInvalidContentRange\b"), Cause.WRONG_RANGE),
    # Who cannot be believed now cannot be believed in a second.
    (_UNTRUSTED := re.compile(r"InvalidCertificate"), None),
    (re.compile(r"kind: Connect\b"), Cause.CONNECT),
    (re.compile(r"kind: Interrupted\b"), Cause.RESET),
)
# Blob storage's id of a request in the XML of its error, and S3's.
_REQUEST_ID = re.compile(r"RequestId(?:>|:)\s*([\w-]{8,64})")
# The service's own word for a refusal: Blob storage's in XML, Entra's (of a token) in JSON.
_CODE = re.compile(r"<Code>(\w+)</Code>|(AADSTS\d+)")
_QUERY = re.compile(r"\?[^\s\"'<>)]+")
# What the operating system or the resolver said, deep in obstore's debug text.
_DETAIL = re.compile(r'(?:message|error): "([^"]+)"')
# An answer's body may repeat what it was asked with: a proxy's error page shows the token in the request's headers.
_BODY = re.compile(r"\s*:?\s*<\?xml.*|(?P<status>status code: \d{3}[^:\n]*).*", re.DOTALL)
_LINE_LENGTH = 300


def status_of(text: str) -> int | None:
    """The status of the answer that was no good; None where there was no answer."""
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def cause_of(text: str) -> Cause | None:
    """What another read may mend; None where it is what the answer was meant to say."""
    if (status := status_of(text)) is not None:
        return TRANSIENT_STATUSES.get(status)
    return next((cause for words, cause in _WORDS if words.search(text)), None)


def code_of(text: str) -> str:
    """The service's own word for a refusal; "" where it told none."""
    found = _CODE.search(text)
    return (found[1] or found[2]) if found else ""


def detail_of(text: str) -> str:
    """What the operating system or the resolver said of a connection, or ""."""
    details = _DETAIL.findall(text.partition("\n\nDebug source")[2])
    return details[-1] if details else ""


def is_untrusted(text: str) -> bool:
    """Whether the other end's certificate was not believed."""
    return _UNTRUSTED.search(text) is not None


def request_id_of(text: str) -> str:
    """The service's own id of the request, for who asks its support; "" where its answer had none."""
    found = _REQUEST_ID.search(text)
    return found[1] if found else ""


def said(text: str) -> str:
    """Status and code of a refusal, as far as the answer had them."""
    status = _STATUS.search(text)
    return " ".join(filter(None, (status and status[1], code_of(text))))


def on_one_line(text: str) -> str:
    """The message on one line, without answers' bodies and without query strings (they carry tokens)."""
    text, _, debug = text.partition("\n\nDebug source")
    text = " ".join(_BODY.sub(lambda found: found["status"] or "", text).split())
    details = [detail for detail in _DETAIL.findall(debug) if detail not in text]
    return _QUERY.sub("?...", ": ".join([text[:_LINE_LENGTH], *details[-1:]]))
