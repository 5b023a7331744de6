"""Packaging of taskptq.

The requirements are wide on purpose: taskptq is added to a working mm
environment (``pip install --no-deps taskptq``) and must not change it. The
exact versions that ``make setup`` installs are in ``tools/setup``.

mmengine is needed by all but ``taskptq info`` and ``import taskptq``, and is
no hard requirement all the same: two distributions provide it
(``onedl-mmengine``, ``mmengine``), both as ``import mmengine``, and naming
one would install it over the other. ``taskptq.registry`` says what to
install where it is missing; the extra ``mm`` brings the maintained fork.

The wheel carries the model configs as the mm packages do, in
``taskptq/.mim``: without checkpoints, results and pictures. They are copied
there while a wheel is built; the source tree has no ``.mim``, and an editable
install reads ``configs/`` itself.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PATTERNS = ('*.py', 'metafile.yml')


def read_version() -> str:
    """Read ``__version__`` without importing the package."""
    source = (ROOT / 'taskptq' / 'version.py').read_text(encoding='utf-8')
    namespace: dict[str, str] = {}
    exec(source, namespace)
    return namespace['__version__']


def read_readme() -> str:
    """Return the README's text, or nothing in a tree that has none."""
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.is_file() else ''


def copy_configs(target: Path) -> None:
    """Copy the model configs and the index of those that are copied.

    Args:
        target: The folder ``.mim`` to make.
    """
    for pattern in PATTERNS:
        for path in sorted((ROOT / 'configs').rglob(pattern)):
            copy = target / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    index = (ROOT / 'model-index.yml').read_text(encoding='utf-8')
    lines = [
        line
        for line in index.splitlines()
        if not line.lstrip(' -').startswith('projects/')
    ]
    (target / 'model-index.yml').write_text(
        '\n'.join(lines) + '\n', encoding='utf-8'
    )


class BuildWithConfigs(build_py):
    """Builds the package with its configs, and with nothing of old builds."""

    def run(self) -> None:
        """Copy the package, then the configs unless it stays in place."""
        if self.editable_mode:
            super().run()
            return
        target = Path(self.build_lib) / 'taskptq'
        # What was renamed since the last build would be packed as well.
        shutil.rmtree(target, ignore_errors=True)
        super().run()
        copy_configs(target / '.mim')


setup(
    name='taskptq',
    version=read_version(),
    description='Post-training quantization for OpenMMLab detectors, '
    'segmentors and lane models',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['taskptq', 'taskptq.*']),
    # Method files are no modules: their names have - and +.
    package_data={
        'taskptq': [
            'py.typed',
            'recipes/*.py',
            'analysis/page/templates/*',
        ]
    },
    cmdclass={'build_py': BuildWithConfigs},
    entry_points={'console_scripts': ['taskptq = taskptq.cli.main:main']},
    python_requires='>=3.10',
    install_requires=['filelock', 'numpy', 'regex', 'rich', 'torch>=2.4'],
    extras_require={
        'mm': [
            'onedl-mmengine>=0.10.8,<1',
            'onedl-mmcv>=2.3,<3',
            'onedl-mmdetection>=3.4,<4',
            'onedl-mmsegmentation>=1.3,<2',
        ],
        'onnx': ['onnx>=1.23', 'onnxruntime>=1.23', 'onnxscript>=0.7'],
        'openvino': ['onnx>=1.23', 'openvino>=2026.4'],
        'report': ['jinja2>=3', 'matplotlib>=3.7'],
        'compress': ['constriction>=0.4,<1', 'zstandard>=0.21'],
        'mixed': ['matplotlib>=3.7', 'scipy>=1.9'],
        'robustness': [
            'av>=12',
            'imagecorruptions-imaug>=1.1.5',
            'matplotlib>=3.7',
            'simplejpeg>=1.7',
        ],
        'sam': ['scipy', 'segment-anything>=1.0'],
    },
    classifiers=[
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
)
