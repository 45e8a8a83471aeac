"""A script's options beside the settings that they fill; the scripts write them out, so that --help answers at once."""

import argparse
import dataclasses
from collections.abc import Sequence


def check_options(parser: argparse.ArgumentParser, settings: type, inverted: Sequence[str] = ()):
    """Same names, defaults and reasons, but for the reasons of `inverted`: options that turn something off."""
    options = {action.dest: action for action in parser._actions if action.dest != "help"}
    fields = {field.name: field for field in dataclasses.fields(settings)}
    assert options.keys() == fields.keys()
    for name, field in fields.items():
        if field.default is not dataclasses.MISSING:
            assert options[name].default == field.default, name
        if name not in inverted:
            assert options[name].help == field.type.__metadata__[0], name
