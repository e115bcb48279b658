"""Messages to one prompt, by the checkpoint's own Jinja template.

Takes the template and the special tokens, gives text. The environment is set up as transformers sets up
its own, because that is what templates are written against. Knows no tokenizer and no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InvalidRequest
from streaming.errors import CheckpointError

Message = Mapping[str, Any]


class ChatTemplate:
    """One checkpoint's template or templates.

    Args:
        templates: Template source by name; the usual single template is called "default".
        variables: What every template sees besides the messages: `bos_token` and its like.

    Raises:
        CheckpointError: A template is not Jinja.
    """

    def __init__(self, templates: Mapping[str, str], variables: Mapping[str, str]):
        environment = _environment()
        self._variables = dict(variables)
        self._templates = {name: _compile(environment, name, source) for name, source in templates.items()}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt that these messages make.

        Args:
            messages: At least one; keys whose value is None are dropped, as templates expect.
            add_generation_prompt: Whether to end with the head of the assistant's next message.
            tools: JSON schemas of functions, for templates that know them.

        Raises:
            InvalidRequest: There is no template, or it refuses these messages.
        """
        template = self._choose(has_tools=tools is not None)
        present = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            return template.render(
                messages=present,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as exc:
            raise InvalidRequest(f"the model's chat template refuses these messages: {exc}", param="messages") from exc

    def _choose(self, *, has_tools: bool) -> jinja2.Template:
        for name in ("tool_use", "default") if has_tools else ("default",):
            if name in self._templates:
                return self._templates[name]
        raise InvalidRequest("this model has no chat template: use /v1/completions", param="messages")


def read_templates(template_file: bytes | None, config: Mapping[str, Any]) -> dict[str, str]:
    """Template sources by name: chat_template.jinja, else what tokenizer_config.json holds."""
    if template_file is not None:
        return {"default": template_file.decode()}
    in_config = config.get("chat_template")
    if isinstance(in_config, str):
        return {"default": in_config}
    return {named["name"]: named["template"] for named in in_config or ()}


class _GenerationBlocks(Extension):
    """`{% generation %}` marks the assistant's tokens for training; to a server it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope, as the call block is that transformers makes of it: assignments stay inside.
        return nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _compile(environment: ImmutableSandboxedEnvironment, name: str, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as exc:
        raise CheckpointError(
            f"the chat template {name!r} is broken at line {exc.lineno}: {exc.message}; correct or remove it"
        ) from exc


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as a model should read it; jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    # Local time without a zone, as transformers has it: templates print today's date.
    return datetime.now().strftime(pattern)
