"""Train a model of any OpenMMLab config with mmengine's Runner.

    taskptq train CONFIG [--work-dir DIR] [--seed N] [--resume [PTH]]

The config's ``default_scope`` (mmdet, mmseg, ...) says which host's
registries are searched, so one tool serves detectors and segmentors.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import Config, DictAction
from mmengine.runner import find_latest_checkpoint

from taskptq.apis import read_config
from taskptq.cli.numbers import seed
from taskptq.cli.projects import load_projects
from taskptq.engine.checkpoint_guard import guarded_runner
from taskptq.engine.refusals import (
    check_hooks,
    one_sentence,
    refuse_unwritable_folder,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file of the model to train')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints '
        "(default: the config's, else work_dirs/<config name>)",
    )
    parser.add_argument(
        '--seed', type=seed, help="seed that replaces the config's"
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train with automatic mixed precision',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='checkpoint to go on from; without a value, the latest one '
        'in the work directory',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle checkpoints that are not plain, which runs code that '
        'they name: for files whose source you trust',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, as key=value; lists as key="[a,b]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # Set by torch.distributed.launch, under either spelling.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args(argv)


def load_config(args: argparse.Namespace) -> Config:
    """Load the config and apply the command line to it.

    Args:
        args: Result of :func:`parse_args`.

    Raises:
        SystemExit: If there is no such config, or ``--amp`` meets an optimizer
            wrapper that mmengine can not turn into its mixed precision one.
    """
    try:
        cfg = read_config(args.config)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if args.seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=args.seed)
    if args.amp:
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise SystemExit(
                f'--amp needs optim_wrapper.type OptimWrapper, but the '
                f'config has {kind}; train without --amp'
            )
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume is not None:
        resume(cfg, args.resume)
    return cfg


def resume(cfg: Config, checkpoint: str) -> None:
    """Say where to go on from; with nothing there, the training begins.

    Args:
        cfg: Config with its ``work_dir``; changed in place.
        checkpoint: Path, or ``auto`` for the latest in the ``work_dir``.
    """
    if checkpoint != 'auto':
        cfg.resume, cfg.load_from = True, checkpoint
    elif find_latest_checkpoint(cfg.work_dir) is not None:
        cfg.resume, cfg.load_from = True, None


def main(argv: list[str] | None = None) -> None:
    """Build the runner and train.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If something is refused; the reason is one sentence.
    """
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    load_projects()
    cfg = load_config(args)
    with one_sentence():
        check_hooks(cfg.get('custom_hooks'))
        refuse_unwritable_folder(cfg.work_dir, name='work_dir')
        runner = guarded_runner(
            cfg, training=True, trust_checkpoint=args.trust_checkpoint
        )
        runner.train()


if __name__ == '__main__':
    main()
