"""Options of a command from a file: TOML, JSON or YAML, with the options' long names as keys.

What the command line says as well goes before the file.
"""

from __future__ import annotations

import argparse
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sketchlayers._runtime.extras import missing
from sketchlayers._runtime.files import shortened
from sketchlayers.cli.messages import WrongInput

_ENDINGS = (".toml", ".json", ".yaml", ".yml")


def with_config(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with those of ``--config FILE`` before them; unchanged without it.

    Args:
        parser: of the command, with all its arguments.
        arguments: of the command line, after the command.

    Raises:
        WrongInput: the file is missing or damaged, or has other keys than the command has options.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(arguments)[0].config
    if path is None or "--config" not in parser._option_string_actions:
        return list(arguments)
    options = {
        string.removeprefix("--"): action
        for action in parser._actions
        for string in action.option_strings
        if string.startswith("--") and not string.startswith("--no-")
    }
    given = _given(parser, arguments)
    rival = {id(action) for action in _rivals(parser, given)}
    has_model = not arguments[0].startswith("-")
    model, rest = list(arguments[:has_model]), list(arguments[has_model:])
    tokens: list[str] = []
    for key, value in _read(path).items():
        name = str(key).replace("_", "-")
        if name == "model":
            model = model or [str(value)]
            continue
        action = options.get(name)
        if action is None or name in ("help", "config"):
            close = difflib.get_close_matches(name, options, n=3)
            hint = f"; close ones: {', '.join(close)}" if close else ""
            raise WrongInput(
                f"--config: {path} must have the options of the command as keys (got {key!r}{hint})"
            )
        if action.dest not in given and id(action) not in rival:
            tokens += _tokens(f"--{name}", action, value, path)
    return [*model, *tokens, *rest]


def _given(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> set[str]:
    """Where the parser keeps what the command line says."""
    options = {argument.partition("=")[0] for argument in arguments}
    return {action.dest for action in parser._actions if options & {*action.option_strings}}


def _rivals(parser: argparse.ArgumentParser, given: set[str]) -> list[argparse.Action]:
    """Options that do not go with one that is given."""
    groups = (group._group_actions for group in parser._mutually_exclusive_groups)
    return [action for group in groups if given & {one.dest for one in group} for action in group]


def _tokens(option: str, action: argparse.Action, value: Any, path: Path) -> list[str]:
    """An option with its value, as a shell would give it."""
    if isinstance(value, Mapping):  # rates of layers
        return [token for key, one in value.items() for token in (option, f"{key}={one}")]
    if isinstance(value, list):
        texts = [_plain(option, one, path) for one in value]
        if action.nargs == "+":
            return [option, *texts] if texts else []
        return [token for text in texts for token in (option, text)]
    if value is None or value is False:
        no = f"--no-{option.removeprefix('--')}"
        return [no] if value is False and no in action.option_strings else []
    if value is True and (action.nargs in (0, "?")):
        return [option]
    return [option, _plain(option, value, path)]


def _plain(option: str, value: Any, path: Path) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise WrongInput(
            f"--config: {option} in {path} must be a number, a text or a list of those "
            f"(got {value!r})"
        )
    return str(value)


def _read(path: Path) -> Mapping[str, Any]:
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise WrongInput(f"--config must be a file in one of {', '.join(_ENDINGS)} (got {path})")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise WrongInput(f"no such file: {path}") from error
    except ValueError as error:
        raise WrongInput(f"cannot read {path}: it must be text in UTF-8") from error
    if ending in (".yaml", ".yml"):
        contents = _yaml(text, path)
    else:
        try:
            contents = tomllib.loads(text) if ending == ".toml" else json.loads(text)
        except ValueError as error:
            raise WrongInput(f"cannot read {path}: {shortened(error)}") from error
    if not isinstance(contents, Mapping):
        raise WrongInput(f"{path} must have options and values (got {type(contents).__name__})")
    return contents


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        what = f"--config {path} (without it: a .toml or .json file)"
        raise ImportError(missing(what, "PyYAML")) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise WrongInput(f"cannot read {path}: {shortened(error)}") from error
