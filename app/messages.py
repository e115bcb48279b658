"""What the server and the engine tell each other, in the order in which it is said.

    server                            engine
      StartEngine                 ->           while it imports torch
      ConvertTokenizer            ->           only where the checkpoint has no tokenizer.json
                                  <-  ConvertedTokenizer
      DescribeModel               ->           only where no family of ours computes the model
                                  <-  DescribedModel
      BindArena (+ arena fd)      ->           addresses; their bytes may not have arrived
                                  <-  PhaseTimed ..., FellBack ...
      WeightsLanded (+ shards' fds) ->         now they have
                                  <-  EngineReady | EngineFailed
      Submit, Abort ...           ->
                                  <-  StepOutput ..., RequestFailed, EngineStats ...

Token ids only: the engine knows no text. Framing is `streaming.wire`'s.
"""

from __future__ import annotations

import msgspec

from streaming.errors import ErrorReport
from streaming.messages import ArenaMemory, Extent, FellBack, Origin, PhaseTimed


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine runs. `max_model_len_tokens` None means the model's own limit.

    `device` is "cpu" or "cuda"; of the GPU's memory, `gpu_memory_utilization` is the share that weights and KV
    cache may fill together. In `kernels_dir` are kernels that were compiled ahead, if any were.
    """

    device: str = "cpu"
    host_fallback: bool = True
    gpu_memory_utilization: float = 0.9
    max_model_len_tokens: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size_tokens: int = 16
    prefix_caching: bool = True
    kv_cache_bytes: int | None = None
    kernels_dir: str | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence picks its tokens and when it ends; every default but the temperature's means "off".

    `temperature` 0 is argmax; `top_k` 0, `top_p` 1 and `min_p` 0 keep every token. `repetition_penalty` divides
    (multiplies, if negative) the logits of tokens in prompt and output; `frequency_penalty` times the count in the
    output, and `presence_penalty` if there is any, are subtracted. `logit_bias` are (token id, bias) pairs;
    `allowed_token_ids` are the only ones that may come, if there are any; no sequence of `bad_words` is ever
    completed. A `seed` fixes the draws by (seed, position), whatever else is in the batch.

    The sequence ends with finish reason "stop" at any of `stop_token_ids` (which is reported as its last token),
    none of which comes before `min_tokens`, and "length" after `max_tokens`: to ignore the model's end, leave it out.

    `logprobs` and `prompt_logprobs` are how many alternatives to name beside each token of the output or of the
    prompt: 0 asks for the token's own, None for nothing.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class StartEngine(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What every engine hears first: how to log, where to compute ("cpu" or "cuda"), which GPU it sees."""

    log_level: str = "info"
    log_format: str = "auto"
    device: str = "cpu"
    visible_devices: str = ""


class ConvertTokenizer(msgspec.Struct, frozen=True, tag=True):
    """Tokenizer files by base name, to be turned into one tokenizer.json."""

    files: dict[str, bytes]


class DescribeModel(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A config.json, and the shapes of the checkpoint's tensors by name: what does transformers make of them?

    `dtype` is what the model is to compute in, as safetensors has it ("BF16").
    """

    config: bytes
    dtype: str
    tensors: dict[str, tuple[int, ...]]


class BindArena(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The model's config.json and the addresses of its tensors; the arena's fd, if any, travels with it.

    `transformers_dtype` is None where our own decoder computes the model; else the dtype that `DescribeModel` asked for.
    """

    origin: Origin
    config: bytes
    extents: dict[str, Extent]
    memory: ArenaMemory
    options: EngineOptions
    transformers_dtype: str | None = None


class StagedShard(msgspec.Struct, frozen=True):
    """A shard on disk, and what to take from it: its own names of tensors by their stored names."""

    name: str
    tensors: dict[str, str]


class WeightsLanded(msgspec.Struct, frozen=True, tag=True):
    """Every byte is at its address, or in one of `shards`, whose fds travel with this in the same order.

    The warm-up tokens are for one pass over the real weights.
    """

    warmup_token_ids: tuple[int, ...]
    shards: tuple[StagedShard, ...] = ()


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Generate one sequence. The server has checked that prompt + max_tokens fits the model."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Nobody reads this sequence any more; unknown ids are ignored (it may just have finished)."""

    request_id: str


class ConvertedTokenizer(msgspec.Struct, frozen=True, tag=True):
    """The tokenizer.json that transformers made of `ConvertTokenizer.files`."""

    tokenizer_json: bytes


class DescribedParameter(msgspec.Struct, frozen=True, array_like=True):
    """A parameter of transformers' class: one tensor of the checkpoint, or several laid one after the other.

    `shape` is the parameter's, `dtype` what it is to be stored as.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[str, ...]


class DescribedModel(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What transformers' class for this model wants of the checkpoint, and the numbers that the server needs of it."""

    parameters: tuple[DescribedParameter, ...]
    max_model_len_tokens: int
    vocab_size: int
    kv_elements_per_token: int


class StartupMemory(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a GPU's memory was taken, by whomever: once all weights were on it, and once the engine was warm."""

    landed_bytes: int
    ready_bytes: int


class EngineReady(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Warm on real weights: the next Submit is answered at full speed.

    `first_token_id` is what follows the warm-up prompt. `memory` is told on a GPU only.
    """

    max_model_len_tokens: int
    kv_cache_blocks: int
    first_token_id: int
    memory: StartupMemory | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """What the model itself thought of one token: log_softmax of its raw logits, before any sampling parameter.

    `rank` is 1 plus the number of likelier tokens. The alternatives are the likeliest tokens, best first, ids and
    logprobs side by side; the token may be among them.
    """

    logprob: float
    rank: int
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class TokenOutput(msgspec.Struct, frozen=True, array_like=True):
    """One token of one sequence; `finish_reason` is "stop" or "length" on its last.

    `logprobs` come where they were asked for; `prompt_logprobs` with the first token, one for each token of the
    prompt but the first, which nothing predicts. `cached_tokens` come with the first token as well: how many of the
    prompt's keys and values another sequence had computed; and `scheduled_s`, when the sequence first ran (CLOCK_BOOTTIME).
    """

    request_id: str
    token_id: int
    finish_reason: str | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    cached_tokens: int | None = None
    scheduled_s: float | None = None


class StepOutput(msgspec.Struct, frozen=True, tag=True):
    """The tokens of one engine step, at most one per sequence."""

    tokens: tuple[TokenOutput, ...]


class RequestFailed(msgspec.Struct, frozen=True, tag=True):
    """This sequence ended with an error; the others go on."""

    request_id: str
    message: str


class DeviceUse(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU's memory: the whole, what is taken of it by whomever, and the most that was ever seen taken.

    Of torch's allocator, through which everything but the weights goes: what it has handed out, what it holds for that,
    how often it had to give memory back and ask again, and how often even that was not enough.
    """

    total_bytes: int
    used_bytes: int
    peak_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    allocation_retries: int
    allocation_failures: int


class EngineStats(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What only the engine knows of its load, every now and then and whenever it falls idle.

    Sequences that are computed and that wait, blocks that sequences hold, preemptions so far; `device` on a GPU only.
    """

    running: int
    waiting: int
    used_blocks: int
    num_blocks: int
    preemptions: int
    device: DeviceUse | None = None


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot serve; it exits after this."""

    error: ErrorReport


ToEngine = StartEngine | ConvertTokenizer | DescribeModel | BindArena | WeightsLanded | Submit | Abort
FromEngine = (
    ConvertedTokenizer
    | DescribedModel
    | PhaseTimed
    | FellBack
    | EngineReady
    | StepOutput
    | RequestFailed
    | EngineStats
    | EngineFailed
)
