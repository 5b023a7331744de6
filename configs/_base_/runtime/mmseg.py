_base_ = ['./mmdet.py']
default_scope = 'mmseg'

default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer')
