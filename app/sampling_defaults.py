"""What a checkpoint's authors recommend for sampling, where a request does not say.

Takes generation_config.json, gives numbers. Pure; knows no request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from streaming.errors import ModelUnsupported

_NAME = "generation_config.json"


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of generation_config.json that vLLM takes over; None where it says nothing.

    `top_k` 0 and -1 keep every token. `max_new_tokens` is more than a default: no answer is longer.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    max_new_tokens: Annotated[int, Meta(ge=1)] | None = None


def read_sampling_defaults(files: Mapping[str, bytes]) -> SamplingDefaults:
    """What generation_config.json among these metadata files says, if it is there.

    Raises:
        ModelUnsupported: One of the numbers cannot be obeyed.
    """
    try:
        return msgspec.json.decode(files.get(_NAME, b"{}"), type=SamplingDefaults)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelUnsupported(f"{_NAME}: {error}; correct it, or ignore it: --generation-config vllm") from error
