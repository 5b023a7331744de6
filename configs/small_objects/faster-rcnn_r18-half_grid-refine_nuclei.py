# All of UGS: non-uniform grid, uncertainty minimization, and the refinement on
# perturbed features (training only).
_base_ = './faster-rcnn_r18-half_grid-um_nuclei.py'

model = dict(
    rpn_head=dict(refinement=dict(rho=0.5, weight=0.1)),
    roi_head=dict(
        type='taskptq.RefinedStandardRoIHead',
        refinement=dict(rho=0.5, weight=0.1),
    ),
)
