"""YAML files of users: mappings, settings, studies, and the records of runs."""

from pathlib import Path
from typing import Any

import yaml

from jacrec.util.files import read_text


class RepeatedKey(ValueError):
    """A mapping has a key twice; YAML's loaders would keep the last one alone."""


def _expect_unique_keys(root: yaml.Node | None) -> None:
    """Raise RepeatedKey for a key given twice in one mapping; what a merge (<<) brings does not count."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                waiting.extend((key, value))
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    line = key.start_mark.line + 1
                    if (key.tag, key.value) in lines:
                        raise RepeatedKey(f"{key.value!r} in lines {lines[key.tag, key.value]} and {line}")
                    lines[key.tag, key.value] = line


def read_yaml(path: Path, remedy: str) -> Any:
    """The content of a YAML file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or a mapping has a key twice. The error ends with the `remedy`.
    """
    text = read_text(path, remedy)
    try:
        _expect_unique_keys(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except RepeatedKey as error:
        raise ValueError(f"{path}: expected each key once, got {error}; {remedy}") from None
    except Exception as error:  # besides YAMLError whatever scalars such as !!int x or 2000-99-99 raise
        raise ValueError(f"{path}: expected YAML, cannot read it: {' '.join(str(error).split())}; {remedy}") from None
