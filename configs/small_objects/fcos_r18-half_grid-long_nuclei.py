# Three times the schedule: is a difference one of training speed?
_base_ = './fcos_r18-half_grid_nuclei.py'

train_cfg = dict(max_epochs=42, val_interval=42)
