"""Prompts as the engine takes them: encoded or checked, cut, and with the text to echo.

Takes what a request sent, gives token ids. Knows no sampling; call it in a thread, megabytes take seconds.
"""

from __future__ import annotations

from app.api.fields import Prompt as SentPrompt
from app.api.generation import Prompt
from app.api.schemas import GenerationRequest
from app.errors import InvalidRequest
from app.service import ServedModel


def encoded(model: ServedModel, sent: SentPrompt, *, add_special_tokens: bool) -> Prompt:
    """A prompt's token ids.

    Raises:
        InvalidRequest: A token id is not in the vocabulary, or the text is no Unicode.
    """
    if isinstance(sent, str):
        return Prompt(model.text.encode(sent, add_special_tokens))
    return Prompt(_checked(model, sent))


def echoed(model: ServedModel, sent: SentPrompt, *, add_special_tokens: bool, skip_special_tokens: bool) -> Prompt:
    """A prompt's token ids, and the text of each: together a text as it was sent, or the decoding of token ids.

    Raises:
        InvalidRequest: As `encoded`.
    """
    if isinstance(sent, str):
        return Prompt(*model.text.encode_with_texts(sent, add_special_tokens))
    token_ids = _checked(model, sent)
    return Prompt(token_ids, model.text.token_texts(token_ids, skip_special_tokens=skip_special_tokens))


def filled(model: ServedModel, sent: SentPrompt, suffix: str, *, add_special_tokens: bool) -> Prompt:
    """The prompt whose answer goes between a text and a suffix.

    Raises:
        InvalidRequest: The model's vocabulary has no tokens for that, or the prompt is not text.
    """
    if not isinstance(sent, str):
        raise InvalidRequest("suffix needs a prompt that is text", param="suffix")
    token_ids = model.text.fill_in_the_middle(sent, suffix, add_special_tokens)
    if token_ids is None:
        raise InvalidRequest("suffix: the model has no fill-in-the-middle tokens", param="suffix")
    return Prompt(token_ids)


def truncated(prompt: Prompt, request: GenerationRequest, model: ServedModel, max_tokens: int | None) -> Prompt:
    """The end of the prompt that `truncate_prompt_tokens` asks for; -1 is what leaves room for the answer.

    Raises:
        InvalidRequest: It asks for no token at all.
    """
    limit = request.truncate_prompt_tokens
    if limit is None:
        return prompt
    if limit == 0:
        raise InvalidRequest("truncate_prompt_tokens must be at least 1, or -1", param="truncate_prompt_tokens")
    if limit < 0:
        limit = max(1, model.max_model_len_tokens - (max_tokens or 1))
    return Prompt(prompt.token_ids[-limit:], None if prompt.texts is None else prompt.texts[-limit:])


def _checked(model: ServedModel, token_ids: tuple[int, ...]) -> tuple[int, ...]:
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < model.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(f"token id {wrong} is not in [0, {model.vocab_size})", param="prompt")
    return token_ids
