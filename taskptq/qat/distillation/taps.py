"""Where features are read, and reading them while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from taskptq.core import Quantizer
from taskptq.modules import AttendedTap
from taskptq.prepare.patterns import matches

__all__ = ['LOGITS', 'Tap', 'find_taps', 'recording']

Records = dict[str, list[Any]]

# Tap -> quantizers of an attention whose inputs it reads.
OPERANDS = {
    'query': ('query_quantizer',),
    'key': ('key_quantizer',),
    'query_key': ('query_quantizer', 'key_quantizer'),
    'attention': ('softmax_quantizer',),
}
PARTS = ('backbone', 'neck')
LOGITS = 'logits'
# Modules with class logits, as mm hosts call them; the first counts.
HEADS = ('bbox_head', 'decode_head', 'rpn_head', 'head')


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One place of a model.

    Args:
        module: The module.
        reads: 'output', or 'input' for its first argument.
    """

    module: nn.Module
    reads: str = 'output'


def find_taps(
    model: nn.Module, names: Sequence[str], *, within: str | None = None
) -> dict[str, Tap]:
    """Find the places of a view.

    Args:
        model: Prepared model.
        names: See ``ViewConfig.taps``.
        within: Pattern of the names of the modules; None is all.

    Returns:
        Qualified name -> place.

    Raises:
        ValueError: If a name finds nothing.
    """
    found: dict[str, Tap] = {}
    for name in names:
        own = {
            key: tap
            for key, tap in _find(model, name)
            if within is None or matches(key, within)
        }
        if not own:
            inside = '' if within is None else f' within {within!r}'
            raise ValueError(
                f'the tap {name!r} of distillation.views finds nothing'
                f'{inside} in {type(model).__name__}: it needs '
                f'{_needs(name)}; choose another tap'
            )
        found |= own
    return found


def _needs(name: str) -> str:
    if name in OPERANDS:
        return f'attentions with a {OPERANDS[name][0]}'
    if name == 'attended':
        return 'attentions with a quantized counterpart'
    if name == LOGITS:
        return f'one of the modules {", ".join(HEADS)}'
    return f'modules of that name, e.g. {PARTS[0]} or {PARTS[0]}.*'


def _find(model: nn.Module, name: str) -> Iterator[tuple[str, Tap]]:
    modules = dict(model.named_modules())
    if name in OPERANDS:
        yield from _find_operands(modules, OPERANDS[name])
        return
    head = next((head for head in HEADS if head in modules), '')
    for key, module in modules.items():
        if name == 'attended':
            wanted = isinstance(module, AttendedTap)
        elif name == LOGITS:
            wanted = key == head
        else:
            wanted = matches(key, name)
        if key and wanted:
            yield key, Tap(module=module)


def _find_operands(
    modules: Mapping[str, nn.Module], points: Sequence[str]
) -> Iterator[tuple[str, Tap]]:
    for key, module in modules.items():
        owner, _, last = key.rpartition('.')
        if last in points and isinstance(module, Quantizer):
            point = last.removesuffix('_quantizer')
            yield f'{owner}.{point}', Tap(module=module, reads='input')


@contextmanager
def recording(taps: Mapping[str, Tap]) -> Iterator[Records]:
    """Collect what passes the taps while a model runs, call by call.

    Outputs are read by replacing ``forward``, since some hosts call it past
    the module's hooks.
    """
    found: Records = {name: [] for name in taps}
    with ExitStack() as stack:
        for name, tap in taps.items():
            if tap.reads == 'input':
                stack.callback(_read_input(tap.module, found[name]).remove)
            else:
                stack.enter_context(_read_output(tap.module, found[name]))
        yield found


def _read_input(module: nn.Module, found: list[Any]) -> Any:
    return module.register_forward_pre_hook(
        lambda _, args: found.append(args[0])
    )


@contextmanager
def _read_output(module: nn.Module, found: list[Any]) -> Iterator[None]:
    own, before = module.forward, vars(module).get('forward')

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        found.append(output)
        return output

    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(module).pop('forward')
        if before is not None:
            module.forward = before
