from taskptq.engine.file_choices import FileChoices


def test_a_graph_gets_only_what_was_chosen():
    assert FileChoices().of_graph() == {'exporter': 'torchscript'}
    chosen = FileChoices(gate_limit=0, exporter='dynamo', end_to_end=True)
    assert chosen.of_graph() == {'exporter': 'dynamo', 'gate_limit': 0}
