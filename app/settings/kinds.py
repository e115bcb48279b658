"""What a setting's text may say: kinds of value, each with one reader.

Takes text (a flag's, a variable's, or a YAML scalar's), gives the typed value or a `ValueError`. Knows no
setting and no source.
"""

import math
from collections.abc import Callable
from typing import Any

import msgspec

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# vLLM's: small letters are powers of ten, capitals powers of two.
_COUNT_SUFFIXES = {"": 1, "k": 10**3, "K": KIB, "m": 10**6, "M": MIB, "g": 10**9, "G": GIB}
_SIZE_SUFFIXES = {**_COUNT_SUFFIXES, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_SUFFIX_LETTERS = "".join(_SIZE_SUFFIXES)
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of value.

    `accepts` completes "expected ..."; `read` raises `ValueError`. A file's value must be one of
    `native_types` (a list of them too where there may be `many`); vLLM writes a `json_list` in one text. What is not `quotable` may hold a
    secret and is not repeated in an error. `alone` is what a flag without a value says; where it is "", a value is needed.
    """

    accepts: str
    metavar: str
    read: Callable[[str], Any]
    native_types: tuple[type, ...] = (str,)
    many: bool = False
    json_list: bool = False
    quotable: bool = True
    alone: str = ""

    def reads(self, text: str) -> bool:
        """Whether `text` is of this kind."""
        try:
            self.read(text)
        except ValueError:
            return False
        return True


def bounded(read: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """`read`, but only values from `low` to `high`, both included (so never a NaN)."""

    def read_bounded(text: str) -> Any:
        value = read(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return read_bounded


def _bounds(low: float, high: float, shown: Callable[[Any], str] = str) -> str:
    return f"from {shown(low)} to {shown(high)}" if math.isfinite(high) else f"of at least {shown(low)}"


def integer(low: int, high: float = math.inf) -> Kind:
    """An integer from `low` to `high`."""
    return Kind(
        accepts=f"an integer {_bounds(low, high)}", metavar="N", read=bounded(int, low, high), native_types=(int,)
    )


def number(low: float, high: float = math.inf) -> Kind:
    """A finite number from `low` to `high`; a file may spell it as an integer."""
    read = bounded(float, low, min(high, 1e300))
    return Kind(accepts=f"a number {_bounds(low, high)}", metavar="X", read=read, native_types=(int, float))


def _suffixed(text: str, factors: dict[str, int]) -> int:
    digits = text.rstrip(_SUFFIX_LETTERS)
    suffix = text[len(digits) :]
    if suffix not in factors:
        raise ValueError(text)
    return int(digits) * factors[suffix]


def count(low: int) -> Kind:
    """An integer that may be written as vLLM does: 8k is 8000, 8K is 8192."""
    return Kind(
        accepts=f"an integer of at least {low}, such as 8192, 8k or 8K",
        metavar="N",
        read=bounded(lambda text: _suffixed(text, _COUNT_SUFFIXES), low, math.inf),
        native_types=(int, str),
    )


def size(low: int, high: float = math.inf, accepts: str | None = None) -> Kind:
    """A number of bytes, plain or with KiB, MiB, GiB (or vLLM's letters)."""
    return Kind(
        accepts=accepts or f"a size in bytes {_bounds(low, high, shown_bytes)}, such as 16777216 or 16MiB",
        metavar="BYTES",
        read=bounded(lambda text: _suffixed(text, _SIZE_SUFFIXES), low, high),
        native_types=(int, str),
    )


def mebibytes(low: int, high: int) -> Kind:
    """A whole number of MiB, read as bytes."""
    whole = integer(low, high)
    return Kind(accepts=f"{whole.accepts} (MiB)", metavar="MIB", read=lambda text: int(whole.read(text)) * MIB)


def mapped(values: dict[str, Any], *, native_types: tuple[type, ...] = (str,)) -> Kind:
    """One of a few names in any case, each with the value that it stands for."""
    by_name = {name.lower(): value for name, value in values.items()}

    def read(text: str) -> Any:
        if text.lower() not in by_name:
            raise ValueError(text)
        return by_name[text.lower()]

    return Kind(accepts=f"one of {', '.join(values)}", metavar="NAME", read=read, native_types=native_types)


def choice(*names: str) -> Kind:
    """One of `names`, in any case."""
    return mapped({name: name for name in names})


def switch(when_true: Any, when_false: Any) -> Kind:
    """A boolean that chooses between two values; a flag alone is true."""
    values = {name: when_true if value else when_false for name, value in _BOOLEANS.items()}
    return msgspec.structs.replace(
        mapped(values, native_types=(bool,)), accepts="true or false (1, 0, yes, no)", metavar="[BOOL]", alone="true"
    )


def _device(text: str) -> str:
    name = text.lower()
    if name in {"auto", "cpu", "cuda"} or (name.startswith("cuda:") and name[5:].isdigit()):
        return name
    raise ValueError("no device")


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("empty")
    return text


def _word(text: str) -> str:
    if text.startswith("["):
        raise ValueError("a list that is no JSON")
    return _not_empty(text)


def _without_secrets(text: str) -> str:
    scheme, separator, rest = _not_empty(text).partition("://")
    if separator and (not scheme or "?" in rest or "@" in rest.partition("/")[0]):
        raise ValueError("a query or a user in a URI")
    return text


BOOL = switch(when_true=True, when_false=False)
NOT = msgspec.structs.replace(switch(when_true=False, when_false=True), accepts=f"the opposite: {BOOL.accepts}")
DEVICE = Kind(accepts="auto, cpu, cuda or cuda:N", metavar="DEVICE", read=_device)
TEXT = Kind(accepts="a text that is not empty", metavar="TEXT", read=_not_empty)
TEXTS = Kind(accepts="one name or several", metavar="NAME", read=_not_empty, many=True)
WORDS = Kind(accepts="one word or several, or a JSON list", metavar="WORD", read=_word, many=True, json_list=True)
SECRET = Kind(accepts="a text that is not empty", metavar="SECRET", read=_not_empty, quotable=False)
SECRETS = Kind(accepts="one secret or several", metavar="SECRET", read=_not_empty, many=True, quotable=False)
# Not quoted, because what is wrong with it may be a secret in it.
URI = Kind(
    accepts="a URI or path without query or user (a SAS token goes into AZURE_STORAGE_SAS_TOKEN)",
    metavar="URI",
    read=_without_secrets,
    quotable=False,
)


def shown_bytes(value: float) -> str:
    """Bytes in the largest unit that divides them: 16777216 is "16 MiB"."""
    whole = int(value)
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if whole > 0 and whole % unit == 0:
            return f"{whole // unit} {name}"
    return str(whole)
