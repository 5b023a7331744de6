"""Rebuild the optimizer and the schedulers for a quantized model.

mmengine's Runner builds both before any hook runs, from the parameters of the
float model. They are rebuilt from the config, with separate groups for the
quantizers' parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch.optim import SGD, Optimizer

from taskptq.core.settings import Number, check_keys
from taskptq.qat.model import Learned

__all__ = [
    'KINDS',
    'continue_optimization',
    'read_lr_mult',
    'rebuild_optimization',
    'separate',
]

KINDS = ('scale', 'offset', 'coefficients', 'gamma', 'beta')
# For relative steps: at AdamW's usual 1e-4, a scale moves by 0.1 % per step.
RELATIVE_MULT = 10.0
MULTIPLIER = Number(low=0, high=1e6)


def read_lr_mult(
    value: float | Mapping[str, float] | None,
) -> dict[str, float] | None:
    """Check the learning rate multipliers of a config.

    Args:
        value: One for all kinds of parameters, or some by kind, or None.

    Raises:
        SettingError: If a kind is unknown or a multiplier invalid.
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
    """Rebuild optimizer wrapper and schedulers from the runner's config.

    Args:
        runner: Runner in training; its model is quantized.
        learned: Parameters of the quantizers.
        lr_mult: See :func:`separate`.

    Raises:
        ValueError: If they were not built from the config.
    """
    config = runner.cfg.get('optim_wrapper')
    if not isinstance(config, Mapping):
        raise ValueError(
            'QATHook rebuilds the optimizer: set optim_wrapper in the config '
            'to a dict'
        )
    schedulers = runner.cfg.get('param_scheduler')
    if schedulers is None and runner.param_schedulers:
        raise ValueError(
            'QATHook rebuilds the schedulers: set param_scheduler in the '
            'config'
        )
    wrapper = runner.build_optim_wrapper(config)
    missing = {item.name for item in learned}
    for optimizer in _optimizers(wrapper):
        missing -= separate(optimizer, learned, lr_mult=lr_mult)
    if missing:
        raise ValueError(
            f'the optimizer has no group with {min(missing)}: use a '
            'constructor in optim_wrapper that covers all parameters'
        )
    runner.optim_wrapper = wrapper
    # Learning rates must be scaled with the batch size before schedulers
    # read them.
    runner.param_schedulers = None
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    if schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(schedulers)
    wrapper.initialize_count_status(
        runner.model, runner.iter, runner.max_iters
    )


def continue_optimization(
    runner: Runner, before: Any, *, iterations_per_epoch: int
) -> None:
    """Go on with a rebuilt optimization where the one before was.

    Parameters that are still trained keep their state in the optimizer;
    schedulers take the steps that they had taken.

    Args:
        runner: Runner whose optimization was just rebuilt, after an epoch.
        before: Its optimizer wrapper before that.
        iterations_per_epoch: Steps of an epoch.
    """
    known: dict[Any, Any] = {}
    for optimizer in _optimizers(before):
        known.update(optimizer.state)
    for optimizer in _optimizers(runner.optim_wrapper):
        for group in optimizer.param_groups:
            for parameter in group['params']:
                if parameter in known:
                    optimizer.state[parameter] = known[parameter]
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, Mapping):
        schedulers = [one for part in schedulers.values() for one in part]
    with warnings.catch_warnings():
        # They are told of no step of this optimizer, rightly.
        warnings.simplefilter('ignore', UserWarning)
        for _ in range(runner.epoch):
            for _ in range(iterations_per_epoch):
                _step(schedulers, by_epoch=False)
            _step(schedulers, by_epoch=True)


def _step(schedulers: Sequence[Any], *, by_epoch: bool) -> None:
    for scheduler in schedulers:
        if scheduler.by_epoch is by_epoch and not getattr(
            scheduler, 'need_val_args', False
        ):
            scheduler.step()


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
    """Move each quantizer parameter to its own group, without weight decay.

    Its learning rate is that of its group under the config's
    ``paramwise_cfg``, times the multiplier of its kind. Adam and similar
    optimizers take steps the size of the learning rate whatever the gradient,
    so there the rate is relative to the parameter's magnitude. SGD's steps
    follow the gradient, which LSQ already scales (its section 2.2).

    Args:
        optimizer: New optimizer; changed in place.
        learned: Parameters of the quantizers.
        lr_mult: Multiplier by kind of parameter (``KINDS``); missing kinds,
            or None, default to 10 for relative rates and 1 for SGD.

    Returns:
        Names of the quantizer parameters in the optimizer.
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
    # Added last, since loggers show the learning rate of the first group.
    optimizer.param_groups[:] = [*shared, *own]
    return names
