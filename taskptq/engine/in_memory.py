"""Quantize a plain ``nn.Module`` on batches in memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core.setting_error import SettingError, refuse
from taskptq.engine.adapters import Adapter, name_tensors
from taskptq.engine.builder import build_adapter
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.pipeline import quantize_model, refuse_quantized, run_batch
from taskptq.engine.recipe import Recipe
from taskptq.engine.refusals import (
    refuse_unwritable_file,
    refuse_unwritable_folder,
)

__all__ = ['Forward', 'call_model', 'quantize_in_memory']

Forward = Callable[[nn.Module, Any], Any]

# The one child of torch's wrappers, by its name.
WRAPPED = {
    '_orig_mod': ('OptimizedModule',),
    'module': ('DataParallel', 'DistributedDataParallel'),
}
HALF = (torch.float16, torch.bfloat16)
PLAIN_LOSS = 'MSEReconLoss'
# Losses that take whatever outputs a model has.
PLAIN_LOSSES = (PLAIN_LOSS, 'OutputErrorLoss')
# Errors of a model that does not take its batch.
CALL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class ForwardAdapter(Adapter):
    """Adapter of every tensor that ``forward`` returns, by position.

    Args:
        model: Model to adapt.
        forward: Runs a model on one batch.
    """

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__(model)
        self.forward = forward

    def forward_heads(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Run a model; see ``Adapter.forward_heads``."""
        return dict(name_tensors(self.forward(model, batch)))


def quantize_in_memory(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    parts: Mapping[str, Any],
    forward: Forward | None = None,
    out: str | Path | None = None,
    work_dir: str | Path | None = None,
    unreached: str = 'error',
    seed: int = 0,
    resume: bool = True,
    meta: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Quantize a float model in place.

    Args:
        model: Float model with its weights.
        batches: Calibration batches; all are kept in memory.
        parts: Parts of a recipe, see ``Recipe.from_config``.
        forward: Runs the model on one batch; None is :func:`call_model`.
        out: Quantized file to write; None writes none, unless there is a
            ``work_dir``.
        work_dir: Folder of reports; None is the folder of ``out``.
        unreached: See ``calibrate``.
        seed: Seed of all randomness.
        resume: Continue an interrupted reconstruction.
        meta: Information for the file in plain types.

    Returns:
        The report, plain types.

    Raises:
        RuntimeError: If the model is already quantized.
        ValueError: If a setting is invalid, there is no batch, the model is
            wrapped, in half precision or does not take the batches, the loss
            needs an adapter, or results cannot be written.
    """
    refuse_quantized(model)
    refuse_wrapped(model)
    refuse_half(model)
    kept = keep_batches(batches)
    checked = CalibrationConfig.from_dict({'unreached': unreached}, seed=seed)
    run = forward or call_model
    made = Recipe.from_config(
        **parts,
        calibration=recorded(kept, unreached=checked.unreached),
        seed=seed,
    )
    adapter = choose_adapter(model, run, made)
    check_takes(model, kept[0], run)
    with ExitStack() as stack:
        keeps = out is not None or work_dir is not None
        if not keeps:
            work_dir = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(work_dir) if work_dir is not None else Path(out).parent
        refuse_unwritable_folder(folder, name='work_dir')
        if out is not None:
            refuse_unwritable_file(out, name='out')
        report = quantize_model(
            model,
            kept,
            recipe=made,
            work_dir=folder,
            out=out,
            resume=resume,
            meta=meta,
            forward=run,
            adapter=adapter,
        )
    if not keeps:
        report.pop('checkpoint', None)
    return report


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run a model on one batch, on the device of its parameters.

    Args:
        model: An mmengine model gets the batch in its ``test_step``; any
            other is called.
        batch: A dict is passed as keyword arguments, a list or tuple as
            positional ones, anything else as the only argument.
    """
    if isinstance(model, BaseModel):
        return run_batch(model, batch)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        batch = moved(batch, parameter.device)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (list, tuple)):
        return model(*batch)
    return model(batch)


def moved(value: Any, device: torch.device) -> Any:
    """Move the tensors of nested dicts, lists and tuples to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    return value


def keep_batches(batches: Any) -> list[Any]:
    """Return the batches as a list.

    Raises:
        SettingError: If there are none, or it is a single batch.
    """
    if isinstance(batches, (str, Path, Tensor, Mapping)):
        raise refuse(
            'batches',
            type(batches).__name__,
            'with a model give a list of batches, with a config give a '
            'checkpoint; for a single batch write [batch]',
        )
    if not isinstance(batches, Iterable):
        raise refuse('batches', batches, 'give a list of batches')
    kept = list(batches)
    if not kept:
        raise SettingError('batches', ' is empty: give at least one batch')
    return kept


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse what stands in front of the model, as its file would name it.

    Raises:
        ValueError: If the model is compiled, scripted, or made parallel; says
            what to give instead.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            'the model is scripted, so that its layers cannot be reached: '
            'give the model that was scripted'
        )
    kind = type(model).__name__
    for name, wrappers in WRAPPED.items():
        if kind in wrappers and list(model._modules) == [name]:
            raise ValueError(
                f'the model is inside of {kind}: give model.{name}, and wrap '
                'the result again'
            )


def refuse_half(model: nn.Module) -> None:
    """Refuse parameters in half precision.

    Raises:
        ValueError: If there are any; names the first.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype in HALF:
            raise ValueError(
                f'{name} of {type(model).__name__} is {parameter.dtype}: '
                'quantize a float32 model (call model.float() first)'
            )


def check_takes(model: nn.Module, batch: Any, run: Forward) -> None:
    """Run the float model once, before the work.

    Raises:
        ValueError: If it does not take the batch; describes the batch.
    """
    try:
        with calibration_mode(model):
            run(model, batch)
    except CALL_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f'{type(model).__name__} does not take batches[0], '
            f'{described(batch)}: {reason}; give '
            'forward=lambda model, batch: ... that calls it correctly'
        ) from error


def described(batch: Any) -> str:
    """Describe a batch for a message."""
    if isinstance(batch, Mapping):
        return f'a dict of {", ".join(map(str, batch))}'
    if isinstance(batch, (list, tuple)):
        kinds = ', '.join(type(item).__name__ for item in batch[:5])
        return f'a {type(batch).__name__} of {len(batch)} ({kinds})'
    if isinstance(batch, Tensor):
        return f'a tensor of shape {list(batch.shape)}'
    return f'a {type(batch).__name__}'


def recorded(batches: list[Any], *, unreached: str) -> dict[str, Any]:
    """Return the file's record of the batches.

    It has their digest, so that an interrupted reconstruction is only resumed
    on the same batches.
    """
    digest = hashlib.sha256()
    for name, tensor in name_tensors(batches):
        digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    found = {'num_batches': len(batches), 'inputs': digest.hexdigest()[:16]}
    return found | ({} if unreached == 'error' else {'unreached': unreached})


def choose_adapter(model: nn.Module, run: Forward, recipe: Recipe) -> Any:
    """Return the adapter registered for the model's class, or a plain one.

    Raises:
        SettingError: If the recipe's loss needs named heads, which the plain
            adapter does not have.
    """
    adapter = build_adapter(model)
    if type(adapter) is not Adapter:
        return adapter
    settings, loss = recipe.reconstruction or {}, recipe.loss or {}
    on_network = settings.get('scope') == 'network' or settings.get(
        'network_steps'
    )
    kind = str(loss.get('type', PLAIN_LOSS)).rpartition('.')[2]
    if on_network and kind not in PLAIN_LOSSES:
        raise SettingError(
            'recipe',
            f': its loss {kind} needs the named heads of an adapter, and '
            f'none is registered for {type(model).__name__}: register one in '
            'taskptq.registry.ADAPTERS, or choose a recipe that needs none, '
            'such as w4a4_qdrop',
        )
    return ForwardAdapter(model, run)
