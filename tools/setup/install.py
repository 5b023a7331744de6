"""Set up ``.venv``: pinned packages, mmcv from source, taskptq itself.

Run by ``make setup`` with any Python from 3.10 to 3.12; uses only the standard
library. Every step first checks whether it is needed, so another run continues
after an interruption or repairs a broken ``.venv``. The steps are: the
environment, torch, mmcv (built from its source distribution against that
torch), everything else, taskptq.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / 'tools' / 'setup'
VENV = ROOT / '.venv'
BIN = VENV / ('Scripts' if os.name == 'nt' else 'bin')
PYTHON = BIN / 'python'
BUILD_LOG = VENV / 'mmcv-build.log'
TORCH, MMCV, OTHERS = (
    HERE / f'requirements{suffix}.txt' for suffix in ('-torch', '-mmcv', '')
)
TRY_MMCV = (
    'import torch; from mmcv.ops import nms; '
    'nms(torch.tensor([[0., 0., 9., 9.]]), torch.ones(1), 0.5)'
)
TRY_ALL = (
    'import mmdet.apis, mmdet.datasets, mmseg.apis, mmseg.datasets, '
    'segment_anything, taskptq.registry'
)
# Runs inside .venv: prints the requirements that are not met.
LIST_UNMET = """
import re, sys
from importlib import metadata
from pip._vendor.packaging.requirements import Requirement
for path in sys.argv[1:]:
    for line in open(path, encoding='utf-8'):
        line = line.split('#')[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(
                version.split('+')[0], prereleases=True):
            print(line)
"""
# Runs inside .venv: prints the folders installed in editable mode whose
# setup.py (commands, entry points) has not changed since.
LIST_EDITABLE = """
import json
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname
for found in metadata.distributions():
    text = found.read_text('direct_url.json')
    if text and json.loads(text).get('dir_info', {}).get('editable'):
        url = json.loads(text)['url']
        source = Path(url2pathname(urlparse(url).path)) / 'setup.py'
        records = [f for f in found.files if f.name == 'direct_url.json']
        installed = Path(found.locate_file(records[0]))
        if (source.is_file()
                and source.stat().st_mtime <= installed.stat().st_mtime):
            print(url)
"""


class SetupError(Exception):
    """A problem that the user has to fix, in one sentence."""


def say(text: str) -> None:
    """Print one line of progress immediately."""
    print(f'[setup] {text}', flush=True)


def build_environment() -> dict[str, str]:
    """Return the environment variables for pip and for mmcv's build."""
    env = dict(os.environ)
    env['PATH'] = f'{BIN}{os.pathsep}{env["PATH"]}'
    env['PIP_DISABLE_PIP_VERSION_CHECK'] = '1'
    env['MMCV_WITH_OPS'] = '1'
    env.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
    # Debug information takes more than half of mmcv's compile time. Setting
    # CFLAGS replaces Python's own flags, so they are repeated here.
    flags = env.get('CFLAGS') or sysconfig.get_config_var('CFLAGS') or '-O2'
    env['CFLAGS'] = f'{flags} -g0'
    if shutil.which('nvcc') is None and 'CUDA_HOME' not in env:
        # A visible GPU would make mmcv ask for a CUDA compiler; without one
        # its CPU operators are built.
        env['CUDA_VISIBLE_DEVICES'] = ''
    return env


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Python of ``.venv`` quietly, outside the repository."""
    return subprocess.run(
        [str(PYTHON), *arguments],
        cwd=VENV,
        capture_output=True,
        text=True,
        check=False,
    )


def pip_install(*arguments: str | Path) -> None:
    """Run ``pip install`` in ``.venv`` and show its output.

    Raises:
        SetupError: If pip fails.
    """
    command = [str(PYTHON), '-m', 'pip', 'install', *map(str, arguments)]
    result = subprocess.run(
        command, cwd=ROOT, env=build_environment(), check=False
    )
    if result.returncode != 0:
        raise SetupError(
            f'`{shlex.join(command)}` failed (see above); fix the problem '
            'and run `make setup` again.'
        )


def unmet(*paths: Path) -> list[str]:
    """Return the pinned requirements that ``.venv`` does not satisfy."""
    result = run_python('-c', LIST_UNMET, *map(str, paths))
    if result.returncode != 0:
        raise SetupError(f'.venv cannot be inspected: {result.stderr.strip()}')
    return result.stdout.splitlines()


def pip_runs() -> bool:
    """Return whether ``.venv`` has a working Python and pip."""
    return (
        PYTHON.exists()
        and run_python('-m', 'pip', '--version').returncode == 0
    )


def make_venv() -> None:
    """Create ``.venv``, or repair it if its Python or pip does not run.

    Raises:
        SetupError: If this Python cannot create it.
    """
    if pip_runs():
        return
    for options in ([], ['--clear']):
        say(f'creating {VENV}')
        result = subprocess.run(
            [sys.executable, '-m', 'venv', *options, str(VENV)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode == 0 and pip_runs():
            return
    raise SetupError(
        f'{sys.executable} cannot create {VENV}; if its venv or ensurepip '
        'module is missing, install it (on Debian or Ubuntu: '
        f'apt install python3-venv). It said: {result.stderr.strip()}'
    )


def install_torch() -> None:
    """Install torch and the requirements of mmcv's build."""
    missing = unmet(TORCH)
    if missing:
        say(
            f'installing {TORCH.name} ({len(missing)} to do; torch with its '
            'CUDA libraries is some 3 GB to download)'
        )
        pip_install('-r', TORCH)


def check_compiler() -> None:
    """Make sure that mmcv can be compiled.

    Raises:
        SetupError: If the compiler or Python's headers are missing.
    """
    compiler = os.environ.get('CXX', '').split()[:1]
    candidates = compiler or ['c++', 'g++', 'clang++']
    if not any(shutil.which(name) for name in candidates):
        raise SetupError(
            f'No C++ compiler found (looked for {", ".join(candidates)}), and '
            'mmcv has to be compiled; install one (on Debian or Ubuntu: apt '
            'install g++) or name it in CXX, then run `make setup` again.'
        )
    result = run_python(
        '-c', 'import sysconfig; print(sysconfig.get_path("include"))'
    )
    header = Path(result.stdout.strip()) / 'Python.h'
    if not header.is_file():
        raise SetupError(
            f'{header} is missing, and mmcv cannot be compiled without it; '
            'install the headers of this Python (on Debian or Ubuntu: apt '
            'install python3-dev), then run `make setup` again.'
        )


def show_build(lines: IO[str]) -> None:
    """Log a build's output and show ninja's counter, e.g. ``[12/78]``."""
    start = time.monotonic()
    with BUILD_LOG.open('w', encoding='utf-8') as log:
        for line in lines:
            log.write(line)
            log.flush()
            step = re.match(r'\s*\[(\d+)/(\d+)\]', line)
            if step:
                seconds = round(time.monotonic() - start)
                done, total = step.groups()
                say(f'mmcv: {done} of {total} files compiled, {seconds} s')


def build_mmcv(*options: str) -> None:
    """Compile mmcv from its source distribution, with progress.

    Args:
        *options: Further options of ``pip install``.

    Raises:
        SetupError: If the build fails.
    """
    check_compiler()
    say(
        'building mmcv from source; expect about 6 minutes on two cores, '
        f'log in {BUILD_LOG}'
    )
    command = [
        str(PYTHON),
        '-m',
        'pip',
        'install',
        '-v',
        '--no-deps',
        '--no-build-isolation',
        *options,
        '-r',
        str(MMCV),
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=build_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    ) as process:
        assert process.stdout is not None
        show_build(process.stdout)
    if process.returncode != 0:
        tail = BUILD_LOG.read_text(encoding='utf-8').splitlines()[-30:]
        raise SetupError(
            'mmcv could not be built; the end of '
            f'{BUILD_LOG}:\n' + '\n'.join(tail)
        )


def install_mmcv() -> None:
    """Build mmcv if it is not installed."""
    if unmet(MMCV):
        build_mmcv()


def check_mmcv() -> None:
    """Run one of mmcv's operators; rebuild mmcv if that fails.

    It fails after damage, or if pip kept a build against another torch.

    Raises:
        SetupError: If the operators do not run after a fresh build either.
    """
    if run_python('-c', TRY_MMCV).returncode == 0:
        return
    say('the installed mmcv does not run, rebuilding it')
    build_mmcv('--force-reinstall', '--no-cache-dir')
    result = run_python('-c', TRY_MMCV)
    if result.returncode != 0:
        raise SetupError(
            f'mmcv was built but does not run:\n{result.stderr.strip()}'
        )


def install_others() -> None:
    """Install the remaining requirements."""
    missing = unmet(OTHERS)
    if missing:
        say(f'installing {OTHERS.name} ({len(missing)} to do)')
        pip_install('--no-deps', '--no-build-isolation', *missing)


def install_editable() -> None:
    """Install taskptq and the packages of projects in editable mode."""
    present = run_python('-c', LIST_EDITABLE).stdout.split()
    folders = [
        ROOT,
        *(path.parent for path in sorted(ROOT.glob('projects/*/setup.py'))),
    ]
    for folder in folders:
        if folder.as_uri() not in present:
            name = 'taskptq' if folder == ROOT else f'project {folder.name}'
            say(f'installing {name} in place')
            pip_install(
                '-q', '--no-deps', '--no-build-isolation', '-e', folder
            )


def verify() -> None:
    """Import the packages of tests and demo; reinstall if that fails.

    Raises:
        SetupError: If something still cannot be imported.
    """
    if run_python('-c', f'{TRY_MMCV}\n{TRY_ALL}').returncode == 0:
        return
    say('an installed package does not import, reinstalling all of them')
    pip_install(
        '-q',
        '--no-deps',
        '--no-build-isolation',
        '--force-reinstall',
        '-r',
        OTHERS,
    )
    check_mmcv()
    result = run_python('-c', TRY_ALL)
    if result.returncode != 0:
        raise SetupError(
            'The packages are installed but do not import:\n'
            f'{result.stderr.strip()}\nRemove {VENV} and run '
            '`make setup` again.'
        )


def set_up(stamp: Path) -> None:
    """Run the necessary steps, then write the stamp."""
    make_venv()
    install_torch()
    install_mmcv()
    install_others()
    install_editable()
    verify()
    for old in VENV.glob('.taskptq-setup-*'):
        old.unlink()
    stamp.touch()
    say('ready')


def main() -> int:
    """Parse the command line and set up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'stamp', type=Path, help='file to write when everything is ready'
    )
    stamp = parser.parse_args().stamp
    try:
        set_up(ROOT / stamp)
    except SetupError as error:
        print(f'[setup] {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('[setup] interrupted; `make setup` continues', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
