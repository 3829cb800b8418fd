"""A turn that is written as text, as people type it and manifests hold it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from storage.yaml_text import Loader


class _Plain(Loader):
    """Without aliases, with which a short text can stand for a huge one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*), which a turn has no use for")
        return super().compose_node(parent, index)


TURN_KEYS = ("trajectory", "prompt", "negative_prompt", "input", "span", "camera", "name")


def turn_mapping(text: str, exists: Callable[[str], bool] = lambda url: False) -> dict[str, Any]:
    """What a turn that is written as text says, on the command line and in a manifest: a YAML mapping, several words
    for a prompt, or one for a trajectory, so that a typo is not taken for a prompt. exists: whether words with spaces
    are a file's name. Raises ValueError."""
    text = text.strip()
    if not text:
        raise ValueError("a turn is empty, expected a preset, a trajectory file, a prompt or a mapping")
    try:
        found = yaml.load(text, _Plain)
    except (yaml.YAMLError, RecursionError) as error:
        if text.startswith("{"):
            raise ValueError(f"turn {text!r} is not readable YAML ({' '.join(str(error).split())})") from error
        found = None
    # "Note: make it night" is a prompt, although YAML takes it for a mapping.
    if not isinstance(found, dict) or not (text.startswith("{") or {"trajectory", "prompt"} & set(found)):
        return {"prompt": text} if len(text.split()) > 1 and not exists(text) else {"trajectory": text}
    quote = 'needs quotes, such as {prompt: "paint it red, all of it"}'
    for key, value in found.items():
        if value is None and key not in TURN_KEYS:
            raise ValueError(f"turn {text!r} has the key '{key}' without a value; a text with a comma in it {quote}")
    if "#" in text and "#" not in str(found):
        raise ValueError(f"turn {text!r} ends at its # for YAML; a text with a # in it {quote}")
    return found
