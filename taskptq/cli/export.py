"""Write a quantized model as ONNX files that a runtime executes.

    taskptq export CONFIG q.pth --target onnxruntime --out model.onnx
    taskptq test CONFIG model.onnx

``--float`` exports a float checkpoint instead, to compare with.
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

from taskptq.apis import export_onnx, read_config
from taskptq.cli.projects import load_projects
from taskptq.engine.evaluation import closing_line
from taskptq.engine.refusals import one_sentence

TARGETS = ('onnxruntime', 'openvino', 'tensorrt')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Export a quantized model')
    parser.add_argument('config', help='config file of the float model')
    parser.add_argument('checkpoint', help='quantized file')
    parser.add_argument('--out', required=True, help='file to write, *.onnx')
    parser.add_argument(
        '--target',
        choices=TARGETS,
        default=TARGETS[0],
        help='runtime that the file is for (default: %(default)s)',
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the images (default: that of the test pipeline)',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        default=None,
        help='leave the size of the images free (default: if they come in '
        'several sizes, as after a resize that keeps the aspect ratio)',
    )
    parser.add_argument(
        '--opset',
        type=int,
        default=21,
        help='version of the ONNX operators (default: %(default)s)',
    )
    parser.add_argument(
        '--float',
        dest='float_model',
        action='store_true',
        help='export a float checkpoint as it is, to compare with',
    )
    parser.add_argument(
        '--num-images',
        type=int,
        default=16,
        help='training images for grids that the runtime needs and the model '
        'lacks; 0 needs no data but --size (default: %(default)s)',
    )
    parser.add_argument(
        '--gate-limit',
        type=float,
        metavar='DB',
        help='least precision, in dB, with which SiLU and its kin run in '
        'integers in ONNX Runtime: higher is more precise and slower '
        '(default: 24)',
    )
    parser.add_argument(
        '--exporter',
        choices=('torchscript', 'dynamo'),
        default='torchscript',
        help='what traces the network: dynamo (torch.export) is slower; try '
        'it where torchscript fails (default: %(default)s)',
    )
    parser.add_argument(
        '--end-to-end',
        action='store_true',
        help='decoding and NMS of a one-stage detector inside of the file, '
        'which then takes single images of a fixed size; refused unless it '
        'finds the boxes that the host finds in a second image',
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
    args = parser.parse_args(argv)
    if Path(args.out).suffix != '.onnx':
        parser.error(f'--out must end in .onnx, got {args.out}')
    if args.size is not None and min(args.size) < 1:
        parser.error(f'--size must be positive, got {args.size}')
    if args.num_images < 0:
        parser.error(f'--num-images must be at least 0: {args.num_images}')
    if args.dynamic and args.size is not None and args.num_images:
        parser.error('--size and --dynamic exclude each other')
    return args


def main(argv: list[str] | None = None) -> None:
    """Export one checkpoint.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If something is refused; the reason is one sentence.
    """
    args = parse_args(argv)
    if not MMLogger.check_instance_created('taskptq'):
        MMLogger.get_instance('taskptq', logger_name='taskptq')
    load_projects()
    with one_sentence():
        config = read_config(args.config)
        if args.cfg_options is not None:
            config.merge_from_dict(args.cfg_options)
        reports = export_onnx(
            config,
            args.checkpoint,
            out=args.out,
            target=args.target,
            size=None if args.size is None else tuple(args.size),
            dynamic=args.dynamic,
            opset=args.opset,
            float_model=args.float_model,
            num_images=args.num_images,
            gate_limit=args.gate_limit,
            exporter=args.exporter,
            end_to_end=args.end_to_end,
            trust_checkpoint=args.trust_checkpoint,
        )
    for report in reports:
        print(report.text())
    command = f'taskptq test {args.config} {args.out}'
    print(closing_line(Path(args.out), command=command))


if __name__ == '__main__':
    main()
