"""Packaging of taskptq.

The requirements are wide on purpose: taskptq is added to a working mm
environment (``pip install --no-deps -e .``) and must not change it. The exact
versions that ``make setup`` installs are in ``tools/setup``.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


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


setup(
    name='taskptq',
    version=read_version(),
    description='Post-training quantization for OpenMMLab detectors, '
    'segmentors and lane models',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['taskptq', 'taskptq.*']),
    python_requires='>=3.10',
    install_requires=['filelock', 'numpy', 'regex', 'torch>=2.4'],
    extras_require={
        # The maintained fork; the original packages (mmengine, mmcv, mmdet,
        # mmsegmentation) serve as well, so neither is a hard requirement.
        'mm': [
            'onedl-mmengine>=0.10.8,<1',
            'onedl-mmcv>=2.3,<3',
            'onedl-mmdetection>=3.4,<4',
            'onedl-mmsegmentation>=1.3,<2',
        ],
        'sam': ['segment-anything>=1.0'],
        'onnx': ['onnx>=1.16', 'onnxruntime>=1.18'],
    },
    classifiers=[
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
