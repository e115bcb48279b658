"""Which pages of other origins a browser lets use this server.

Takes the application, gives one that says so. Knows no route.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp


@dataclass(frozen=True)
class CorsOptions:
    """What pages may do; without `origins` nothing, and "*" is any.

    Args:
        origins: Scheme, host and port of each.
        methods: HTTP methods.
        headers: Request headers beside those that are always allowed.
        credentials: Whether cookies and the like may be sent.
    """

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False


def with_cors(app: ASGIApp, options: CorsOptions) -> ASGIApp:
    """`app`, with the headers that browsers ask for on every answer, and answers to what they ask beforehand.

    It is outermost: nobody needs a key to ask beforehand, and a page may read the errors, too.
    """
    if not options.origins:
        return app
    from starlette.middleware.cors import CORSMiddleware  # 2 ms that most servers need not pay

    return CORSMiddleware(
        app,
        allow_origins=options.origins,
        allow_methods=options.methods,
        allow_headers=options.headers,
        allow_credentials=options.credentials,
        expose_headers=("x-request-id", "retry-after"),
    )
