"""Checks of settings: dataclass fields and constructor arguments.

Import rules and errors from here. Dataclasses declare a rule for each field
(``setting``, ``check_fields``); other code reads single values
(``Whole(low=1).read(steps, name='steps')``) or dicts (``check_keys``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, field, fields
from functools import lru_cache
from typing import Any

from taskptq.core.rules import (
    SEED,
    Choice,
    Flag,
    Items,
    Number,
    Pattern,
    Rule,
    Subclass,
    Table,
    Text,
    Whole,
    patterns,
)
from taskptq.core.setting_error import (
    SettingError,
    check_keys,
    refuse,
    shown,
    unknown_key,
    within,
)

__all__ = [
    'BAD_ARGUMENTS',
    'SEED',
    'Choice',
    'Flag',
    'Items',
    'Number',
    'Pattern',
    'Rule',
    'SettingError',
    'Subclass',
    'Table',
    'Text',
    'Whole',
    'check_arguments',
    'check_fields',
    'check_keys',
    'keywords_of',
    'patterns',
    'refuse',
    'refusing',
    'rule_of',
    'setting',
    'shown',
    'unknown_key',
    'within',
]

# Errors that third-party constructors raise on bad arguments.
BAD_ARGUMENTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def setting(
    default: Any = MISSING,
    rule: Rule | None = None,
    *,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare a dataclass field with the rule of its values.

    Args:
        default: Default value; omit it for a required field.
        rule: Rule of its values.
        factory: Makes the default instead.
    """
    metadata = {'rule': rule}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_fields(settings: Any, *, name: str = '') -> None:
    """Check every field of a dataclass that has a rule; store plain values.

    Args:
        settings: Instance; may be frozen.
        name: Prefix of the field names in errors, without the dot.

    Raises:
        SettingError: Naming the first invalid field.
    """
    prefix = f'{name}.' if name else ''
    for known in fields(settings):
        rule = known.metadata.get('rule')
        if rule is None:
            continue
        value = getattr(settings, known.name)
        read = rule.read(value, name=f'{prefix}{known.name}')
        object.__setattr__(settings, known.name, read)


def rule_of(cls: type, name: str) -> Rule:
    """Return the rule of a dataclass field."""
    rule: Rule = cls.__dataclass_fields__[name].metadata['rule']  # type: ignore[attr-defined]
    return rule


@lru_cache(maxsize=256)
def keywords_of(cls: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return the names of a class's arguments; None if it takes any."""
    takes = inspect.signature(cls).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes):
        return None
    return tuple(one.name for one in takes)


def check_arguments(
    cls: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    name: str,
    own: Iterable[str] = (),
    also: Iterable[str] = (),
) -> None:
    """Refuse arguments that a class does not take.

    Args:
        cls: The class.
        given: Its arguments by name.
        name: Dotted name of the dict that holds them.
        own: Arguments that the caller sets, not the user.
        also: Further keys allowed in the dict.

    Raises:
        SettingError: Naming the first unknown key and the nearest known one.
    """
    keywords = keywords_of(cls)
    if keywords is None:
        return
    own = set(own)
    check_keys(
        given, [*also, *(k for k in keywords if k not in own)], name=name
    )


@contextmanager
def refusing(name: str, value: Any) -> Iterator[None]:
    """Turn a constructor's error into a SettingError.

    Args:
        name: Dotted name of the setting that is built.
        value: Given value.

    Raises:
        SettingError: The constructor's own, prefixed with ``name``, or a new
            one with its message.
    """
    try:
        with within(name):
            yield
    except SettingError:
        raise
    except BAD_ARGUMENTS as error:
        said = ' '.join(str(error).split()) or type(error).__name__
        raise refuse(name, value, said) from error
