"""What can go wrong between a URI and an address.

    StreamingError
    ├── SourceError            uri, range             exit 3
    │   ├── BlobNotFound       no such container, prefix or blob
    │   ├── AccessDenied       no credential, or one that may not read
    │   │   └── TokenRefused   an identity that is given no token
    │   ├── BlobChanged        overwritten while it was being read
    │   ├── SourceUnavailable  refused, reset or 5xx after every retry
    │   │   └── TokenUnavailable  nobody there who gives an identity its token
    │   ├── RangesIgnored      whole blobs are answered where a range was asked for
    │   └── SourceStalled      no byte for too long
    ├── CheckpointError        shard, tensor          exit 4
    ├── ModelUnsupported       before any weight is fetched, exit 4
    └── DeviceError            no room, no device     exit 5
        └── CudaError          a call of the driver   (streaming.cuda_driver)

Every message is one line that says what happened and what to do. An error crosses a process border
as its class name and that line (`report`), never as a traceback.
"""

from __future__ import annotations

import msgspec

from streaming.causes import Cause


class StreamingError(Exception):
    """Root of the tree; `exit_code` is what `coldstream` exits with when it surfaces."""

    exit_code = 3


class SourceError(StreamingError):
    """The source could not give a byte that was asked of it.

    `cause` is why, where another read may succeed; `status` that of the answer, `request_id` the service's own name for the
    request ("" where it told none). `read_s` is how long the read itself took, where it had to wait for its turn before.
    """

    exit_code = 3

    def __init__(self, message: str, *, cause: Cause | None = None, status: int | None = None, request_id: str = ""):
        super().__init__(message)
        self.cause = cause
        self.status = status
        self.request_id = request_id
        self.read_s: float | None = None


class BlobNotFound(SourceError):
    """No such container, prefix or blob."""


class AccessDenied(SourceError):
    """No credential was found, or the one that was may not read.

    `said` is the service's own word for why, its status first ("403 AuthorizationPermissionMismatch"), or "".
    """

    def __init__(
        self,
        message: str,
        said: str = "",
        *,
        cause: Cause | None = None,
        status: int | None = None,
        request_id: str = "",
    ):
        super().__init__(message, cause=cause, status=status, request_id=request_id)
        self.said = said


class TokenRefused(AccessDenied):
    """Who gives an identity its token refuses it: the storage account was not asked."""


class BlobChanged(SourceError):
    """The blob was overwritten between two reads of one load."""


class SourceUnavailable(SourceError):
    """The source refused, reset or failed every attempt."""


class TokenUnavailable(SourceUnavailable):
    """Who gives an identity its token does not answer, or cannot be believed: the storage account was not asked."""


class RangesIgnored(SourceError):
    """The source answers with the whole blob where a range was asked for."""


class SourceStalled(SourceError):
    """The source sent no byte for longer than the timeout."""


class CheckpointError(StreamingError):
    """The checkpoint's bytes contradict themselves: header, index, offsets or sizes."""

    exit_code = 4


class ModelUnsupported(StreamingError):
    """The engine would not compute this model correctly, so it is refused."""

    exit_code = 4


class DeviceError(StreamingError):
    """The destination memory is missing or too small."""

    exit_code = 5


class ErrorReport(msgspec.Struct, frozen=True):
    """An error on its way to another process: class name, one line, exit code."""

    kind: str
    message: str
    exit_code: int


def report(error: StreamingError) -> ErrorReport:
    """The wire form of `error`: its class name, its message on one line, its exit code."""
    return ErrorReport(type(error).__name__, " ".join(str(error).split()), error.exit_code)
