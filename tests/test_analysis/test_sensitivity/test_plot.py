import pytest
from wild_points import make_report

from taskptq.analysis.sensitivity import RoleSensitivity
from taskptq.analysis.sensitivity.plot import plot_sensitivity


def test_png_and_svg(tmp_path):
    role = RoleSensitivity(
        role='depthwise input', num_points=2, macs=5, alone=0.3, others=0.1
    )
    report = make_report(
        {'first': 0.1, 'worst': 0.3, 'l' * 90: 0.0, 'least': 1e-9},
        total=0.4,
        roles=(role,),
    )
    png = plot_sensitivity(report, tmp_path / 'new' / 'a.png')
    assert png.read_bytes()[:4] == b'\x89PNG'
    svg = plot_sensitivity(report, tmp_path / 'a.svg', most=3).read_text()
    assert '<svg' in svg


def test_without_roles(tmp_path):
    path = plot_sensitivity(make_report({'a': 0.1}), tmp_path / 'a.png')
    assert path.stat().st_size > 1000


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match='0 tensors'):
        plot_sensitivity(make_report({}), tmp_path / 'a.png')
