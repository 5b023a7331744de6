"""Packaging of sam_detector: Segment Anything prompted by a detector."""

from setuptools import find_packages, setup

setup(
    name='sam-detector',
    version='0.1.0',
    description='Segment Anything prompted by an mmdet detector, quantized '
    'with taskptq',
    license='Apache-2.0',
    packages=find_packages(include=['sam_detector', 'sam_detector.*']),
    python_requires='>=3.10',
    # mmengine, mmcv and mmdet come from the maintained fork or from the
    # original packages, as for taskptq itself.
    install_requires=['taskptq', 'segment-anything>=1.0', 'pycocotools'],
    extras_require={'picture': ['matplotlib']},
    entry_points={'taskptq.projects': ['sam_detector = sam_detector']},
)
