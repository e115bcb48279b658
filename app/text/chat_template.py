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
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InvalidRequest
from streaming.errors import CheckpointError

Message = Mapping[str, Any]

# Behind the text of a message that is gone on with, as transformers has it: if its space is gone, the template trims.
_FINAL_MESSAGE_END = "CONTINUE_FINAL_MESSAGE_TAG "


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
        self._sources = dict(templates)
        self._templates = {name: _compile(environment, name, source) for name, source in templates.items()}
        self._words = {name: _words(source) for name, source in templates.items()}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that these messages make.

        Args:
            messages: At least one; keys whose value is None are dropped, as templates expect.
            add_generation_prompt: Whether to end with the head of the assistant's next message.
            continue_final_message: Whether to end with the text of the last message, which is to be gone on with.
            tools: JSON schemas of functions, for templates that know them.
            variables: What else the template is to see.

        Raises:
            InvalidRequest: There is no template, it refuses these messages or knows no tools (or no calls of them, or no
                answers to them), or a variable has the name of one that every template sees.
        """
        name = self._choose(has_tools=tools is not None)
        self._check_knows(name, messages)
        present = [{key: value for key, value in message.items() if value is not None} for message in messages]
        if continue_final_message:
            present[-1]["content"] += _FINAL_MESSAGE_END
        given = {
            **self._variables,
            "messages": present,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        if taken := sorted(given.keys() & (variables or {}).keys()):
            raise InvalidRequest(f"the template's variable {taken[0]!r} cannot be given", param="chat_template_kwargs")
        try:
            prompt = self._templates[name].render(given | dict(variables or {}))
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as exc:
            raise InvalidRequest(f"the model's chat template refuses these messages: {exc}", param="messages") from exc
        return _up_to_final_message(prompt) if continue_final_message else prompt

    def _choose(self, *, has_tools: bool) -> str:
        """The name of the template to use."""
        for name in ("tool_use", "default") if has_tools else ("default",):
            if name in self._templates:
                break
        else:
            raise InvalidRequest("this model has no chat template: use /v1/completions", param="messages")
        if has_tools and "tools" not in meta.find_undeclared_variables(_environment().parse(self._sources[name])):
            raise InvalidRequest("the model's chat template knows no tools: leave them out", param="tools")
        return name

    def _check_knows(self, name: str, messages: Sequence[Message]) -> None:
        """Refuse messages about tools that the template would leave out, or show as it never does."""
        if any(message.get("tool_calls") for message in messages) and "tool_calls" not in self._words[name]:
            raise InvalidRequest("the model's chat template knows no tool_calls: leave them out", param="messages")
        if any(message["role"] == "tool" for message in messages) and "tool" not in self._words[name]:
            raise InvalidRequest(
                "the model's chat template knows no messages of tools: leave them out", param="messages"
            )


def _words(source: str) -> frozenset[str]:
    """The attributes and literal texts that a template's code names."""
    root = _environment().parse(source)
    attributes = {node.attr for node in root.find_all(nodes.Getattr)}
    literals = {node.value for node in root.find_all(nodes.Const) if isinstance(node.value, str)}
    return frozenset(attributes | literals)


def read_templates(template_file: bytes | None, config: Mapping[str, Any]) -> dict[str, str]:
    """Template sources by name: chat_template.jinja, else what tokenizer_config.json holds."""
    if template_file is not None:
        return {"default": template_file.decode()}
    in_config = config.get("chat_template")
    if isinstance(in_config, str):
        return {"default": in_config}
    return {named["name"]: named["template"] for named in in_config or ()}


def _up_to_final_message(prompt: str) -> str:
    """The prompt up to the mark at the end of its last message; where the template trims messages, trimmed.

    Raises:
        InvalidRequest: The template does not show the message.
    """
    end = prompt.rfind(_FINAL_MESSAGE_END.strip())
    if end < 0:
        raise InvalidRequest("the model's chat template hides the final message", param="continue_final_message")
    return prompt[:end] if prompt.startswith(_FINAL_MESSAGE_END, end) else prompt[:end].rstrip()


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
