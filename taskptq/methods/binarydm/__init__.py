"""BinaryDM: distil features in the directions that vary most."""

from taskptq.methods.binarydm.projection import (
    ProjectedFeatureLoss,
    principal_directions,
)

__all__ = ['ProjectedFeatureLoss', 'principal_directions']
