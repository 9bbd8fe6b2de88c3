import numpy as np
import pytest

from openrlhf_qs import cli
from openrlhf_qs.benchmark.serving import Measured, cells
from openrlhf_qs.benchmark.silence import SHARES, curve
from openrlhf_qs.files.whole import write_json_lines


def test_of_four_conversations_the_half_that_is_shown_has_the_clicks_of_its_own():
    expected, truth = np.array([0.9, 0.1, 0.5, 0.2]), np.array([0.4, 0.3, 0.2, 0.1])
    found = {share: rest for share, *rest in curve(expected, truth)}
    assert list(found) == list(SHARES)
    # the first and the third: .4 and .2 of 1.0 in all
    assert found[0.5] == pytest.approx([0.5, 0.3, 0.4])
    assert found[1.0] == pytest.approx([0.1, 0.25, 0.0])


def test_a_file_without_chances_is_refused(tmp_path, capsys):
    write_json_lines(tmp_path / "rows.jsonl", [{"conversation": [], "suggestions": ["Why?"]}])
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "silence", str(tmp_path / "rows.jsonl")])
    assert "give --reward_model to suggest" in capsys.readouterr().err


def test_the_log_and_the_journal_are_measured_alike(tmp_path, capsys):
    cli.main(["benchmark", "live-log", "--n_waiting", "4", "--seconds", "0.2", "--folder", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "SQLite" in shown and "journal" in shown
    assert list(tmp_path.iterdir()) == []


def test_how_much_longer_a_server_takes_is_told_by_conversation():
    alone, over_http = Measured([0.1] * 10, 0.25, 0.5), Measured([0.1, 0.3] * 10, 0.6, 1.4)
    assert cells(alone, alone) == ["40.0", "100", "100", "50", "+0%"]
    # 30 ms a conversation where 25 are enough; half of them take 100 ms and half 300
    assert cells(over_http, alone) == ["33.3", "200", "300", "70", "+20%"]
