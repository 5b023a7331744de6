"""One run over crafted files: write each, run each tool on it, judge."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .case import Case, Good
from .judge import judge, last_line
from .launch import launcher, tools_of
from .sources import make_good, write_configs, write_module
from .worker import Outcome, forked

__all__ = ['Session', 'preload']

# Imported once, so that each run only needs a fork.
PRELOADED = (
    'torch',
    'mmengine.runner',
    'mmcv.ops',
    'mmdet.apis',
    'mmdet.models',
    'mmdet.datasets',
    'mmdet.evaluation',
    'mmdet.utils',
    'mmseg.apis',
    'mmseg.models',
    'mmseg.datasets',
    'mmseg.evaluation',
    'taskptq.apis',
    'taskptq.engine',
    'taskptq.methods',
    'taskptq.models',
)
WRITE_SECONDS = 300


def preload(root: Path) -> Path:
    """Import a checkout's modules for the tools, and stay single-threaded.

    Args:
        root: Checkout under test.

    Returns:
        Folder of the package that was imported.

    Raises:
        RuntimeError: If the package comes from another checkout.
    """
    sys.path.insert(1, str(root))
    warnings.filterwarnings('ignore')
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    package = Path(sys.modules['taskptq'].__file__ or '').parent
    if package.parent.resolve() != root.resolve():
        raise RuntimeError(f'taskptq came from {package}, not from {root}')
    return package


class Session:
    """Good files and baselines of one run.

    Args:
        folder: Empty folder for all output.
        root: Checkout under test.
        package: Folder of its package.
        say: Called with a line for each run.
        seconds: Processor time after which a run is stopped.
    """

    def __init__(
        self,
        folder: Path,
        *,
        root: Path,
        package: Path,
        say: Callable[[str], None],
        seconds: float = 90,
    ) -> None:
        self.folder, self.root, self.package = folder, root, package
        self.say, self.seconds = say, seconds
        self.marker = folder / 'marker'
        self.modules = folder / 'modules'
        self.goods: dict[str, Good] = {}
        self.baselines: dict[tuple[str, str], Outcome] = {}
        write_module(self.modules, self.marker)

    def _fork(
        self, run: Callable[[], object], log: str, *, seconds: float
    ) -> Outcome:
        def with_modules() -> None:
            sys.path.insert(1, str(self.modules))
            run()

        return forked(
            with_modules, log=self.folder / f'{log}.log', seconds=seconds
        )

    def good(self, host: str, source: str) -> Good:
        """Return a host's good files, making one of them if necessary.

        Args:
            host: Key of ``HOSTS``.
            source: The file that must exist.

        Raises:
            RuntimeError: If it cannot be made.
        """
        if host not in self.goods:
            folder = self.folder / host
            folder.mkdir()
            self.goods[host] = Good(folder=folder, marker=self.marker)
            write_configs(folder, root=self.root, host=host)
        found = self.goods[host]
        for name in dict.fromkeys(('float', source)):
            if found.path(name).exists():
                continue
            done = self._fork(
                lambda n=name: make_good(found, n, root=self.root, host=host),
                f'{host}-{name}',
                seconds=WRITE_SECONDS,
            )
            self.say(f'good {host} {name}: {done.seconds:.1f} s')
            if done.code or not found.path(name).exists():
                raise RuntimeError(
                    f'the good file {found.path(name)} was not made: '
                    f'{done.output[-2000:]}'
                )
        return found

    def run(
        self,
        case: Case,
        tools: Sequence[str] | None = None,
        *,
        wide: bool = True,
    ) -> list[dict[str, Any]]:
        """Write a case for each host that needs it, and try its tools.

        Args:
            case: The crafted file.
            tools: Tools to try; None tries those of the case.
            wide: Try every tool.
        """
        rows = []
        for tool in tools_of(case, wide=wide):
            if tools is not None and tool not in tools:
                continue
            host = 'mmseg' if tool == 'mmseg' else 'mmdet'
            path = self._write(case, self.good(host, case.source))
            if path is None:
                rows.append(self._row(case, tool, None, ['not written']))
            else:
                rows.append(self._try(case, tool, path))
        for host in self.goods:
            _remove(self.folder / host / 'crafted')
        return rows

    def _write(self, case: Case, good: Good) -> Path | None:
        folder = good.folder / 'crafted'
        folder.mkdir(exist_ok=True)
        path = folder / (
            case.name if case.source == 'state' else f'{case.name}.pth'
        )
        if path.exists():
            return path
        done = self._fork(
            lambda: case.write(good, path), 'write', seconds=WRITE_SECONDS
        )
        if done.code or not path.exists():
            self.say(f'{case.name} was not written: {last_line(done.output)}')
            return None
        return path

    def _launch(self, tool: str, source: str, path: Path) -> Outcome:
        host = 'mmseg' if tool == 'mmseg' else 'mmdet'
        work = self.folder / 'work'
        _remove(work)
        work.mkdir()
        self.marker.unlink(missing_ok=True)
        # Hosts name their experiments after the current second.
        return self._fork(
            launcher(
                tool,
                source,
                path,
                good=self.good(host, source),
                root=self.root,
                work=work,
            ),
            'run',
            seconds=self.seconds,
        )

    def baseline(self, tool: str, source: str) -> Outcome:
        """Return a tool's outcome with a good file.

        Raises:
            RuntimeError: If it refuses it.
        """
        key = (tool, source)
        if key not in self.baselines:
            host = 'mmseg' if tool == 'mmseg' else 'mmdet'
            path = self.good(host, source).path(source)
            done = self._launch(tool, source, path)
            refuses = (
                tool == 'quantize' and source == 'quantized'
            ) or tool == 'mmdet-resume'
            if done.code and not refuses:
                raise RuntimeError(
                    f'{tool} fails with the good {source} file: '
                    f'{done.output[-2000:]}'
                )
            self.say(
                f'good {source} -> {tool}: {done.seconds:.1f} s, '
                f'{done.peak_mib:.0f} MiB'
            )
            self.baselines[key] = done
        return self.baselines[key]

    def _try(self, case: Case, tool: str, path: Path) -> dict[str, Any]:
        baseline = self.baseline(tool, case.source)
        outcome = self._launch(tool, case.source, path)
        wrong = judge(
            case,
            tool,
            outcome,
            baseline=baseline,
            marked=self.marker.exists(),
            package=self.package,
        )
        return self._row(case, tool, outcome, wrong)

    def _row(
        self, case: Case, tool: str, outcome: Outcome | None, wrong: list[str]
    ) -> dict[str, Any]:
        line = '' if outcome is None else last_line(outcome.output)
        row: dict[str, Any] = {
            'file': case.name,
            'kind': case.kind,
            'effect': case.effect,
            'expect': case.expect,
            'tool': tool,
            'wrong': wrong,
        }
        if outcome is not None:
            row |= {
                'code': outcome.code,
                'seconds': round(outcome.seconds, 2),
                'wall_seconds': round(outcome.wall, 2),
                'peak_mib': round(outcome.peak_mib),
                'stopped': outcome.ended,
                'last_line': self._public(line)[:500],
            }
        done = 'refused' if row.get('code') else 'accepted'
        self.say(
            f'{"FAIL" if wrong else "ok":4} {case.name} -> {tool}: '
            f'{", ".join(wrong) or done}'
        )
        return row

    def _public(self, line: str) -> str:
        """Remove the run's folders from a line."""
        return line.replace(f'{self.folder}{os.sep}', '').replace(
            f'{self.root}{os.sep}', ''
        )


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
