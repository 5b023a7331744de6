"""Made-up records of a sensitivity analysis."""

from taskptq.analysis.sensitivity import PointSensitivity, SensitivityReport


def make_point(name='a', *, loss=0.1, role='depthwise input', **fields):
    bits = str(fields.get('num_bits', 8))
    settings = {
        'name': f'{name}.input_quantizer',
        'layer': name,
        'point': 'activation',
        'role': role,
        'num_bits': 8,
        'macs': 10,
        'elements': 4,
        'sqnr_db': 20.0,
        'peak_to_std': 46.0,
        'codes_used': 0.5,
        'effective_bits': 2.0,
        'losses': {'4': 4 * loss, bits: loss},
    }
    return PointSensitivity(**{**settings, **fields})


def make_report(losses, **fields):
    """A report of points with some losses, by layer."""
    return SensitivityReport(
        points=tuple(
            make_point(name, loss=loss) for name, loss in losses.items()
        ),
        estimator='gradient',
        num_images=8,
        **fields,
    )
