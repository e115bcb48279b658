"""Why there was no answer, told by the exceptions of Python's own sockets, for libraries that use them.

Takes an exception, gives its cause. `causes` does the same for obstore, which has none.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from streaming.causes import Cause


def cause_of_exception(error: BaseException, otherwise: Cause | None) -> Cause | None:
    """The cause; None where the other end cannot be believed, and the next attempt would fail, too."""
    for reason in reasons(error):
        match reason:
            case ssl.SSLCertVerificationError():
                return None
            case socket.gaierror():
                return Cause.DNS
            case ConnectionRefusedError():
                return Cause.REFUSED
            case TimeoutError():
                return Cause.TIMEOUT
    return otherwise


def is_untrusted(error: BaseException) -> bool:
    """Whether the other end's certificate was not believed."""
    return any(isinstance(reason, ssl.SSLCertVerificationError) for reason in reasons(error))


def detail_of_exception(error: BaseException) -> str:
    """What the operating system said, or ""."""
    said = (reason.strerror for reason in reasons(error) if isinstance(reason, OSError) and reason.strerror)
    return next(said, "")


def reasons(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came of, each once; Azure's libraries keep one in an attribute."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
