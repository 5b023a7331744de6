"""lsq-qat, with the necks distilled everywhere.

The squared error of the neck's features, relative to their power: hints of
FitNets (Romero et al., ICLR 2015). For QATHook and detectors with a neck.
"""

base = 'lsq-qat'
distillation = dict(
    views=[dict(taps='neck', loss='squared_feature', weight=0.5)]
)
