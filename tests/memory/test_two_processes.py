"""One process adds documents while another asks."""

from ask_while_adding import main


def test_asking_while_another_process_adds(tmp_path):
    questions, versions = main(tmp_path / "memory", 300, 20)
    assert questions > 10
    assert versions > 3
