# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Settings in YAML: words as they are written, whatever YAML 1.1 makes of `007`, `on`, `12:30` or `2024-05-01`."""

import re
from typing import Any

import yaml

FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
PLAIN = {  # the plain scalars of YAML 1.2 that are no text; what begins with one of the characters is compared
    "null": (re.compile(r"(null|~|)$"), ["n", "~", ""]),
    "bool": (re.compile(r"(true|false)$", re.IGNORECASE), list("tfTF")),
    "int": (re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")),
    "float": (FLOAT, list("-+.0123456789")),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or 1.2 would read as something else."""


for _name, (_pattern, _first) in PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 010 is ten


def read_mapping(source: str, mappings: set[str]) -> list[tuple[str, Any]]:
    """Keys and values of a YAML mapping, each value as its text, None, or a list of such.

    Args:
        source: the YAML.
        mappings: keys whose values are not texts but what YAML makes of them.

    Raises:
        yaml.YAMLError: it is no YAML.
        ValueError: it is no mapping, or holds what YAML does not take as it is written.
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
    """The value of one setting that is a list or a mapping.

    Args:
        name: of the setting, for the message.
        source: its YAML.
        texts: leave what it lists as texts.

    Raises:
        ValueError: it cannot be read.
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
    """Settings as YAML, which `read_mapping` reads as the same values."""
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
