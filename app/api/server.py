"""The HTTP application: routes, errors and what every request passes first.

Takes a service and a few options, gives an ASGI application. Knows no socket, no process, no setting's source
and no probe: those are `app.api.front`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.types import ASGIApp

from app.api import errors
from app.api.chat import chat_routes
from app.api.completions import completion_routes
from app.api.cors import CorsOptions, with_cors
from app.api.middleware import Admission, AnswerHeaders, Watching
from app.api.models import model_routes
from app.api.openapi import DocumentedApi
from app.api.tokenizer import tokenizer_routes
from app.service import Service


@dataclass(frozen=True)
class ApiOptions:
    """Who may ask, and how much at once.

    Args:
        api_keys: Valid Bearer keys; none means that none is asked for.
        max_body_bytes: The largest request body that is read.
        cors: Which pages a browser lets ask.
    """

    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20
    cors: CorsOptions = field(default_factory=CorsOptions)

    def __repr__(self) -> str:
        """How many keys there are, not which."""
        return f"ApiOptions(api_keys=<{len(self.api_keys)}>, max_body_bytes={self.max_body_bytes}, {self.cors})"


def create_app(service: Service, options: ApiOptions) -> ASGIApp:
    """The API behind `app.api.front`; it answers with refusals before there is a model."""
    app = DocumentedApi(title="Coldstream", redoc_url=None)
    for routes in (model_routes, completion_routes, chat_routes, tokenizer_routes):
        app.include_router(routes(service))
    errors.install(app)
    # The last one added is the first one passed.
    app.add_middleware(Admission, api_keys=options.api_keys, max_body_bytes=options.max_body_bytes)
    app.add_middleware(AnswerHeaders, service=service)
    app.add_middleware(Watching, service=service)
    return with_cors(app, options.cors)
