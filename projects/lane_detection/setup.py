"""Packaging of lane_detection: lane detectors, their data and metrics."""

from setuptools import find_packages, setup

setup(
    name='lane-detection',
    version='0.1.0',
    description='Lane detectors of four families in mm style, quantized '
    'with taskptq',
    license='Apache-2.0',
    packages=find_packages(include=['lane_detection', 'lane_detection.*']),
    python_requires='>=3.10',
    # mmengine, mmcv and mmdet come from the maintained fork or from the
    # original packages, as for taskptq itself.
    install_requires=['taskptq', 'numpy', 'scipy', 'opencv-python-headless'],
    extras_require={'picture': ['matplotlib']},
    entry_points={'taskptq.projects': ['lane_detection = lane_detection']},
)
