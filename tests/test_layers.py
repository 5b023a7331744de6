"""Holds the import directions between the layers, from the source text."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
import warm_python

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'taskptq'
MM_PACKAGES = frozenset(
    {
        'mmengine',
        'mmcv',
        'mmdet',
        'mmseg',
        'mmpretrain',
        'mmdet3d',
        'mmpose',
        'segment_anything',
    }
)
# Which parts of taskptq a part may import, beside itself and `version`.
LAYERS: dict[str, set[str]] = {
    # By lazy attribute only; a test below imports the package.
    '__init__': {'apis'},
    '__main__': {'cli'},
    'version': set(),
    'registry': set(),
    'core': set(),
    'modules': {'core'},
    'hosts': {'core', 'modules'},
    'prepare': {'core', 'modules', 'hosts'},
    'calibration': {'core', 'modules', 'hosts', 'prepare'},
    'export': {'core', 'modules', 'hosts', 'prepare'},
    'testing': {'core', 'modules'},
    'reconstruction': {'core', 'modules', 'hosts', 'prepare', 'calibration'},
    'methods': {
        'core',
        'modules',
        'hosts',
        'prepare',
        'calibration',
        'reconstruction',
        'registry',
    },
}
# Above these, each part may import all that stand before it.
for _part in (
    'analysis',
    'models',
    'recipes',
    'robustness',
    'engine',
    'qat',
    'apis',
    'bench',
    'cli',
):
    LAYERS[_part] = {'registry', *LAYERS}
MAY_IMPORT_MM = {
    'registry',
    'models',
    'robustness',
    'engine',
    'qat',
    'apis',
    'bench',
    'cli',
}


def part_of(path: Path) -> str:
    """The layer or top-level module that a file of taskptq belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def absolute_name(node: ast.ImportFrom, path: Path) -> str:
    """The dotted name behind ``from``, with leading dots resolved."""
    if node.level == 0:
        return node.module or ''
    package = path.relative_to(ROOT).with_suffix('').parts[: -node.level]
    return '.'.join((*package, *([node.module] if node.module else [])))


def imported_names(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of all imports, late and literal ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = absolute_name(node, path)
            for alias in node.names:
                yield node.lineno, f'{base}.{alias.name}'
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).rsplit('.', maxsplit=1)[-1]
            first = node.args[0]
            if name in ('import_module', '__import__') and isinstance(
                first, ast.Constant
            ):
                yield node.lineno, str(first.value)


@functools.cache
def project_packages() -> set[str]:
    """Names under which a project's code could be imported."""
    found = {'projects'}
    for init in ROOT.glob('projects/*/**/__init__.py'):
        if init.parent.name != 'tests':
            found.add(init.parent.name)
    return found


def violation(part: str, name: str, projects: set[str]) -> str | None:
    """Say what is wrong with ``part`` importing ``name``, or return None."""
    top, _, rest = name.partition('.')
    if top in projects:
        return f'taskptq must not import the project package {top}'
    if top in MM_PACKAGES and part not in MAY_IMPORT_MM:
        return f'{part} must not import {top}'
    if top != 'taskptq':
        return None
    target = rest.split('.', maxsplit=1)[0]
    allowed = LAYERS[part]
    if target in {part, 'version', '__version__', ''}:
        return None
    return None if target in allowed else f'{part} must not import {target}'


def violations(source: str, path: Path) -> list[str]:
    """All forbidden imports of one file, as readable lines."""
    part = part_of(path)
    projects = project_packages()
    problems = []
    for line, name in imported_names(source, path):
        problem = violation(part, name, projects)
        if problem is not None:
            problems.append(f'{path.relative_to(ROOT)}:{line}: {problem}')
    return problems


SOURCES = sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize(
    'path', SOURCES, ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_go_down_only(path):
    assert part_of(path) in LAYERS, 'a new layer needs its place in LAYERS'
    problems = violations(path.read_text(encoding='utf-8'), path)
    assert not problems, '\n'.join(problems)


@pytest.mark.parametrize(
    ('file', 'source', 'message'),
    [
        ('core/spec.py', 'import mmengine', 'core must not import mmengine'),
        (
            'core/spec.py',
            'from taskptq.modules import base',
            'core must not import modules',
        ),
        (
            'core/spec.py',
            'from taskptq import registry',
            'core must not import registry',
        ),
        (
            'core/spec.py',
            'from ..prepare.swap import swap',
            'core must not import prepare',
        ),
        (
            'modules/conv.py',
            'def late():\n    from mmcv.cnn import ConvModule',
            'modules must not import mmcv',
        ),
        (
            'hosts/registry.py',
            'import importlib\nimportlib.import_module("mmdet.models")',
            'hosts must not import mmdet',
        ),
        (
            'reconstruction/losses.py',
            'from taskptq.methods import selective_focus',
            'reconstruction must not import methods',
        ),
        (
            'reconstruction/losses.py',
            'from taskptq.registry import RECON_LOSSES',
            'reconstruction must not import registry',
        ),
        (
            'hosts/mmdet.py',
            'from taskptq.prepare.patterns import matches',
            'hosts must not import prepare',
        ),
        (
            'hosts/mmdet.py',
            'from taskptq.methods.box_grid import BoxGrid',
            'hosts must not import methods',
        ),
        (
            'calibration/calibrate.py',
            'from taskptq.reconstruction import reconstruct',
            'calibration must not import reconstruction',
        ),
        (
            'methods/qdetr/loss.py',
            'from taskptq.analysis import sensitivity',
            'methods must not import analysis',
        ),
        (
            'models/grid/head.py',
            'from taskptq.recipes import resolve',
            'models must not import recipes',
        ),
        (
            'engine/pipeline.py',
            'from taskptq.qat.hook import QATHook',
            'engine must not import qat',
        ),
        (
            'qat/model.py',
            'from taskptq.bench.results import read_results',
            'qat must not import bench',
        ),
        (
            'bench/table.py',
            'from taskptq.cli.main import main',
            'bench must not import cli',
        ),
        (
            'export/packing.py',
            'import taskptq.reconstruction.capture.capture',
            'export must not import reconstruction',
        ),
        (
            'methods/centering.py',
            'from segment_anything import modeling',
            'methods must not import segment_anything',
        ),
        (
            'methods/centering.py',
            'from taskptq.engine import adapters',
            'methods must not import engine',
        ),
        (
            'engine/ptq_hook.py',
            'from projects.demo import shapes',
            'taskptq must not import the project package projects',
        ),
    ],
)
def test_a_forbidden_import_is_found(file, source, message):
    problems = violations(source, PACKAGE / file)
    assert len(problems) == 1
    assert problems[0].endswith(message)


@pytest.mark.parametrize(
    ('file', 'source'),
    [
        ('core/spec.py', 'import torch\nfrom taskptq.core import functional'),
        (
            'core/spec.py',
            'from . import functional\nfrom .search import search',
        ),
        ('modules/conv.py', 'from taskptq.core.quantizers import Quantizer'),
        (
            'methods/centering.py',
            'from taskptq.registry import REWRITES\n'
            'from taskptq.reconstruction.losses import ReconContext',
        ),
        ('export/checkpoint.py', 'from taskptq.version import __version__'),
        (
            'engine/ptq_hook.py',
            'from mmengine.hooks import Hook\nimport taskptq.methods',
        ),
    ],
)
def test_an_allowed_import_passes(file, source):
    assert violations(source, PACKAGE / file) == []


def module_names() -> dict[str, Path]:
    """Map each module of taskptq to its file."""
    found = {}
    for path in SOURCES:
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        found[name.removesuffix('.__init__')] = path
    return found


def runs_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: no function's inside."""
    for child in ast.iter_child_nodes(node):
        if isinstance(
            child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        ):
            continue
        if isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.unparse(
            child.test
        ):
            continue
        yield child
        yield from runs_on_import(child)


def imported_modules(
    source: str, path: Path, modules: Collection[str]
) -> set[str]:
    """Modules that a file imports when it is itself imported."""
    found = set()
    for node in runs_on_import(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute_name(node, path)
            full = {f'{base}.{alias.name}' for alias in node.names}
            found |= full & set(modules)
            if full - set(modules):
                found.add(base)
    return found & set(modules)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that import each other, sorted."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = {
        tuple(sorted(b for b in reached[a] if a in reached[b]))
        for a in graph
        if a in reached[a]
    }
    return [list(group) for group in sorted(groups)]


def test_no_modules_import_each_other():
    modules = module_names()
    assert len(modules) > 150
    graph = {
        name: imported_modules(path.read_text(encoding='utf-8'), path, modules)
        for name, path in modules.items()
    }
    assert 'taskptq.core.spec' in graph['taskptq.core.search']
    assert circles(graph) == []


def test_a_circle_is_found():
    graph = {'a': {'b'}, 'b': {'c', 'd'}, 'c': {'a'}, 'd': set(), 'e': {'e'}}
    assert circles(graph) == [['a', 'b', 'c'], ['e']]


def test_imports_at_the_top_count():
    source = (
        'import taskptq.core.spec\n'
        'from ..hosts import mmdet, lookup\n'
        'if TYPE_CHECKING:\n    from taskptq.prepare import swap\n'
        'try:\n    from taskptq.modules.base import QuantModule\n'
        'except ImportError:\n    pass\n'
        'def late():\n    import taskptq.prepare.fuse\n'
    )
    found = imported_modules(
        source, PACKAGE / 'prepare' / 'x.py', module_names()
    )
    assert found == {
        'taskptq.core.spec',
        'taskptq.hosts',
        'taskptq.hosts.mmdet',
        'taskptq.modules.base',
    }


GENERIC = (
    'core',
    'modules',
    'hosts',
    'prepare',
    'calibration',
    'reconstruction',
    'export',
)


@functools.cache
def paper_classes() -> set[str]:
    """Names of the classes that a paper's folder defines for others."""
    return {
        node.name
        for path in (PACKAGE / 'methods').rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_')
    }


def names_in_code(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, word) of names and strings, docstrings left out."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    prose = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node) is not None
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name
        elif isinstance(node, ast.Constant) and node not in prose:
            for word in re.findall(r'\w+', str(node.value)):
                yield node.lineno, word


@pytest.mark.parametrize('layer', GENERIC)
def test_generic_code_names_no_class_of_a_paper(layer):
    classes = paper_classes()
    assert len(classes) > 30
    problems = [
        f'{path.relative_to(ROOT)}:{line}: {name}'
        for path in SOURCES
        if part_of(path) == layer
        for line, name in names_in_code(path.read_text(encoding='utf-8'))
        if name in classes
    ]
    assert problems == []


@pytest.mark.parametrize(
    'source',
    [
        'isinstance(x, BoxGrid)',
        'from somewhere import BoxGrid',
        'box_grid.BoxGrid()',
        'kind = "taskptq.methods.box_grid.BoxGrid"',
        'type(x).__name__ == "BoxGrid"',
    ],
)
def test_a_class_of_a_paper_is_found(source):
    assert 'BoxGrid' in {name for _, name in names_in_code(source)}
    prose = f'"""A BoxGrid."""\ndef f():\n    """See BoxGrid."""\n    {source}'
    assert prose.count('BoxGrid') == 3
    lines = [line for line, n in names_in_code(prose) if n == 'BoxGrid']
    assert lines == [4]


def test_there_is_no_utils():
    found = [
        path.relative_to(ROOT)
        for top in ('taskptq', 'projects', 'tools')
        for path in (ROOT / top).rglob('*')
        if path.stem in ('utils', 'util', 'helpers', 'common')
        and (path.is_dir() or path.suffix == '.py')
    ]
    assert found == []


LOWER_LAYERS = [
    name
    for name, allowed in LAYERS.items()
    if not allowed & {'registry'}
    and name not in ('registry', '__init__')
    and (PACKAGE / name / '__init__.py').is_file()
]


def host_modules_after(statement: str, names: set[str]) -> str:
    """Run a statement in a fresh Python; return which of ``names`` it left."""
    program = (
        f'import sys\n{statement}\n'
        f'print(*sorted(set({sorted(names)!r}) & set(sys.modules)))'
    )
    if names & {'torch'}:
        # The quick processes have it from their start.
        command = [sys.executable, '-c', program]
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False
        )
    else:
        result = warm_python.run(['-c', program], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize('layer', LOWER_LAYERS)
def test_importing_a_lower_layer_imports_no_mm_package(layer):
    assert host_modules_after(f'import taskptq.{layer}', MM_PACKAGES) == ''


def test_importing_the_package_imports_neither_torch_nor_mmengine():
    assert host_modules_after('import taskptq', {'torch', 'mmengine'}) == ''


def test_an_import_of_a_host_is_seen():
    assert host_modules_after('import mmengine', MM_PACKAGES) == 'mmengine'
