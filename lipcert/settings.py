"""Settings as checked values: what every file of literals and every notebook's parameters go through.

An unknown or mistyped key is an error that lists the known ones; nothing is converted silently.
"""

import difflib
import re
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from lipcert.radius import Radius


def _radius_text(value: Any) -> str:
    return str(Radius(value))


def _number_or_text(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(value).removesuffix(".0") if number else value  # one text for 1 and 1.0: it goes into the run's id


RadiusText = Annotated[str, BeforeValidator(_radius_text)]
ScheduleText = Annotated[str, BeforeValidator(_number_or_text)]  # in the language of lipcert.schedules


class ConfigError(ValueError):
    """Settings that cannot be run; the message names every offending key, its value, the rule and the known keys."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, settings: Any) -> Any:
        # YAML and JSON know lists only.
        if not isinstance(settings, dict):
            return settings
        return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


_LIMITS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "multiple of",
}


def describe(cls: type[Settings]) -> str:
    """Every known key with type, range, default and meaning: what error messages and `--help` print."""
    lines = []
    for name, schema in cls.model_json_schema()["properties"].items():
        options = schema.get("anyOf", [schema])
        kinds = [
            "|".join(map(str, o["enum"]))
            if "enum" in o
            else o.get("const") or ("none" if o.get("type") == "null" else o.get("type", ""))
            for o in options
        ]
        bounds = [f"{sign} {o[key]}" for o in options for key, sign in _LIMITS.items() if key in o]
        default = "required" if "default" not in schema else f"default {schema['default']}"
        lines.append(
            f"  {name}: {' or '.join(kinds)}{' ' + ', '.join(bounds) if bounds else ''}; {default}; "
            f"{schema.get('description', '')}"
        )
    return "\n".join(lines)


def parse(cls: type[Settings], settings: dict[str, Any]) -> Any:
    """Checked settings from untrusted ones.

    Whole floats are not integers here and text is not a number: `depth=12.5`, `depth="twelve"` and `dpeth=12` are
    refused, each with its value, the rule and the list of known keys.

    Raises:
        ConfigError: with one line per offending key.
    """
    try:
        return cls(**settings)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"][:1]))
            if problem["type"] == "extra_forbidden":
                lines.append(f"{key}={problem['input']!r}: unknown parameter{_suggest(key, cls)}")
            elif key:
                lines.append(f"{key}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}")
            else:
                lines.append(problem["msg"].removeprefix("Value error, "))
        message = "\n".join(lines) + f"\nKnown parameters:\n{describe(cls)}"
        raise ConfigError(message) from None


def plain_values(namespace: dict[str, Any]) -> dict[str, Any]:
    """The literals among a notebook's variables, IPython's own left out."""
    literals = (bool, int, float, str, list, tuple, dict, type(None))
    own = ("In", "Out")
    return {k: v for k, v in namespace.items() if not k.startswith("_") and k not in own and isinstance(v, literals)}


def _suggest(key: str, cls: type[Settings]) -> str:
    close = difflib.get_close_matches(key, cls.model_fields, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class _Loader(yaml.SafeLoader):
    """PyYAML with the numbers of YAML 1.2: `1e-3` is one, not text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Literals only, as `yaml.safe_load`."""
    return yaml.load(text, _Loader)
