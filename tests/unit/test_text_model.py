"""The text model: which files make it, what it refuses, how chats are rendered."""

import json

import pytest

from app.errors import InvalidRequest
from app.text.text_model import TextModel, TokenizerMissing
from streaming.errors import CheckpointError
from tests.unit.scripted_engine import BOS, EOS, byte_text_model, byte_tokenizer

USER = [{"role": "user", "content": "hi"}]


def model(config=None, template_file=None, special_tokens_map=None, tokenizer=None):
    files = {"tokenizer.json": (tokenizer or byte_tokenizer()).to_str().encode()}
    if config is not None:
        files["tokenizer_config.json"] = json.dumps(config).encode()
    if special_tokens_map is not None:
        files["special_tokens_map.json"] = json.dumps(special_tokens_map).encode()
    if template_file is not None:
        files["chat_template.jinja"] = template_file.encode()
    return TextModel.from_files(files)


def render(template, messages=USER, config=None, **options):
    return model(config, template).render_chat(messages, add_generation_prompt=False, **options)


def test_text_goes_there_and_back():
    """Encoding adds special tokens only if asked to; decoding leaves them out."""
    text = byte_text_model()
    ids = text.encode("héllo", True)
    assert ids == (BOS, *text.encode("héllo", False))
    assert text.decode([*ids, EOS, 100_000]) == "héllo"
    assert text.vocab_size == 258


def test_a_checkpoint_without_tokenizer_json_says_so():
    """Other tokenizer files alone are a TokenizerMissing, which the caller can mend."""
    with pytest.raises(TokenizerMissing, match=r"no tokenizer\.json"):
        TextModel.from_files({"tokenizer.model": b"..."})


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_malformed_file_is_named(name, content):
    """A file that cannot be read is a CheckpointError with its name."""
    files = {"tokenizer.json": byte_tokenizer().to_str().encode(), name: content}
    with pytest.raises(CheckpointError, match=name):
        TextModel.from_files(files)


def test_a_prompt_is_neither_cut_nor_padded():
    """Truncation and padding that training left in tokenizer.json do not touch prompts."""
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    assert len(model(tokenizer=tokenizer).encode("hello", False)) == 5


def test_tokens_that_only_the_config_knows_are_added():
    """A token of added_tokens_decoder that tokenizer.json lacks becomes one id, in the config's order."""
    config = {
        "added_tokens_decoder": {
            "259": {"content": "<b>", "special": True},
            "258": {"content": "<a>", "special": False},
        }
    }
    text = model(config)
    assert text.encode("<a><b>", False) == (258, 259)
    assert text.decode([258, 259]) == "<a>"
    assert text.vocab_size == 260


def test_unpaired_surrogates_are_refused():
    """Text that is no Unicode is the client's error."""
    with pytest.raises(InvalidRequest, match="surrogate"):
        byte_text_model().encode("\ud83d", True)


def test_the_template_file_wins_over_the_config():
    """chat_template.jinja replaces what tokenizer_config.json holds."""
    assert render("from file", config={"chat_template": "from config"}) == "from file"
    assert render(None, config={"chat_template": "from config"}) == "from config"


def test_the_config_is_shown_with_what_other_files_hold():
    """Special tokens and the template are in the config, whichever file they came from."""
    text = model({"chat_template": "old"}, "from file", {"bos_token": "<z>"})
    assert text.config == {"chat_template": "from file", "bos_token": "<z>"}


def test_of_several_templates_the_default_is_used_unless_there_are_tools():
    """Named templates: "default", and "tool_use" once tools are given."""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]
    assert render(None, config={"chat_template": named}) == "plain"
    assert render(None, config={"chat_template": named}, tools=[{}]) == "1 tools"
    with pytest.raises(InvalidRequest, match="no chat template"):
        render(None, config={"chat_template": named[1:]})


@pytest.mark.parametrize(
    ("config", "special_tokens_map", "expected"),
    [
        ({"bos_token": "<x>"}, None, "<x>"),
        ({"bos_token": {"content": "<y>", "lstrip": False}}, None, "<y>"),
        ({"bos_token": "<x>"}, {"bos_token": "<z>"}, "<z>"),
        ({"bos_token": "<x>", "added_tokens_decoder": {"256": {"content": "<bos>"}}}, {"bos_token": "<z>"}, "<x>"),
        ({"bos_token": None}, None, ""),
    ],
    ids=["string", "AddedToken", "map wins", "map is outdated", "none"],
)
def test_special_tokens_are_variables_of_the_template(config, special_tokens_map, expected):
    """bos_token and its like come from where transformers takes them."""
    text = model(config, "{{ bos_token }}", special_tokens_map)
    assert text.render_chat(USER, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}\n  {% if m %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n", "user\n"),
        ("{% for m in messages %}{% break %}x{% endfor %}end", "end"),
        ("{{ {'ü': '<\"&>'} | tojson }}", '{"ü": "<\\"&>"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ messages[0].name is defined }}", "False"),
        ("{{ tools is none }} {{ documents is none }}", "True True"),
    ],
    ids=["blocks", "loopcontrols", "tojson", "tojson indent", "generation", "clock", "null keys", "absent"],
)
def test_templates_find_the_environment_they_are_written_for(template, expected):
    """Whitespace control, loop controls, filters and globals are transformers' own."""
    messages = [{"role": "user", "content": "hi", "name": None}]
    assert render(template, messages) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refuses"),
        ("{{ messages[7].content.x }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
    ],
    ids=["raised", "type", "undefined", "immutable", "sandbox"],
)
def test_a_template_that_fails_is_the_requests_error(template, words):
    """Whatever a template raises is an InvalidRequest about the messages."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        render(template)
    assert caught.value.param == "messages"


def test_a_template_that_is_no_jinja_is_the_checkpoints_error():
    """A broken template is found when the files are read, with its line."""
    with pytest.raises(CheckpointError, match="line 2"):
        model(template_file="ok\n{% if %}")
