"""Packaging of small_objects: a study of box grids under quantization."""

from setuptools import find_packages, setup

setup(
    name='small-objects',
    version='0.1.0',
    description='Study of box grids for small objects, quantized with taskptq',
    license='Apache-2.0',
    packages=find_packages(include=['small_objects', 'small_objects.*']),
    python_requires='>=3.10',
    install_requires=['taskptq', 'numpy'],
    extras_require={'picture': ['matplotlib']},
    entry_points={'taskptq.projects': ['small_objects = small_objects']},
)
