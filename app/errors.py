"""What can go wrong above the weights.

    CommandError               a command of `coldstream` cannot go on
    ├── UsageError             exit 2: a flag, variable, file or argument
    └── ServerError            exit 6: port in use, engine lost
    ServiceError               status, type, code, param: one request cannot be answered
    ├── InvalidRequest 400 · Unauthorized 401 · ModelNotFound 404 · RequestTooLarge 413
    ├── Overloaded 429 · NotReady 503            both with retry_after_s
    └── EngineFailure 500 · DeadlineExceeded 504

Knows no HTTP beyond the status numbers; `app.api.errors` writes the envelopes.
"""

from __future__ import annotations


class CommandError(Exception):
    """A command failed; its message is one line that says what to do."""

    exit_code = 1


class UsageError(CommandError):
    """What the user typed or configured cannot be meant."""

    exit_code = 2


class ServerError(CommandError):
    """The server process itself cannot go on."""

    exit_code = 6


class ServiceError(Exception):
    """One request cannot be answered.

    Args:
        message: One line for the client.
        param: The request's parameter at fault, where there is one.
        retry_after_s: Seconds after which a retry makes sense, where it does.
    """

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(ServiceError):
    """The request cannot be honoured as it stands."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(ServiceError):
    """No API key, or a wrong one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(ServiceError):
    """The request names a model that is not served here."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class RequestTooLarge(ServiceError):
    """The request's body is larger than the server reads."""

    status = 413
    type = "invalid_request_error"


class Overloaded(ServiceError):
    """Too many requests are waiting."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class NotReady(ServiceError):
    """The model is not loaded and warm, or the server is going away."""

    status = 503
    type = "service_unavailable"
    code = "not_ready"


class EngineFailure(ServiceError):
    """The engine died or failed on this request."""

    status = 500
    type = "server_error"
    code = "engine_failed"


class DeadlineExceeded(ServiceError):
    """The request took longer than the server lets one take; a retry would take as long."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
