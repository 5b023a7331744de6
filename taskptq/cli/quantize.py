"""Quantize a checkpoint without editing its config.

    taskptq quantize CONFIG FLOAT.pth --recipe w4a4_qdrop --out q.pth

Next to ``q.pth`` it writes ``q.py``, the CONFIG with PTQHook, so that
``taskptq test q.py q.pth`` or a host's ``tools/test.py`` tests the result.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger, print_log

from taskptq.analysis.page.render import MissingPackageError
from taskptq.apis import quantize, read_config, read_fragment
from taskptq.cli.compress import compress
from taskptq.cli.numbers import budget, count, seed, share
from taskptq.cli.projects import load_projects
from taskptq.core.atomic import DiskFullError
from taskptq.engine.builder import to_plain
from taskptq.engine.evaluation import closing_line
from taskptq.engine.import_style import (
    import_style_text,
    lazy_settings,
    type_name,
)
from taskptq.engine.latency import check_runtime, read_table
from taskptq.engine.packaged_configs import base_expression, is_packaged
from taskptq.engine.recipe_source import read_recipe
from taskptq.engine.refusals import (
    refuse_replaced_input,
    refuse_unwritable_file,
    refuse_unwritable_folder,
)
from taskptq.export.checkpoint import QuantizedCheckpointError
from taskptq.export.codecs import CHOICES, codec_names
from taskptq.reconstruction.state_folder import FolderInUseError

DEFAULT = 'w8a8'
DROPPED_HOOKS = ('PTQHook', 'EMAHook')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Quantize a checkpoint')
    parser.add_argument('config', help='config file of the float model')
    parser.add_argument('checkpoint', help='float checkpoint')
    parser.add_argument(
        '--recipe',
        action='append',
        help='name of a recipe, e.g. w4a4_qdrop, or config file that sets '
        f'its parts (default: {DEFAULT}); if given again, the next is merged '
        'into the one before',
    )
    parser.add_argument(
        '--keep',
        type=share,
        help='choose bits of single tensors so that this share of the '
        'score should remain, e.g. 0.99; see mixed_precision in the page '
        'of recipes',
    )
    parser.add_argument(
        '--budget',
        type=budget,
        action='append',
        help='most that the choice may cost: bops=0.5 (multiply-accumulates '
        'x bits x bits, as a share of 8 x 8), bytes=400000 (of packed '
        'weights; up to 1 a share of 8 bits), macs_above=0.03 (share of '
        'multiply-accumulates above the bits of the recipe) or latency=4.5 '
        '(milliseconds of all layers for one image; up to 1 a share of the '
        "float model's); may be given again for another",
    )
    parser.add_argument(
        '--max-bytes',
        type=count,
        help='largest size of --out, with a recipe such as w8a8_size: steps '
        'of weights are chosen for it, and the file is entropy-coded',
    )
    parser.add_argument(
        '--latency-table',
        metavar='FILE.json',
        help='measured times of the layers for --budget latency, as '
        'latency_table.json of an earlier run (default: measured now, in '
        'ONNX Runtime on one thread)',
    )
    parser.add_argument('--calib', help='config file that sets calibration')
    parser.add_argument(
        '--out', required=True, help='quantized file to write, *.pth'
    )
    parser.add_argument(
        '--codec',
        choices=CHOICES,
        default='dense',
        help='how --out is coded: dense (default), or auto, which is shorter '
        'and takes longer to read; see taskptq compress',
    )
    parser.add_argument(
        '--work-dir', help='folder for reports (default: that of --out)'
    )
    parser.add_argument(
        '--num-images', type=count, help='number of calibration images'
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
        help='start anew instead of going on with an interrupted run',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle a checkpoint that is not plain, which runs code that '
        'it names: for files whose source you trust',
    )
    parser.add_argument(
        '--report',
        action='store_true',
        help='write a page on the result beside it, report.html',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of CONFIG to override, as key=value',
    )
    args = parser.parse_args(argv)
    args.recipe = args.recipe or [DEFAULT]
    if Path(args.out).suffix != '.pth':
        parser.error(f'--out must end in .pth, got {args.out}')
    timed = 'latency' in dict(args.budget or ())
    if args.latency_table is not None and not timed:
        parser.error('--latency-table needs --budget latency=...')
    return args


def base_path(config: Path, *, folder: Path) -> str:
    """Return how a config in ``folder`` inherits ``config``.

    Relative where both lie in one tree, which may then be moved as a whole;
    absolute where they share only the root.

    Args:
        config: The inherited config.
        folder: Where the inheriting config is written.
    """
    config, folder = config.resolve(), folder.resolve()
    shared = os.path.commonpath([config.parent, folder])
    if Path(shared) == Path(shared).parent:
        return config.as_posix()
    return Path(os.path.relpath(config, folder)).as_posix()


def keeps_hook(hook: Any) -> bool:
    """Whether a custom hook of the float config stays in the new one."""
    return type_name(hook['type']) not in DROPPED_HOOKS


def config_text(
    cfg: Config,
    *,
    source: str,
    out: Path,
    hook: dict[str, Any],
    overridden: bool,
) -> str:
    """Return CONFIG with PTQHook, as the text of a config file.

    Args:
        cfg: The loaded config, with all overrides.
        source: Its file, or the name of an installed package's config.
        out: File that is to be written.
        hook: PTQHook's config, plain.
        overridden: Whether the command line changes settings of CONFIG:
            then, and in import style, all settings are written out;
            otherwise the new config inherits ``source``.

    Raises:
        ValueError: If a setting cannot be written.
    """
    settings = lazy_settings(cfg)
    kept = [h for h in settings.get('custom_hooks') or [] if keeps_hook(h)]
    hooks = [*kept, hook]
    packaged = is_packaged(source)
    if not packaged and Config._is_lazy_import(source):
        return import_style_text({**settings, 'custom_hooks': hooks})
    if overridden:
        written = copy.deepcopy(cfg)
        written.custom_hooks = hooks
        return str(written.pretty_text)
    text = Config({'custom_hooks': hooks}).pretty_text
    base = (
        base_expression(source)
        if packaged
        else repr(base_path(Path(source), folder=out.parent))
    )
    return f'_base_ = [{base}]\n\n{text}'


def chosen_recipe(args: argparse.Namespace) -> list[Any]:
    """Return the recipe that the command line asks for, as users write it.

    Names stay names, which the file records.

    Args:
        args: Result of :func:`parse_args`.
    """
    mixed: dict[str, Any] = {}
    if args.keep is not None:
        mixed['keep'] = args.keep
    if args.budget:
        # Replaces the budget of the recipe, whatever it counts.
        mixed['budget'] = {'_delete_': True, **dict(args.budget)}
    if args.latency_table is not None:
        table = read_table(args.latency_table)
        mixed['latency_table'] = {'_delete_': True, **table}
    added: dict[str, Any] = {'mixed_precision': mixed} if mixed else {}
    if args.max_bytes is not None:
        # Replaces the ratio of the recipe.
        size = {'_delete_': True, 'max_bytes': args.max_bytes}
        added['qconfig'] = {'size': size}
    return [*args.recipe, added] if added else args.recipe


def check_out(args: argparse.Namespace) -> None:
    """Refuse an --out that cannot be written, or replaces what is no result.

    Args:
        args: Result of :func:`parse_args`.

    Raises:
        ValueError: Naming the file.
    """
    out = Path(args.out)
    script = out.with_suffix('.py')
    read = [args.config, args.checkpoint, *args.recipe, args.calib]
    for path in (out, script):
        refuse_unwritable_file(path, name='--out')
        given = f'--out {args.out}'
        name = given if path == out else f'{given} writes {path} as well and'
        refuse_replaced_input(path, name=name, inputs=read)
    if script.exists() and b'PTQHook' not in script.read_bytes():
        raise ValueError(
            f'--out {args.out} writes {script} as well, and that file is no '
            'config of a quantized model: choose another --out'
        )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Quantize and write both files.

    Args:
        args: Result of :func:`parse_args`.

    Returns:
        The quantization report.
    """
    out = Path(args.out)
    check_out(args)
    if args.work_dir is not None:
        refuse_unwritable_folder(args.work_dir, name='--work-dir')
    if 'latency' in dict(args.budget or ()) and args.latency_table is None:
        check_runtime()
    cfg = read_config(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    recipe = chosen_recipe(args)
    parts = read_recipe(recipe)
    calibration = read_fragment(args.calib, key='calibration') or {}
    if args.num_images is not None:
        calibration['num_images'] = args.num_images
    if args.allow_overlap:
        calibration['allow_overlap'] = True
    hook = {
        'type': 'taskptq.PTQHook',
        'recipe': parts,
        'calibration': calibration,
        'seed': args.seed,
    }
    text = config_text(
        cfg,
        source=args.config,
        out=out.with_suffix('.py'),
        hook=to_plain(hook),
        overridden=args.cfg_options is not None,
    )
    # A missing package is better known before the work.
    codec_names(args.codec)
    _, report = quantize(
        cfg,
        args.checkpoint,
        recipe=recipe,
        calibration=calibration,
        out=out,
        work_dir=args.work_dir,
        device=args.device,
        seed=args.seed,
        resume=not args.no_resume,
        trust_checkpoint=args.trust_checkpoint,
        report=args.report,
    )
    out.with_suffix('.py').write_text(text, encoding='utf-8')
    if args.codec != 'dense':
        sizes = compress(str(out), out=str(out), codec=args.codec)
        report['file_bytes'] = sizes.file_bytes
        print_log('\n'.join(sizes.lines()), logger='current')
    return report


def test_command() -> str:
    """Return how the started program's sister tests the result."""
    program = sys.argv[0]
    if program.startswith('taskptq '):
        return 'taskptq test'
    return 'python tools/test.py'


def main(argv: list[str] | None = None) -> None:
    """Quantize one checkpoint.

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
        run(args)
    except (
        FileNotFoundError,
        DiskFullError,
        MissingPackageError,
        ValueError,
        FolderInUseError,
        QuantizedCheckpointError,
    ) as error:
        raise SystemExit(str(error)) from error
    script = Path(args.out).with_suffix('.py')
    command = f'{test_command()} {script} {args.out}'
    print_log(closing_line(Path(args.out), command=command), logger='current')


if __name__ == '__main__':
    main()
