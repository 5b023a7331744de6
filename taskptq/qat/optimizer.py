"""Optimizer and schedulers over a model that has become a quantized one.

mmengine's Runner builds both before any hook runs, around the parameters of
the float model. They are built once more from the config, and parameters of
quantizers get groups of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch.optim import SGD, Optimizer

from taskptq.core.settings import Number, check_keys
from taskptq.qat.model import Learned

__all__ = ['KINDS', 'read_lr_mult', 'rebuild_optimization', 'separate']

KINDS = ('scale', 'offset', 'gamma', 'beta')
# Of relative steps: at AdamW's usual 1e-4 a scale moves by 1e-3 of itself.
RELATIVE_MULT = 10.0
MULTIPLIER = Number(low=0, high=1e6)


def read_lr_mult(
    value: float | Mapping[str, float] | None,
) -> dict[str, float] | None:
    """Check the learning rate multipliers of a config.

    Args:
        value: One for all, or some by kind of parameter, or None.

    Raises:
        SettingError: If a kind is unknown or a multiplier impossible.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        mult = float(MULTIPLIER.read(value, name='lr_mult'))
        return dict.fromkeys(KINDS, mult)
    check_keys(value, KINDS, name='lr_mult')
    return {
        kind: float(MULTIPLIER.read(mult, name=f'lr_mult.{kind}'))
        for kind, mult in value.items()
    }


def rebuild_optimization(
    runner: Runner,
    learned: Sequence[Learned],
    *,
    lr_mult: Mapping[str, float] | None,
) -> None:
    """Build optimizer wrapper and schedulers anew, from the runner's config.

    Args:
        runner: Runner in training; its model is quantized.
        learned: Parameters of the quantizers.
        lr_mult: See :func:`separate`.

    Raises:
        ValueError: If the config does not say how to build them.
    """
    config = runner.cfg.get('optim_wrapper')
    if not isinstance(config, Mapping):
        raise ValueError(
            'QATHook builds the optimizer anew: give optim_wrapper to the '
            'config as a dict'
        )
    schedulers = runner.cfg.get('param_scheduler')
    if schedulers is None and runner.param_schedulers:
        raise ValueError(
            'QATHook builds the schedulers anew: give param_scheduler to the '
            'config'
        )
    wrapper = runner.build_optim_wrapper(config)
    missing = {item.name for item in learned}
    for optimizer in _optimizers(wrapper):
        missing -= separate(optimizer, learned, lr_mult=lr_mult)
    if missing:
        raise ValueError(
            f'the optimizer has no group with {min(missing)}: take a '
            'constructor in optim_wrapper that covers all parameters'
        )
    runner.optim_wrapper = wrapper
    # Learning rates are scaled with the batch size before schedulers exist.
    runner.param_schedulers = None
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    if schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(schedulers)
    wrapper.initialize_count_status(
        runner.model, runner.iter, runner.max_iters
    )


def _optimizers(wrapper: Any) -> Iterator[Optimizer]:
    if isinstance(wrapper, OptimWrapperDict):
        for part in wrapper.values():
            yield part.optimizer
    else:
        yield wrapper.optimizer


def separate(
    optimizer: Optimizer,
    learned: Sequence[Learned],
    *,
    lr_mult: Mapping[str, float] | None,
) -> set[str]:
    """Give each parameter of a quantizer its own group, without decay.

    Its learning rate is that of the group which the config's
    ``paramwise_cfg`` put it into, times the multiplier of its kind. Steps of
    Adam and its like have the size of the learning rate whatever the
    gradient's, so there the rate is relative to the parameter's magnitude;
    SGD's steps follow the gradient, which LSQ scales by itself (section
    2.2).

    Args:
        optimizer: Just built; changed in place.
        learned: Parameters of the quantizers.
        lr_mult: By kind of parameter (``KINDS``); None, or a kind left out,
            is 10 for relative rates and 1 for SGD.

    Returns:
        Names of the parameters that the optimizer has.
    """
    relative = not isinstance(optimizer, SGD)
    by_id = {id(item.parameter): item for item in learned}
    shared: list[dict[str, Any]] = []
    own: list[dict[str, Any]] = []
    names: set[str] = set()
    for group in optimizer.param_groups:
        found = [by_id[id(p)] for p in group['params'] if id(p) in by_id]
        for item in found:
            mult = (lr_mult or {}).get(
                item.kind, RELATIVE_MULT if relative else 1.0
            )
            if relative:
                mult *= item.magnitude()
            own.append(
                {
                    **group,
                    'params': [item.parameter],
                    'lr': group['lr'] * mult,
                    'weight_decay': 0.0,
                }
            )
            names.add(item.name)
        rest = [p for p in group['params'] if id(p) not in by_id]
        if rest:
            group['params'] = rest
            shared.append(group)
    # Own groups come last: loggers show the rate of the first.
    optimizer.param_groups[:] = [*shared, *own]
    return names
