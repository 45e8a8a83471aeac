# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Settings in YAML. Text such as `007`, `on`, `12:30` or `2024-05-01` stays text, unlike in YAML 1.1."""

import re
from typing import Any

import yaml

FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
PLAIN = {  # scalars of YAML 1.2 that are not text: pattern, and first characters for which PyYAML tries the pattern
    "null": (re.compile(r"(null|~|)$"), ["n", "~", ""]),
    "bool": (re.compile(r"(true|false)$", re.IGNORECASE), list("tfTF")),
    "int": (re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")),
    "float": (FLOAT, list("-+.0123456789")),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    """Quotes text that a YAML 1.1 or 1.2 parser would not read as text."""


for _name, (_pattern, _first) in PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # PyYAML would read 010 as octal


def read_mapping(source: str, mappings: set[str]) -> list[tuple[str, Any]]:
    """Return keys and values of a YAML mapping; each value is text, None, or a list of these.

    Args:
        mappings: Keys whose values are parsed by YAML instead of kept as text.

    Raises:
        yaml.YAMLError: `source` is not valid YAML.
        ValueError: `source` is not a mapping, or an unquoted value has a special meaning in YAML.
    """
    loader = _Loader(source)
    node = loader.get_single_node()
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("it must hold `setting: value` lines")
    pairs = []
    for key_node, value in node.value:
        key = str(key_node.value)
        pairs.append((key, loader.construct_document(value) if key in mappings else _texts(loader, value, source)))
    return pairs


def yaml_value(name: str, source: str, texts: bool) -> Any:
    """Parse the value of a setting that is a mapping, or a list, whose items stay text where `texts` is set.

    Raises:
        ValueError: `source` is not valid YAML.
    """
    loader = _Loader(source)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        return _texts(loader, node, source) if texts else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"`{name}` = {source!r} cannot be read: {' '.join(str(error).split())}") from error


def to_yaml(values: dict[str, Any]) -> str:
    """Return settings as YAML that `read_mapping` reads back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _texts(loader: yaml.SafeLoader, node: yaml.Node, source: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_texts(loader, item, source) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        return loader.construct_document(node)
    written = source[node.start_mark.index : node.end_mark.index]
    other = not node.style and written.split() != node.value.split()  # a tag or an anchor
    if other or (node.style in ("|", ">") and not node.value):
        raise ValueError(f"{written.strip()!r} has a meaning in YAML: put quotes around it")
    return None if node.tag == "tag:yaml.org,2002:null" else node.value
