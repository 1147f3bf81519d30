"""Reads and writes YAML. Reading is strict: no Python objects, no key twice, and each fault is one clear line."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice: the second would silently win.

    A mapping may take over the keys of others (`<<: *anchor`). A key beside `<<` overrides one that is taken over.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[yaml.Node] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Puts the keys that a mapping takes over before its own.

        A node is checked when it comes here first, because afterwards it holds the keys that it took over as well.
        """
        if node not in self._checked:
            self._checked.add(node)
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            taking = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if taking else self.construct_object(key_node, deep=True)
            if key in seen:
                cure = "; give it a list: `<<: [*one, *other]`" if taking else ""
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice{cure}", key_node.start_mark
                )
            seen.add(key)


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    """The mapping in a YAML node, for the loader."""
    loader.flatten_mapping(node)
    mapping: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

# What the loader raises for a text that is no YAML: the last three for odd keys, numbers and depths.
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds no mapping or more than one document.
    """
    documents = read_documents(path)
    if len(documents) > 1:
        raise ConfigError(str(path), [f"holds {len(documents)} documents, parted by `---`; it must hold one"])
    return documents[0]


def read_documents(path: Path) -> list[dict[str, Any]]:
    """The mappings in a YAML file of one or more documents, parted by `---`. Empty documents are left out.

    Raises:
        ConfigError: the file is missing, is not YAML, or a document holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(str(path), [f"cannot be read: {reason}"]) from error
    try:
        values = [value for value in yaml.load_all(text, Loader=_StrictLoader) if value is not None]
    except _NOT_YAML as error:
        raise ConfigError(str(path), [f"is not valid YAML: {' '.join(str(error).split())}"]) from error
    if not values or not all(isinstance(value, dict) for value in values):
        raise ConfigError(str(path), ["must hold a mapping of keys to values"])
    return values


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        where: what names the text, for the message.

    Raises:
        ConfigError: the text is not YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except _NOT_YAML as error:
        raise ConfigError(where, [f"{text!r} is not YAML"]) from error


def write_yaml(value: Any) -> str:
    """A value as YAML text. Keys keep their order, and short sequences stand on one line."""
    text: str = yaml.dump(value, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
    return text


def write_documents(values: Iterable[Any]) -> str:
    """Values as a YAML text of several documents, parted by `---`."""
    return "---\n".join(write_yaml(value) for value in values)
