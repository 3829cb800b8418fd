"""YAML in which no key is given twice: PyYAML lets the last one win and says nothing."""

from __future__ import annotations

from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """For `yaml.load`. A YAMLError of one line names a key that one mapping has twice, and its line."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key '{key.value}' in line {line} was given before; keep one of the two")
            keys.add(key.value)
        return node
