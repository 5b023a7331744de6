"""Evaluate a float or a quantized checkpoint with mmengine's Runner.

    taskptq test CONFIG CHECKPOINT [--work-dir DIR] [--out JSON]
    taskptq test CONFIG model.onnx [--runtime openvino]

With PTQHook in the config, a float checkpoint is quantized first; a quantized
file is rebuilt from what it says itself, also where the config has no hook.
The file is read without running code from it, unless --trust-checkpoint says
that it may.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from taskptq.analysis.page.render import MissingPackageError, check_packages
from taskptq.analysis.page.side_files import record_metrics
from taskptq.apis import read_config
from taskptq.cli.projects import load_projects
from taskptq.engine.builder import to_plain
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.checkpoint_guard import guarded_runner
from taskptq.engine.class_metrics import ClassMetricsHook
from taskptq.engine.evaluation import closing_line
from taskptq.engine.import_style import type_name
from taskptq.engine.onnx_metadata import read_metadata
from taskptq.engine.ptq_hook import unwrap
from taskptq.engine.refusals import (
    check_hooks,
    one_sentence,
    refuse_unwritable_file,
    refuse_unwritable_folder,
)
from taskptq.export.checkpoint import is_quantized
from taskptq.export.openvino_session import RUNTIMES
from taskptq.export.runtime import is_onnx_path, read_onnx
from taskptq.modules.base import quant_modules

HOOK = 'PTQHook'
# What Runner.test() needs of a config.
TEST_SETTINGS = ('test_dataloader', 'test_cfg', 'test_evaluator')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Test (and quantize) a model')
    parser.add_argument('config', help='config file of the model to test')
    parser.add_argument('checkpoint', help='float, quantized or exported file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs, reports and the quantized file '
        "(default: the config's, else work_dirs/<config name>)",
    )
    parser.add_argument('--out', help='JSON file for the metrics')
    parser.add_argument(
        '--runtime',
        choices=list(RUNTIMES),
        help='what runs an exported file (default: onnxruntime); simulation '
        'computes its operators as they stand, in floats',
    )
    parser.add_argument(
        '--report',
        action='store_true',
        help='write a page on the quantized file beside it, report.html',
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


def is_ptq_hook(hook: Any) -> bool:
    """Whether an entry of ``custom_hooks`` is PTQHook, by name or class."""
    kind = hook.get('type') if isinstance(hook, dict) else type(hook)
    return type_name(kind) == HOOK


def load_config(args: argparse.Namespace) -> Config:
    """Load the config and apply the command line to it.

    Args:
        args: Result of :func:`parse_args`.

    Raises:
        FileNotFoundError: If there is no such config or checkpoint.
        ValueError: If the config has no test set, or results cannot be
            written.
    """
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    missing = [name for name in TEST_SETTINGS if cfg.get(name) is None]
    if missing and 'runner_type' not in cfg:
        raise ValueError(
            f'{args.config} has no {", ".join(missing)}: a test needs these; '
            'set them as for the validation (val_...), or give another config'
        )
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    cfg.load_from = str(local_file(args.checkpoint))
    cfg.resume = False
    if args.runtime is not None:
        if not is_onnx_path(cfg.load_from):
            raise ValueError(
                f'--runtime is for exported files, and {args.checkpoint} is '
                'a checkpoint: export it first (taskptq export)'
            )
        cfg.runtime = args.runtime
    refuse_unwritable_folder(cfg.work_dir, name='work_dir')
    if args.out is not None:
        refuse_unwritable_file(args.out, name='--out')
    return cfg


def add_hook(cfg: Config, checkpoint: Mapping[str, Any]) -> None:
    """Add PTQHook to a config that has none, for a file of ours.

    Args:
        cfg: Config of the run; changed in place.
        checkpoint: Content of the file.
    """
    hooks = list(cfg.get('custom_hooks') or [])
    ours = is_quantized(checkpoint) or is_onnx_path(cfg.load_from)
    if ours and not any(map(is_ptq_hook, hooks)):
        cfg.custom_hooks = [*hooks, {'type': f'taskptq.{HOOK}'}]


def ask_for_page(cfg: Config) -> None:
    """Let PTQHook write a page.

    Args:
        cfg: Config of the run; changed in place.

    Raises:
        SystemExit: If what draws the page is not installed.
        ValueError: If the config has no PTQHook, as for a float model.
    """
    try:
        check_packages()
    except MissingPackageError as error:
        raise SystemExit(str(error)) from error
    hooks = [hook for hook in cfg.custom_hooks or [] if is_ptq_hook(hook)]
    if not hooks:
        raise ValueError(
            '--report is for quantized models, and this run has none: give a '
            'quantized file, or a config with PTQHook'
        )
    for hook in hooks:
        hook['report'] = True


def check_fit(
    runner: Runner, checkpoint: Mapping[str, Any], *, path: str
) -> None:
    """Load a float checkpoint, where mmengine would only warn of misfits.

    Args:
        runner: Built runner; it loads the same file once more.
        checkpoint: Content of the file.
        path: The file, for messages.

    Raises:
        ValueError: If weights are missing or of another shape.
    """
    # Checkpoints of QATHook have their weights elsewhere.
    is_weights = not isinstance(checkpoint.get('state_dict'), str)
    if is_quantized(checkpoint) or is_onnx_path(path) or not is_weights:
        return
    load_float_weights(unwrap(runner.model), checkpoint, path=path)


def join_processes_on_cpu(cfg: Config) -> None:
    """Do on a machine without GPUs what mmengine does only with them.

    Its own set-up selects a CUDA device for each process, also for gloo.

    Args:
        cfg: Config of a run that ``torch.distributed.run`` started.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = {
            'type': 'MMDistributedDataParallel',
            'broadcast_buffers': False,
            'device_ids': None,
        }


def write_metrics(
    out: str,
    *,
    args: argparse.Namespace,
    metrics: dict[str, Any],
    seconds: float,
    runner: Runner,
) -> None:
    """Write what was measured, and how it was quantized in this run.

    Args:
        out: JSON file.
        args: Result of :func:`parse_args`.
        metrics: What the evaluator returned.
        seconds: Wall time of the run without what quantizing took.
        runner: The runner, whose PTQHook has the report.
    """
    reports = [hook.report for hook in runner.hooks if is_ptq_hook(hook)]
    result = {
        'config': args.config,
        'checkpoint': args.checkpoint,
        # JSON has no NaN, which mm's metrics give where nothing is to score.
        'metrics': {
            name: None if value != value else value
            for name, value in to_plain(metrics).items()
        },
        'eval_seconds': round(seconds, 3),
        'quantization': reports[0] if reports else None,
    }
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


def record_float(
    runner: Runner,
    metrics: Mapping[str, Any],
    *,
    classes: Mapping[str, float],
    path: str,
) -> None:
    """Record the metrics of a float model for ``taskptq report``.

    Args:
        runner: The runner; ``report.json`` goes into its work folder.
        metrics: What the evaluator returned.
        classes: Class -> its metric.
        path: Float checkpoint.
    """
    file = local_file(path)
    record_metrics(
        Path(runner.work_dir),
        metrics,
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        file=file.name,
        classes=classes,
        is_float=True,
    )


def last_line(
    args: argparse.Namespace, metrics: Mapping[str, Any], *, hooks: list[Any]
) -> str:
    """Return file, size, metric, and the command to run next.

    Args:
        args: Result of :func:`parse_args`.
        metrics: What the evaluator returned.
        hooks: PTQHooks of the run, which know of quantized files.
    """
    for hook in hooks:
        if hook.evaluation.summary:
            return str(hook.evaluation.summary)
    path = args.checkpoint
    if is_onnx_path(path):
        command = ['taskptq', 'benchmark', path]
    else:
        command = ['taskptq', 'quantize', args.config, path]
        command += ['--recipe', 'w8a8', '--out', 'q.pth']
    return closing_line(local_file(path), metrics, command=shlex.join(command))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Build the runner, test, and report the metrics.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If the checkpoint is refused; the reason is one sentence.
    """
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    load_projects()
    with one_sentence():
        return run(args)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check everything, build the runner and test; see :func:`main`."""
    cfg = load_config(args)
    check_hooks(cfg.get('custom_hooks'))
    trusted = args.trust_checkpoint or any(
        isinstance(hook, dict) and bool(hook.get('trust_checkpoint'))
        for hook in cfg.get('custom_hooks') or []
    )
    if is_onnx_path(cfg.load_from):
        # Refused before anything is built.
        read_metadata(read_onnx(cfg.load_from))
        checkpoint: dict[str, Any] = {}
    else:
        checkpoint = read_checkpoint(cfg.load_from, trust_checkpoint=trusted)
    add_hook(cfg, checkpoint)
    if args.report:
        ask_for_page(cfg)
    join_processes_on_cpu(cfg)
    runner = guarded_runner(cfg, training=False, trust_checkpoint=trusted)
    check_fit(runner, checkpoint, path=args.checkpoint)
    del checkpoint
    ours = [hook for hook in runner.hooks if is_ptq_hook(hook)]
    for hook in ours:
        hook.evaluation.logs_summary = False
    by_class = ClassMetricsHook()
    if not ours:
        runner.register_hook(by_class)
    start = time.perf_counter()
    metrics = runner.test()
    seconds = time.perf_counter() - start
    for hook in ours:
        seconds -= (hook.report or {}).get('seconds', 0.0)
    if is_main_process():
        if not quant_modules(unwrap(runner.model)):
            record_float(
                runner,
                metrics,
                classes=by_class.classes,
                path=args.checkpoint,
            )
        lines = [f'  {name}: {value}' for name, value in metrics.items()]
        print_log('\n'.join(['Metrics', *lines]), logger='current')
        print_log(last_line(args, metrics, hooks=ours), logger='current')
        if args.out is not None:
            write_metrics(
                args.out,
                args=args,
                metrics=metrics,
                seconds=seconds,
                runner=runner,
            )
    return metrics


if __name__ == '__main__':
    main()
