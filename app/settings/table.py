"""How one setting is declared, and the table that every reader, --help and the docs are made from.

A section is a struct whose every field is `Annotated[type, Setting(...)] = default`. Knows no particular
setting and no source.
"""

# No postponed annotations here and in `tree`: a section's annotations are read as objects.
from collections.abc import Mapping
from typing import Any

import msgspec

from app.settings.kinds import BOOL, NOT, Kind

ACTIVE = "active"
# A name of a setting, with the kind of value under that name where it is not the setting's own.
Alias = str | tuple[str, Kind]


class Setting(msgspec.Struct, frozen=True):
    """Everything about a setting but its section, name and default, which are its field's.

    Args:
        kind: What it accepts.
        help: One line.
        flags: The flags; None is one made of the field's name without its `_s`. Each has a variable `COLDSTREAM_...`, and a
            boolean one its opposite `--no-...`.
        variables: Variables that users know from elsewhere, in order of precedence after our own.
        keys: Further keys of the YAML section.
        loader_key: Its key in vLLM's --model-loader-extra-config.
        unit: Of the value.
        unset: What a default of None, () or "" means.
        status: `ACTIVE`, or why giving it changes nothing.
        secret: Read from flags and the environment only, and shown nowhere.
    """

    kind: Kind
    help: str
    flags: tuple[Alias, ...] | None = None
    variables: tuple[Alias, ...] = ()
    keys: tuple[Alias, ...] = ()
    loader_key: str = ""
    unit: str = ""
    unset: str = ""
    status: str = ACTIVE
    secret: bool = False


class Row(msgspec.Struct, frozen=True):
    """A setting at its place in the tree, with every name it has."""

    section: str
    name: str
    setting: Setting
    default: Any

    @property
    def path(self) -> str:
        """The setting's name in messages and in the documentation."""
        return f"{self.section}.{self.name}"

    def flags(self) -> dict[str, Kind]:
        """Flags and what each accepts."""
        names = self.setting.flags
        flags = self._kinds((f"--{self.name.removesuffix('_s').replace('_', '-')}",) if names is None else names)
        return flags | {f"--no-{flag.removeprefix('--')}": NOT for flag, kind in flags.items() if kind is BOOL}

    def variables(self) -> dict[str, Kind]:
        """Variables and what each accepts, first in precedence first."""
        return {variable_of(flag): kind for flag, kind in self.flags().items()} | self._kinds(self.setting.variables)

    def keys(self) -> dict[str, Kind]:
        """Keys of the YAML section and what each accepts; none for a secret."""
        return {} if self.setting.secret else self._kinds((self.name, *self.setting.keys))

    def loader_keys(self) -> dict[str, Kind]:
        """Keys of vLLM's --model-loader-extra-config and what each accepts."""
        return self._kinds((self.setting.loader_key,) if self.setting.loader_key else ())

    def _kinds(self, aliases: tuple[Alias, ...]) -> dict[str, Kind]:
        return dict((alias, self.setting.kind) if isinstance(alias, str) else alias for alias in aliases)


class Section(msgspec.Struct, frozen=True):
    """A part of the settings tree whose `repr` shows that a secret is set, never the secret."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Names and values as may be shown."""
        values = {name: (getattr(self, name), setting.secret) for name, setting in declared(type(self)).items()}
        return [(name, "***" if value and secret else value) for name, (value, secret) in values.items()]


def variable_of(flag: str) -> str:
    """The variable that says what `flag` says: --max-num-seqs is COLDSTREAM_MAX_NUM_SEQS."""
    return f"COLDSTREAM_{flag.removeprefix('--').replace('-', '_').upper()}"


def declared(section: type[Section]) -> dict[str, Setting]:
    """The section's settings by field name."""
    return {name: annotation.__metadata__[0] for name, annotation in section.__annotations__.items()}


def rows_of(sections: Mapping[str, type[Section]]) -> tuple[Row, ...]:
    """The whole table, in the order of declaration."""
    return tuple(
        Row(name, field, setting, getattr(section(), field))
        for name, section in sections.items()
        for field, setting in declared(section).items()
    )
