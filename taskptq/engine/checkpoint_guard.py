"""What a Runner may read: no code, and no weights of another model.

mmengine's loader unpickles whatever the safe way of ``torch.load`` refuses.
A guarded runner is pointed at the same file through a loader of ours, which
reads plain types only. The check and the reading are one step, so nobody can
exchange the file in between, and its content is held once.
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

__all__ = [
    'drop_config_text',
    'guard_runner',
    'guarded_path',
    'guarded_runner',
    'refuse_resumed_misfit',
]

# In front of the path of a file that only the loaders below may read.
CHECKED = 'taskptq-checked:'
RESUMED = 'taskptq-resumed:'


def guard_runner(
    runner: Runner, *, training: bool, trust_checkpoint: bool = False
) -> None:
    """Make a runner read its checkpoint without running code from it.

    A file behind a URL is fetched, once. Call it in ``before_run``, after
    which the runner reads. Does nothing where weights are loaded already.

    Args:
        runner: Runner that is about to train or to evaluate.
        training: Whether it trains; then pretrained files that the model's
            ``init_cfg`` names are read in the same way.
        trust_checkpoint: Leave reading to mmengine, which may run code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the runner would resume without training, or read from
            where nothing can be checked.
    """
    resume = runner._resume
    if resume and not training:
        raise ValueError(
            'resume=True goes on with a training, and this run evaluates: '
            'give the checkpoint as load_from, with resume=False'
        )
    if getattr(runner, '_has_loaded', False):
        return
    source = resume if isinstance(resume, str) else runner._load_from
    if resume and source is None:
        source = find_latest_checkpoint(runner.work_dir)
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
    """Build the runner of a config, guarded whatever its hooks are.

    Args:
        cfg: Config of the run.
        training: See :func:`guard_runner`.
        trust_checkpoint: See :func:`guard_runner`; set in its hooks, too.

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
    """Refuses to go on with a training from weights of another model.

    For runners without a hook of ours. Weights that a training starts from
    may fit in part only.
    """

    priority = 'VERY_HIGH'

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Check the weights of a resumed checkpoint.

        Raises:
            ValueError: See ``refuse_misfit``.
        """
        refuse_resumed_misfit(runner, checkpoint)


def refuse_resumed_misfit(
    runner: Runner, checkpoint: Mapping[str, Any]
) -> None:
    """Refuse weights of another model where a training goes on.

    Args:
        runner: Runner that is loading the checkpoint.
        checkpoint: Content of the file.

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
    """Return the file that a guarded runner reads, None if there is none."""
    if load_from is None:
        return None
    for prefix in (CHECKED, RESUMED):
        load_from = load_from.removeprefix(prefix)
    return Path(load_from)


def guarded(
    source: str, *, resume: bool = False, trust_checkpoint: bool = False
) -> str:
    """Return what mmengine's loader is to read instead of ``source``.

    Args:
        source: What a config may give: path, URL, ``torchvision://`` or
            ``open-mmlab://`` and a name.
        resume: Whether a training goes on from it.
        trust_checkpoint: See :func:`guard_runner`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of a storage that is read by other means.
    """
    if source.startswith((CHECKED, RESUMED)):
        return source
    location = zoo_url(source)
    if location is None:
        if trust_checkpoint:
            return source
        raise ValueError(
            f'{source} cannot be checked before it is read: copy it to a '
            'local file, or if you trust its source, allow it with '
            'trust_checkpoint=True'
        )
    path = str(fetched(location))
    if trust_checkpoint:
        return path
    return f'{RESUMED if resume else CHECKED}{path}'


def zoo_url(source: str) -> str | None:
    """Return the path or URL behind a name of mmengine's loader.

    Args:
        source: As for :func:`guarded`.

    Returns:
        None for storages that are read by other means, e.g. ``s3://``.

    Raises:
        ValueError: If a model zoo has no such name.
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
        raise ValueError(f'{source}: that model zoo has no {name}')
    found = str(known[name])
    if '://' not in found:
        home = mmengine_checkpoint._get_mmengine_home()
        return str(Path(home) / found)
    return found


def fetched(location: str) -> Path:
    """Return a local path; processes of one machine share one download."""
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
    """Read a guarded file for mmengine; its tensors come to the CPU.

    Args:
        filename: Path behind the prefix.
        map_location: Where the caller copies the tensors to by itself.

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
    """Read a guarded file from which a training goes on.

    Args:
        filename: Path behind the prefix.
        map_location: Where the caller copies the tensors to by itself.

    Raises:
        ValueError: See ``read_checkpoint``; or if it is not of a training.
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
    """Say what a resume would trip over, None if nothing."""
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
    """Take away the config's text, which ``Runner.resume`` runs as Python.

    The runner only reads from it how many GPUs were used before mmengine.

    Args:
        checkpoint: What was read; changed in place.
    """
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        meta.pop('config', None)


def guard_pretrained(model: nn.Module) -> None:
    """Have the files of ``init_cfg`` read without running code from them.

    Args:
        model: Built model; copies of its modules' ``init_cfg`` are changed.

    Raises:
        FileNotFoundError: If there is no such file.
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
