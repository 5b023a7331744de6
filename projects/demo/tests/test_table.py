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
    table = demo('demo_parts.table')
    rows = [measured(demo, 'float', 0.5), measured(demo, 'W3A3', 0.4)]
    lines = table.text_table(rows).splitlines()
    assert lines[0].split()[:3] == ['model', 'AP', 'AP50']
    assert '100.0 %' in lines[2]
    assert '80.0 %' in lines[3]
    assert '2.50' in lines[3]
    assert len({len(line) for line in lines}) == 1
