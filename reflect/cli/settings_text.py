"""Texts generated from the descriptions of the settings: reflect.toml and docs/settings.md.

`python -m reflect.cli.settings_text > docs/settings.md` writes the page again; a test compares
them.
"""

from __future__ import annotations

import json
from dataclasses import Field, fields

from reflect.config import Settings, allowed

PAGE = """# Settings

Every setting can be given in `reflect.toml` (`reflect init` writes one with the defaults), as an
environment variable `REFLECT_NAME` in capitals (`REFLECT_MAX_TOKENS=200`), to
`reflect.open(NAME=...)` in Python, and where a command has it as a flag. A flag takes precedence
over the environment, the environment over `reflect.toml`, and that over the default.
A value that is out of bounds, not a finite number or of another type is an error (exit code 2).

This page is generated: `python -m reflect.cli.settings_text > docs/settings.md`.

| setting | default | values | description |
|---|---|---|---|
"""


def toml() -> str:
    """reflect.toml: each setting with its description and its default, commented out."""
    text = (
        "# Settings of reflect. Uncomment a line to change it. Flags and REFLECT_NAME take "
        "precedence.\n\n"
    )
    for setting in fields(Settings):
        text += f"## {setting.metadata['description']}\n"
        text += f"# {setting.name} = {json.dumps(setting.default)}\n"
    return text


def page() -> str:
    """docs/settings.md."""
    rows = "".join(
        f"| `{x.name}` | `{json.dumps(x.default)}` | {_values(x)} | {x.metadata['description']} |\n"
        for x in fields(Settings)
    )
    return PAGE + rows


def _values(setting: Field[object]) -> str:
    if setting.metadata["choices"] or isinstance(setting.default, bool):
        values = setting.metadata["choices"] or ("true", "false")
        return ", ".join(f"`{value}`" if value else "empty" for value in values)
    return allowed(setting)


if __name__ == "__main__":
    print(page(), end="")
