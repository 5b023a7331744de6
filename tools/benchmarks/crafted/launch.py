"""Run each tool on a file."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from .case import Case, Good

__all__ = ['HOST_TOOLS', 'OWN_TOOLS', 'TOOLS', 'launcher', 'tools_of']

OWN_TOOLS = ('test', 'quantize', 'train')
HOST_TOOLS = (
    'apis',
    'mmdet',
    'mmseg',
    'mmdet-resume',
    'mmdet-train',
    'mmdet-train-latest',
)
TOOLS = (*OWN_TOOLS, *HOST_TOOLS)
EVERY = ('test', 'quantize', 'apis', 'mmdet', 'mmseg')
# Some files of each kind go to every tool, the others to one or two, since
# all tools read through the same checks.
_WIDE = {'float': EVERY, 'quantized': EVERY, 'training': ('test', 'mmdet')}
_NARROW = {
    'float': ('test', 'mmdet'),
    'quantized': ('apis',),
    'training': ('test',),
}


def tools_of(case: Case, *, wide: bool) -> tuple[str, ...]:
    """Return the tools that a case is given to.

    Args:
        case: The crafted file.
        wide: Use every tool that reads such files.
    """
    if case.tools is not None:
        return case.tools
    return (_WIDE if wide else _NARROW)[case.source]


def launcher(
    tool: str,
    case_source: str,
    path: Path,
    *,
    good: Good,
    root: Path,
    work: Path,
) -> Callable[[], object]:
    """Return a function that runs a tool on a file in this process.

    Args:
        tool: One of ``TOOLS``.
        case_source: The good file that the file was made from.
        path: The file; a folder of states for ``state``.
        good: Good files of the tool's host.
        root: Checkout under test.
        work: Empty folder of this run.
    """
    if tool == 'apis':
        return lambda: _apis(case_source, path, good=good, work=work)
    kind = (
        'qat'
        if case_source == 'training'
        else ('train' if 'train' in tool else 'ptq')
    )
    config = str(good.folder / f'{kind}.py')
    name, _, way = tool.partition('-')
    script = root / f'tools/{name}.py'
    if tool not in OWN_TOOLS:
        script = _host_script(name, 'train' if 'train' in way else 'test')
    if tool == 'quantize':
        arguments = _quantize(case_source, path, good=good, work=work)
    elif 'train' in tool:
        arguments = _train(
            config, path, latest=way.endswith('latest'), work=work
        )
    else:
        arguments = [config, str(path), '--work-dir', str(work)]
        if way == 'resume':
            arguments += ['--cfg-options', 'resume=True']
    return lambda: _script(script, arguments)


def _script(script: Path, arguments: list[str]) -> None:
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name='__main__')


def _host_script(host: str, name: str) -> Path:
    spec = importlib.util.find_spec(host)
    assert spec is not None
    return Path(spec.origin or '').parent / f'.mim/tools/{name}.py'


def _quantize(source: str, path: Path, *, good: Good, work: Path) -> list[str]:
    checkpoint = path
    fragment = 'fragment.py'
    if source == 'state':
        shutil.copytree(path, work / 'reconstruction_state')
        checkpoint, fragment = good.path('float'), 'reconstruct.py'
    return [
        str(good.folder / 'float.py'),
        str(checkpoint),
        '--recipe',
        str(good.folder / fragment),
        '--num-images',
        '2',
        '--device',
        'cpu',
        '--out',
        str(work / 'q.pth'),
    ]


def _train(config: str, path: Path, *, latest: bool, work: Path) -> list[str]:
    arguments = [config, '--work-dir', str(work), '--resume']
    if not latest:
        return [*arguments, str(path)]
    target = work / 'epoch_1.pth'
    os.link(path, target)
    (work / 'last_checkpoint').write_text(str(target), encoding='utf-8')
    return arguments


def _apis(source: str, path: Path, *, good: Good, work: Path) -> None:
    from taskptq.apis import load_quantized, quantize

    config = good.folder / 'float.py'
    if source == 'quantized':
        load_quantized(config, path)
    else:
        quantize(
            config,
            path,
            qconfig=good.folder / 'fragment.py',
            calibration={'num_images': 2},
            device='cpu',
            out=work / 'q.pth',
            work_dir=work,
        )
