"""The text model against transformers' AutoTokenizer: token ids, decoding and chat prompts are equal."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from app.api.chat_schemas import Message
from app.text.text_model import TextModel

CORPUS = [
    "",
    " ",
    "   ",
    "\n",
    "\t\t\n\r\n \n",
    "a",
    " a",
    "a ",
    "Hello, world! It's 3.14 o'clock, isn't it?",
    "  runs   of    spaces     and\ttabs\t\tand\n\n\nnewlines  ",
    "def f(x):\n    return x ** 2  # 100_000\n",
    "naïve café Ünïcödé ß ﬁ ½ e\u0301 Å",
    "Ελληνικά Русский Українська ქართული Հայերեն",
    "עברית العربية فارسی اردو",
    "हिन्दी বাংলা தமிழ் ไทย ພາສາລາວ မြန်မာ ខ្មែរ",
    "中文繁體 日本語のテキスト 한국어 文字",
    "አማርኛ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ 𐍈𐌰𐌹 𝒳𝓎𝓏 𓂀",  # noqa: RUF001
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵🇧🇷 👍🏽 ☕️ 🙂",
    "zero\u200bwidth \u202eright\u202c \ufeffbom \u00a0nbsp \u3000wide \u2028line",
    "\x00\x01\x7f\x85 control",
    "\ufffd replacement \uffff noncharacter \ue000 private",
    "supercalifragilistic" * 200,
    "ab" * 3000,
    "🙂" * 500,
    "0123456789" * 100,
    "<s>special</s> <|im_start|>user\nhi<|im_end|> <|endoftext|> [CLS] x [SEP] <unk><extra>",
    " <|im_start|> spaced <extra> out ",
    "<|im_start|><|im_start|><extra><extra>",
    "<|im_start",
]

CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "  spaces  \n"},
        {"role": "assistant", "content": "<|im_end|> 🙂"},
        {"role": "user", "content": "مرحبا {{ not_jinja }} {% raw %}"},
    ],
    [{"role": "user", "content": "", "name": None}],
]

TEMPLATE = """{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'none ' + strftime_now('%Y') %}
{%- endif %}
{{ bos_token }}[{{ system }}]
{% for message in messages %}
    {%- if message.role == 'assistant' %}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- else %}
<{{ message.role }}>{{ message | tojson }}
    {%- endif %}
    {%- if loop.last %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<assistant>
{%- endif %}
"""


def sentencepiece_like():
    """Llama-2's kind: byte fallback, metaspaces, BOS from the post-processor."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=pieces, limit_alphabet=120, max_token_length=16, show_progress=False
    )
    tokenizer.train_from_iterator([text[:400] for text in CORPUS], trainer)
    # The bytes are ordinary pieces of the vocabulary, not special tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": False}


def wordpiece():
    """BERT's kind: lower case, accents stripped, CLS and SEP around; cut and padded by its file."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"], show_progress=False
    )
    tokenizer.train_from_iterator([text[:400] for text in CORPUS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=12, pad_id=3, pad_token="[PAD]")
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    return tokenizer, names


def byte_level_with_config_tokens():
    """Llama-3's kind: byte-level, and tokens that only tokenizer_config.json knows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text[:400] for text in CORPUS], trainer)
    size = tokenizer.get_vocab_size()
    start = {"content": "<|im_start|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}
    extra = {"content": "<extra>", "special": False, "normalized": False, "lstrip": True, "rstrip": True}
    config = {
        "added_tokens_decoder": {str(size + 1): extra | {"single_word": False}, str(size): start},
        "bos_token": {"content": "<|im_start|>", "__type": "AddedToken"},
        "eos_token": "<|im_end|>",
    }
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    config["added_tokens_decoder"] = {
        str(int(token_id) + 1): token for token_id, token in config["added_tokens_decoder"].items()
    }
    return tokenizer, config


SYNTHETIC = {
    "sentencepiece": sentencepiece_like,
    "wordpiece": wordpiece,
    "byte level": byte_level_with_config_tokens,
}


def save(folder, build):
    tokenizer, config = build()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | config)
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.fixture(scope="module", params=["demo", *SYNTHETIC])
def both(request, tmp_path_factory):
    """Our text model and transformers' tokenizer, of the same files."""
    if request.param == "demo":
        folder = request.getfixturevalue("demo_model_dir")
    else:
        folder = save(tmp_path_factory.mktemp("tokenizer"), SYNTHETIC[request.param])
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in {".json", ".jinja"}}
    return TextModel.from_files(files), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_token_ids_and_decoding_are_equal(both, text, add_special_tokens):
    """Every text of the corpus has the same ids, and those ids the same text."""
    ours, oracle = both
    expected = oracle.encode(text, add_special_tokens=add_special_tokens)
    assert list(ours.encode(text, add_special_tokens)) == expected
    assert ours.decode(expected) == oracle.decode(expected, skip_special_tokens=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_has_equal_token_ids(both, text):
    """Random Unicode has the same ids."""
    ours, oracle = both
    assert list(ours.encode(text, True)) == oracle.encode(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_oracles_decoding(both, data):
    """The pieces of random ids, valid or not, make up what transformers decodes at once."""
    ours, oracle = both
    token_ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=50))
    growing = ours.new_detokenizer()
    streamed = "".join(map(growing.push, token_ids)) + growing.flush()
    assert streamed == oracle.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_streamed_text_of_the_corpus_is_the_oracles_decoding(both, text):
    """The pieces of every text of the corpus make up what transformers decodes at once."""
    ours, oracle = both
    growing = ours.new_detokenizer()
    token_ids = oracle.encode(text)
    streamed = "".join(map(growing.push, token_ids)) + growing.flush()
    assert streamed == oracle.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CHATS, ids=range(len(CHATS)))
def test_chat_prompts_are_equal(both, messages, add_generation_prompt):
    """Every chat renders to the same prompt and encodes to the same ids."""
    ours, oracle = both
    options = {"add_generation_prompt": add_generation_prompt}
    expected = oracle.apply_chat_template(messages, tokenize=False, **options)
    prompt = ours.render_chat(messages, **options)
    assert prompt == expected
    assert list(ours.encode(prompt, False)) == oracle.apply_chat_template(messages, return_dict=False, **options)


@pytest.mark.parametrize("last", ["Once upon", "ends in space  ", "  begins", "e", "\n", "<|im_end|>"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_continued_chats_are_equal(both, role, last):
    """A chat whose final message is gone on with ends where transformers ends it."""
    ours, oracle = both
    messages = [{"role": "user", "content": "Hi there, he"}, {"role": role, "content": last}]
    expected = oracle.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert ours.render_chat(messages, add_generation_prompt=False, continue_final_message=True) == expected


# Qwen 2.5's, in the parts that are about tools.
TOOL_TEMPLATE = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def test_a_chat_with_tools_is_rendered_as_transformers_does(tmp_path):
    """Requests with calls and answers make the prompt that transformers makes of the same conversation."""
    folder = save(tmp_path, byte_level_with_config_tokens)
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    arguments = {"city": "Zürich", "days": [1, 2.5], "deep": {"x": None}}
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": "weather", "arguments": given}}
        for number, given in enumerate((arguments, {}))
    ]
    chat = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_0"},
        {"role": "tool", "content": '{"rain": 3}', "tool_call_id": "call_1"},
    ]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    written = [
        call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
        for call in calls
    ]
    sent = [Message.model_validate(each | ({"tool_calls": written} if "tool_calls" in each else {})) for each in chat]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    messages = [message.for_template() for message in sent]
    assert TextModel.from_files(files).render_chat(messages, add_generation_prompt=True, tools=TOOLS) == expected
