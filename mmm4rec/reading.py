"""Reading what a user wrote: YAML files, and pydantic's report on their values as one sentence a key."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mmm4rec.errors import UserError

#: what was expected, by pydantic's type of error; of any other type its own words are told
EXPECTED = {
    **dict.fromkeys(("dict_type", "model_type"), "keys and values"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "list_type": "a list",
    "path_type": "a path",
    "string_type": "text",
    "string_pattern_mismatch": "a name of letters, digits, `_`, `.` and `-` that begins with a letter or digit",
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
}


class _EachKeyOnce(yaml.SafeLoader):
    """YAML's own reader takes the last of two equal keys without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping as it is written: what `<<` brings is not in it yet, and may be overridden."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    where = f"in lines {lines[key.value]} and {line}"
                    raise UserError(f"the key `{key.value}` stands twice, {where}: keep one")
                lines[key.value] = line
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file cannot be read, is not YAML, is not a mapping or has a key twice.
    """
    try:
        value = _EachKeyOnce(Path(path).read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; name a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}; save it in that encoding") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values, found {type(value).__name__}")
    return value


def validated(model: type[Any], value: Any, origin: object) -> Any:
    """Validate ``value`` and turn pydantic's report into one sentence a key."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            # in brackets stand parts that nobody wrote: which form of a value it was taken for, and `[key]`
            key = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("(", "[")))
            text = _sentence(model, item)
            lines.append(f"{key}: {text}" if key else text)
        raise UserError(f"{origin}: " + "; ".join(lines)) from None


def _sentence(model: type[Any], item: Mapping[str, Any]) -> str:
    """What is wrong with one value."""
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {is_it(item['loc'][-1], _known_keys(model, item['loc'])) or 'check its spelling'}"
    if kind == "missing":
        return "is missing"
    if kind not in EXPECTED:
        return str(item["msg"]).removeprefix("Value error, ")
    expected, found = EXPECTED[kind].format(**item.get("ctx", {})), "nothing" if value is None else repr(value)
    way_out = f"; write [{value}]" if kind == "list_type" and isinstance(value, str | int) else ""
    return f"expected {expected}, found {found}{way_out}"


def _known_keys(model: type[Any], place: Iterable[Any]) -> list[str]:
    """The keys beside the last part of a place in a configuration."""
    models = [model]
    for part in [*place][:-1]:
        inner = [m for one in models if part in one.model_fields for m in _models(one.model_fields[part].annotation)]
        models = inner or models  # names of domains, say, are no fields
    return [*chain.from_iterable(one.model_fields for one in models)]


def _models(kind: Any) -> list[type[BaseModel]]:
    """The models in a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [*chain.from_iterable(map(_models, get_args(kind)))]


def is_it(name: object, known: Iterable[str]) -> str:
    """A question after what was meant by a name; empty if no known one resembles it."""
    near = get_close_matches(str(name), list(known), 1)
    return f"is it `{near[0]}`?" if near else ""
