def measured(demo, title, ap):
    rows = demo('demo_parts.rows')
    row = rows.Row(key='k', title=title, config='c.py')
    return rows.Measured(
        row=row,
        command='python tools/test.py c.py c.pth',
        ap=ap,
        ap50=ap + 0.1,
        file_bytes=2_500_000,
        seconds=12.3,
    )


def test_table_relates_to_float(demo):
    report = demo('demo_parts.report')
    rows = [measured(demo, 'float', 0.5), measured(demo, 'W3A3', 0.4)]
    lines = report.text_table(rows).splitlines()
    assert lines[0].split()[:3] == ['model', 'AP', 'AP50']
    assert '100.0 %' in lines[2]
    assert '80.0 %' in lines[3]
    assert '2.50' in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_page_shows_table_picture_and_commands(demo, tmp_path):
    report = demo('demo_parts.report')
    out = tmp_path / 'report.html'
    report.write_html(
        [measured(demo, 'a < b', 0.5)],
        picture=tmp_path / 'boxes.png',
        out=out,
        seconds=100.4,
        cpu_seconds=150.2,
    )
    page = out.read_text()
    assert 'a &lt; b' in page
    assert 'src="boxes.png"' in page
    assert 'python tools/test.py c.py c.pth' in page
