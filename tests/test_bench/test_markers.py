"""Markers of projects come after the plugin's own, once for each name."""

from taskptq.bench import markers


def test_registered_once_and_last(monkeypatch):
    monkeypatch.setattr(markers, '_REGISTERED', {})
    own = markers.updaters()
    assert len(own) == 4

    def first(text, root, families, entries):
        return text + '1'

    def second(text, root, families, entries):
        return text + '2'

    markers.register('lanes', first)
    markers.register('sam', second)
    assert markers.updaters() == [*own, first, second]
    markers.register('lanes', second)
    assert markers.updaters() == [*own, second, second]


def test_text_without_markers_is_left_alone(tmp_path):
    text = '# A page\n\nNo marker <!-- of another kind --> here.\n'
    for update in markers.updaters()[:4]:
        assert update(text, tmp_path, ['*'], {}) == text
