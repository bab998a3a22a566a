"""The config of an experiment. A file under `configs/` starts from `default_config()` and sets what differs.

`fields` is the table of all fields, `validate` checks a config, `files` finds and runs config files and sets fields
from the command line, `reference` writes the table for people (`--help`, docs/config.md).
"""

from inception_jax.config.fields import (
    CHOICES,
    FIELDS,
    Config,
    Field,
    default_config,
    field_names,
    get_field,
    may_differ,
    per_process,
)
from inception_jax.config.validate import check_types, validate

__all__ = [
    "CHOICES",
    "FIELDS",
    "Config",
    "Field",
    "check_types",
    "default_config",
    "field_names",
    "get_field",
    "may_differ",
    "per_process",
    "validate",
]
