"""Packaging of edge_challenge: drone images segmented on small boards."""

from setuptools import find_packages, setup

setup(
    name='edge-challenge',
    version='0.1.0',
    description='The low-power vision challenge of 2023 for mmseg models, '
    'quantized with taskptq',
    license='Apache-2.0',
    packages=find_packages(include=['edge_challenge', 'edge_challenge.*']),
    python_requires='>=3.10',
    # mmengine, mmcv and mmseg come from the maintained fork or from the
    # original packages, as for taskptq itself.
    install_requires=['taskptq', 'numpy', 'pillow'],
    entry_points={'taskptq.projects': ['edge_challenge = edge_challenge']},
)
