import pytest
from rich.table import Table

from openrlhf_qs.files.printable import counted, from_here, print_figures, print_table, printable


@pytest.mark.parametrize(
    "text",
    ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07red", "\x1b]8;;http://x\x1b\\red", "re\x08\x9bd", "\x1bcred", "red\r"],
)
def test_what_moves_the_cursor_or_renames_the_window_is_taken_out(text):
    shown = printable(text)
    assert shown in ("red", "cred") and not any(ord(letter) < 32 for letter in shown)


def test_other_text_stays_as_it_is():
    assert printable("¿Qué?\t[bold] 你好 🙂\n") == "¿Qué?\t[bold] 你好 🙂\n"


def test_one_is_no_plural():
    assert counted(1, "row") == "1 row" and counted(2000, "row") == "2,000 rows" and counted(0, "row") == "0 rows"


def test_a_path_is_told_as_one_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "runs" / "a") == "runs/a" == from_here("runs/a")
    assert from_here("/elsewhere/a") == "/elsewhere/a"


def test_a_tables_title_stands_whole_above_it_whatever_is_in_brackets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = Table("", "rows", title="log convert: chats.json to runs/[red]/clicks of a long name.jsonl")
    table.add_row("[bold]", ":+1:")
    print_table(table)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "log convert: chats.json to runs/[red]/clicks of a long name.jsonl"
    assert any("[bold]" in line and ":+1:" in line for line in shown[1:])


def test_figures_stand_under_their_title_counts_whole_and_the_rest_to_three_digits(capsys):
    print_figures("what was found", {"users": 4942, "deviation": 0.5434})
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == "what was found" and any("users" in row and "4,942" in row for row in rows)
    assert any("deviation" in row and " 0.543 " in row for row in rows)
