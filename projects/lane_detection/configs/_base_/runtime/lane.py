_base_ = '../../../../../configs/_base_/runtime/mmdet.py'
custom_imports = dict(imports=['lane_detection'])
default_hooks = dict(
    visualization=dict(_delete_=True, type='LaneVisualizationHook')
)
