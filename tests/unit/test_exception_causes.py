"""streaming.exception_causes: what kept a connection of Python's from its answer."""

from __future__ import annotations

import socket
import ssl

import pytest
from azure.core.exceptions import ServiceRequestError

from streaming.causes import Cause
from streaming.exception_causes import cause_of_exception, detail_of_exception, is_untrusted, reasons


def wrapped(reason: Exception) -> Exception:
    """As a library raises it: of another one, which Azure's keeps in an attribute."""
    try:
        try:
            raise reason
        except OSError as error:
            raise RuntimeError("a paragraph") from error
    except RuntimeError as error:
        return ServiceRequestError("it failed", error=error)


@pytest.mark.parametrize(
    ("reason", "cause", "detail"),
    [
        (ConnectionRefusedError(111, "Connection refused"), Cause.REFUSED, "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), Cause.DNS, "Name or service not known"),
        (TimeoutError("timed out"), Cause.TIMEOUT, ""),
        (OSError(101, "Network is unreachable"), Cause.CONNECT, "Network is unreachable"),
    ],
)
def test_a_cause_is_found_however_deep(reason, cause, detail):
    """And what the operating system said of it."""
    error = wrapped(reason)
    assert cause_of_exception(error, Cause.CONNECT) is cause
    assert detail_of_exception(error) == detail
    assert not is_untrusted(error)


def test_a_certificate_is_no_cause_to_try_again():
    """Who cannot be believed now cannot be believed in a second."""
    error = wrapped(ssl.SSLCertVerificationError(1, "certificate verify failed"))
    assert cause_of_exception(error, Cause.CONNECT) is None
    assert is_untrusted(error)


def test_exceptions_that_came_of_each_other_end():
    """One that is raised anew while it is handled is in its own chain."""
    inner, outer = ValueError(), RuntimeError()
    inner.__cause__, outer.__cause__ = outer, inner
    assert list(reasons(inner)) == [inner, outer]
