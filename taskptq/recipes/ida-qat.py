"""lsq-qat, with the necks distilled where both models differ most.

Patches at the proposals of largest information discrepancy, and a Gaussian
likelihood there: the distillation of IDa-Det (Xu et al., ECCV 2022). For
QATHook and detectors with a neck.
"""

base = 'lsq-qat'
distillation = dict(
    views=[
        dict(
            taps='neck',
            regions=dict(type='discrepancy', share=0.6),
            loss='gaussian_likelihood',
            weight=0.5,
        )
    ]
)
