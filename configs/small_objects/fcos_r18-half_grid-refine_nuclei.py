# All of UGS: non-uniform grid, uncertainty minimization, and the refinement on
# perturbed features (training only).
_base_ = './fcos_r18-half_grid-um_nuclei.py'

model = dict(bbox_head=dict(refinement=dict(rho=0.5, weight=0.1)))
