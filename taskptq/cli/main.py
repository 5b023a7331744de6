"""The console command ``taskptq``: its first word is the command.

    taskptq quantize CONFIG FLOAT.pth --recipe w4a4_qdrop --out q.pth
    taskptq info q.pth

Each command is a module of ``taskptq.cli`` and is imported only when it runs,
so that help is instant and a command loads no more than it needs.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from taskptq.version import __version__

PROG = 'taskptq'
# Exit status of a program that Ctrl-C ended, as shells have it.
INTERRUPTED = 130
COMMANDS = {
    'quantize': 'quantize a float checkpoint',
    'test': 'evaluate a float, quantized or exported file',
    'train': 'train a model, with or without quantization',
    'export': 'write a quantized model as ONNX files for a runtime',
    'sensitivity': 'find the tensors that quantization hurts',
    'predict': 'predict one image with an exported file',
    'benchmark': 'measure the speed of exported files',
    'info': 'describe a quantized file',
    'compress': 'write a quantized file anew, with coded sections',
    'report': 'show what quantization did to a model, as a page or as text',
    'list': 'list recipes, observers, quantizers, configs and the like',
    'bench': 'measure the rows of a table of results',
}
NEEDS_MMENGINE = (
    'this command needs mmengine, which is not installed: pip install '
    'onedl-mmengine (or the original mmengine)'
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the first word; commands parse the rest."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {text}' for name, text in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f'{PROG} [-h] [--version] COMMAND ...',
        description='Post-training quantization for OpenMMLab models.',
        epilog='\n'.join(
            [
                'commands:',
                *lines,
                '',
                f'See {PROG} COMMAND --help for the options of one.',
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--version', action='version', version=f'{PROG} {__version__}'
    )
    parser.add_argument('command', metavar='COMMAND', help=argparse.SUPPRESS)
    return parser


@contextmanager
def named(prog: str) -> Iterator[None]:
    """Let argparse and messages call the running program ``prog``."""
    before = sys.argv[0]
    sys.argv[0] = prog
    try:
        yield
    finally:
        sys.argv[0] = before


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: With one sentence if the command is unknown or was
            interrupted, or see the command's own ``main``.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    # Options after the command are the command's own.
    command = parser.parse_args(given[:1]).command
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
        known = ', '.join(COMMANDS)
        hint = f'did you mean {near[0]}?' if near else f'choose one of {known}'
        raise SystemExit(f'{PROG} has no command {command!r}: {hint}')
    with named(f'{PROG} {command}'):
        try:
            module = importlib.import_module(f'taskptq.cli.{command}')
        except ModuleNotFoundError as error:
            if (error.name or '').partition('.')[0] != 'mmengine':
                raise
            raise SystemExit(f'{PROG} {command}: {NEEDS_MMENGINE}') from error
        try:
            module.main(given[1:])
        except KeyboardInterrupt:
            print(
                f'{PROG} {command}: interrupted; run it again, and a '
                'reconstruction goes on where it was (a training with '
                '--resume)',
                file=sys.stderr,
            )
            raise SystemExit(INTERRUPTED) from None


if __name__ == '__main__':
    main()
