"""Keep a Runner from reading code, or weights of another model.

mmengine's loader unpickles whatever the safe mode of ``torch.load`` refuses.
A guarded runner reads the same file through our own loader, which accepts
only plain types. Checking and reading are one step, so the file cannot be
exchanged in between and is held in memory once.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, get_local_rank
from mmengine.hooks import Hook
from mmengine.model import PretrainedInit, is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from taskptq.core.setting_error import shown
from taskptq.engine.checkpoint_file import local_file, read_checkpoint
from taskptq.engine.fit import refuse_misfit
from taskptq.export.runtime import is_onnx_path

__all__ = [
    'drop_config_text',
    'guard_runner',
    'guarded_path',
    'guarded_runner',
    'refuse_resumed_misfit',
]

# Prefixes of paths that only the loaders below may read.
CHECKED = 'taskptq-checked:'
RESUMED = 'taskptq-resumed:'


def guard_runner(
    runner: Runner, *, training: bool, trust_checkpoint: bool = False
) -> None:
    """Make a runner read its checkpoint without running code from it.

    A URL is downloaded once. Call this in ``before_run``, before the runner
    reads. Does nothing if weights are already loaded.

    Args:
        runner: Runner that is about to train or to evaluate.
        training: Whether it trains; pretrained files in the model's
            ``init_cfg`` are then read in the same way.
        trust_checkpoint: Leave reading to mmengine, which may run code.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the runner would resume without training, or read from
            a storage that cannot be checked.
    """
    resume = runner._resume
    if resume and not training:
        raise ValueError(
            'resume=True continues a training, but this run evaluates: give '
            'the checkpoint as load_from, with resume=False'
        )
    if getattr(runner, '_has_loaded', False):
        return
    source = resume if isinstance(resume, str) else runner._load_from
    if resume and source is None:
        source = find_latest_checkpoint(runner.work_dir)
    if is_onnx_path(source) and not training:
        # PTQHook claims it, and reads it without running code, too.
        return
    if source is not None:
        runner._load_from = guarded(
            str(source), resume=bool(resume), trust_checkpoint=trust_checkpoint
        )
        runner._resume = bool(resume)
    if training and not trust_checkpoint:
        guard_pretrained(runner.model)


def guarded_runner(
    cfg: Config, *, training: bool, trust_checkpoint: bool = False
) -> Runner:
    """Build the runner of a config, guarded independently of its hooks.

    Args:
        cfg: Config of the run.
        training: See :func:`guard_runner`.
        trust_checkpoint: See :func:`guard_runner`; also set in its hooks.

    Raises:
        FileNotFoundError: See :func:`guard_runner`.
        ValueError: See :func:`guard_runner`.
    """
    if 'runner_type' in cfg:
        runner = RUNNERS.build(cfg)
    else:
        runner = Runner.from_cfg(cfg)
    hooks = [
        hook for hook in runner.hooks if hasattr(hook, 'trust_checkpoint')
    ]
    trusted = trust_checkpoint or any(h.trust_checkpoint for h in hooks)
    for hook in hooks:
        hook.trust_checkpoint = trusted
    guard_runner(runner, training=training, trust_checkpoint=trusted)
    if training and not hooks:
        runner.register_hook(ResumeFitHook())
    return runner


class ResumeFitHook(Hook):
    """Refuse to resume a training with weights of another model.

    For runners without a hook of ours. Weights to start a training from may
    fit only in part.
    """

    priority = 'VERY_HIGH'

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Check the weights of a checkpoint to resume.

        Raises:
            ValueError: See ``refuse_misfit``.
        """
        refuse_resumed_misfit(runner, checkpoint)


def refuse_resumed_misfit(
    runner: Runner, checkpoint: Mapping[str, Any]
) -> None:
    """Refuse weights of another model if the runner resumes.

    Args:
        runner: Runner that is loading the checkpoint.
        checkpoint: Contents of the file.

    Raises:
        ValueError: See :func:`refuse_misfit`.
    """
    if not runner._resume:
        return
    model = runner.model
    while is_model_wrapper(model):
        model = model.module
    refuse_misfit(
        model,
        checkpoint,
        path=guarded_path(runner._load_from),
        logger=runner.logger,
    )


def guarded_path(load_from: str | None) -> Path | None:
    """Return the file that a guarded runner reads, or None."""
    if load_from is None:
        return None
    for prefix in (CHECKED, RESUMED):
        load_from = load_from.removeprefix(prefix)
    return Path(load_from)


def guarded(
    source: str, *, resume: bool = False, trust_checkpoint: bool = False
) -> str:
    """Return the guarded location to read instead of ``source``.

    Args:
        source: Path, URL, or ``torchvision://`` or ``open-mmlab://`` and a
            name.
        resume: Whether a training continues from it.
        trust_checkpoint: See :func:`guard_runner`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If its storage cannot be checked.
    """
    if source.startswith((CHECKED, RESUMED)):
        return source
    location = zoo_url(source)
    if location is None:
        if trust_checkpoint:
            return source
        raise ValueError(
            f'{source} cannot be checked before it is read: copy it to a '
            'local file or, if you trust its source, allow it with '
            'trust_checkpoint=True'
        )
    path = str(fetched(location))
    if trust_checkpoint:
        return path
    return f'{RESUMED if resume else CHECKED}{path}'


def zoo_url(source: str) -> str | None:
    """Return the path or URL behind a name of mmengine's loader.

    Args:
        source: See :func:`guarded`.

    Returns:
        The location; None for other storages, e.g. ``s3://``.

    Raises:
        ValueError: If the model zoo has no such name.
    """
    scheme, separator, name = source.partition('://')
    if not separator or scheme in ('http', 'https'):
        return source
    if scheme in ('torchvision', 'modelzoo'):
        known = mmengine_checkpoint.get_torchvision_models()
    elif scheme in ('open-mmlab', 'openmmlab'):
        known = mmengine_checkpoint.get_external_models()
        renamed = mmengine_checkpoint.get_deprecated_model_names()
        name = renamed.get(name, name)
    else:
        return None
    if name not in known:
        raise ValueError(f'{source}: the model zoo has no {name}')
    found = str(known[name])
    if '://' not in found:
        home = mmengine_checkpoint._get_mmengine_home()
        return str(Path(home) / found)
    return found


def fetched(location: str) -> Path:
    """Return a local path; processes on one machine share one download."""
    if '://' not in location:
        return local_file(location).absolute()
    try:
        if get_local_rank() == 0:
            local_file(location)
    finally:
        barrier()
    return local_file(location).absolute()


@CheckpointLoader.register_scheme(prefixes=CHECKED, force=True)
def load_from_checked(
    filename: str, map_location: Any = None
) -> dict[str, Any]:
    """Read a guarded file for mmengine, onto the CPU.

    Args:
        filename: Path with the prefix.
        map_location: Unused; callers copy the tensors themselves.

    Raises:
        ValueError: See ``read_checkpoint``.
    """
    checkpoint = read_checkpoint(filename.removeprefix(CHECKED))
    drop_config_text(checkpoint)
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=RESUMED, force=True)
def load_from_resumed(
    filename: str, map_location: Any = None
) -> dict[str, Any]:
    """Read a guarded file to resume a training from.

    Args:
        filename: Path with the prefix.
        map_location: Unused; callers copy the tensors themselves.

    Raises:
        ValueError: If it is not the checkpoint of a training; see also
            ``read_checkpoint``.
    """
    path = filename.removeprefix(RESUMED)
    checkpoint = read_checkpoint(path)
    drop_config_text(checkpoint)
    problem = training_state_problem(checkpoint)
    if problem is not None:
        raise ValueError(
            f'{path} is not the checkpoint of an interrupted training: '
            f'{problem}; start from it with load_from and without resume'
        )
    return checkpoint


def training_state_problem(checkpoint: Mapping[str, Any]) -> str | None:
    """Return what would break a resume, or None."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping):
        return 'it has no meta'
    for name in ('epoch', 'iter'):
        value = meta.get(name)
        if not isinstance(value, Integral) or value < 0:
            return f'meta.{name} is {shown(value)}'
    if not isinstance(meta.get('seed'), Integral | None):
        return f'meta.seed is {shown(meta["seed"])}'
    hub = checkpoint.get('message_hub')
    for name in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not (
            isinstance(hub, Mapping) and isinstance(hub.get(name), Mapping)
        ):
            return f'it has no message_hub.{name}'
    if not isinstance(checkpoint.get('optimizer', {}), dict):
        return 'optimizer is not a dict'
    if not isinstance(checkpoint.get('param_schedulers', []), dict | list):
        return 'param_schedulers is neither a list nor a dict'
    return None


def drop_config_text(checkpoint: Mapping[str, Any]) -> None:
    """Remove the config's text, which ``Runner.resume`` runs as Python.

    The runner only reads the number of GPUs from it, for checkpoints older
    than mmengine.

    Args:
        checkpoint: Loaded checkpoint; changed in place.
    """
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        meta.pop('config', None)


def guard_pretrained(model: nn.Module) -> None:
    """Make the files of ``init_cfg`` be read without running code.

    Args:
        model: Built model; its modules get changed copies of ``init_cfg``.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: See :func:`guarded`.
    """
    for module in model.modules():
        init_cfg = getattr(module, 'init_cfg', None)
        if init_cfg:
            module.init_cfg = _guarded_init(init_cfg)


def _guarded_init(init_cfg: Any) -> Any:
    if isinstance(init_cfg, (list, tuple)):
        return type(init_cfg)(_guarded_init(item) for item in init_cfg)
    if not isinstance(init_cfg, Mapping):
        return init_cfg
    kind, source = init_cfg.get('type'), init_cfg.get('checkpoint')
    if kind not in ('Pretrained', PretrainedInit) or not isinstance(
        source, str
    ):
        return init_cfg
    copied = init_cfg.copy()
    copied['checkpoint'] = guarded(source)
    return copied
