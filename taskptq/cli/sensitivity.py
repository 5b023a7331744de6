"""Find the tensors that quantization hurts, before quantizing.

    taskptq sensitivity CONFIG FLOAT.pth --recipe w8a8 --out DIR

Prints the worst tensors, the roles and what to do; writes DIR/sensitivity.json
and DIR/sensitivity.png.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from taskptq.analysis.sensitivity.record import ESTIMATORS
from taskptq.analysis.sensitivity.table import MOST_POINTS, report_lines
from taskptq.apis import default_device, read_config
from taskptq.cli.numbers import count, seed
from taskptq.cli.projects import load_projects
from taskptq.core.atomic import DiskFullError
from taskptq.engine.sensitivity import sensitivity
from taskptq.engine.sensitivity_run import SensitivitySettings

__all__ = ['main']


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        description='Find the tensors that quantization hurts'
    )
    parser.add_argument('config', help='config file of the float model')
    parser.add_argument('checkpoint', help='float checkpoint')
    parser.add_argument(
        '--recipe',
        action='append',
        help='name of a recipe or config file that sets the quantizers '
        '(default: w8a8); if given again, the next is merged into the one '
        'before',
    )
    parser.add_argument(
        '--estimator',
        choices=ESTIMATORS,
        help='gradient: all tensors and bit widths in one pass; alone: '
        'quantize one tensor at a time; leave-out: leave one float at a time '
        '(default: gradient, or alone where the model has no gradient)',
    )
    parser.add_argument(
        '--metric',
        action='store_true',
        help="also run the task's own evaluation, for each role and for the "
        'worst tensors',
    )
    parser.add_argument(
        '--num-images',
        type=count,
        default=64,
        help='calibration images (default: 64)',
    )
    parser.add_argument(
        '--num-measured',
        type=count,
        default=8,
        help='of these, images for what needs a pass each: roles and the '
        'estimators alone and leave-out (default: 8)',
    )
    parser.add_argument(
        '--no-roles',
        action='store_true',
        help='skip what each role could give back',
    )
    parser.add_argument('--out', help='folder for the report')
    parser.add_argument(
        '--most',
        type=count,
        default=MOST_POINTS,
        help=f'tensors to print (default: {MOST_POINTS})',
    )
    parser.add_argument('--seed', type=seed, default=0, help='seed')
    parser.add_argument(
        '--device', help='cpu or cuda (default: a GPU if there is one)'
    )
    parser.add_argument(
        '--allow-overlap',
        action='store_true',
        help='accept calibration images of the test split',
    )
    parser.add_argument(
        '--no-resume',
        action='store_true',
        help='start anew instead of going on with an interrupted run in --out',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle a checkpoint that is not plain, which runs code that '
        'it names: for files whose source you trust',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of CONFIG to override, as key=value',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> str:
    """Analyse, and return what to print.

    Args:
        args: Result of :func:`parse_args`.
    """
    config = read_config(args.config)
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    report = sensitivity(
        config,
        args.checkpoint,
        recipe=args.recipe or ['w8a8'],
        num_images=args.num_images,
        settings=SensitivitySettings(
            estimator=args.estimator,
            num_measured=args.num_measured,
            roles=not args.no_roles,
            metric=args.metric,
            resume=not args.no_resume,
            seed=args.seed,
        ),
        out=args.out,
        device=args.device or default_device(),
        trust_checkpoint=args.trust_checkpoint,
        allow_overlap=args.allow_overlap,
    )
    return '\n'.join(report_lines(report, most=args.most))


def main(argv: list[str] | None = None) -> None:
    """Analyse one checkpoint.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If something is refused; the reason is one sentence.
    """
    args = parse_args(argv)
    if not MMLogger.check_instance_created('taskptq'):
        MMLogger.get_instance('taskptq', logger_name='taskptq')
    load_projects()
    try:
        text = run(args)
    except (
        DiskFullError,
        FileNotFoundError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise SystemExit(str(error)) from error
    print(text)
    if args.out is not None:
        print(f'\nReport: {Path(args.out) / "sensitivity.json"}')


if __name__ == '__main__':
    main()
