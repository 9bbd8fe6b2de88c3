import argparse
import io
import sys

import pytest

from openrlhf_qs.host import follow
from openrlhf_qs.host.follow import Place, Progress, _lines, describe

IN_RAY = "\x1b[36m(PPOTrainer pid=5563)\x1b[0m INFO 11-21 02:04:07 ppo_trainer.py:551] ✨ "


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "Train step of epoch 0:  83%|████▎ | 38/46 [00:02<00:00, 14.71it/s, loss=0.548, acc=0.781, "
            "chosen_reward=0.0958, reject_reward=0.00401, lr=0.000973, grad_norm=1.9]\x1b[A",
            Place("epoch 1, step 38 of 46", ("loss 0.548", "acc 0.781"), 38),
        ),
        (
            "Train step of epoch 1:   6%|▌         | 8/138 [00:02<00:42,  3.07it/s, gpt_loss=0.966, lr=0.00176, "
            "grad_norm=6.2e-05]\x1b[A\x1b[A",
            Place("epoch 2, step 8 of 138", ("loss 0.966",), 146),
        ),
        (
            "Train step of epoch 0:   1%| | 1/46 [00:01<00:45, 1.2s/it, loss=nan]",
            Place("epoch 1, step 1 of 46", ("loss nan",), 1),
        ),
        (
            "Eval stage of steps 40:  50%|██ | 2/4 [00:00<00:00,  9.1it/s, eval loss=0.5]",
            Place("evaluation 2 of 4", (), 2, 4),
        ),
        ("Processed prompts:  25%|██ | 8/32 [00:01<00:03,  7.1it/s]", Place("responses 8 of 32", (), 8, 32)),
        ("responses of sft at 0.7:  25%|██| 8/32 [00:01<00:03]", Place("responses of sft at 0.7: 8 of 32", (), 8, 32)),
        ("responses:  25%|██| 8/32 [00:01<00:03]", Place("responses: 8 of 32", (), 8, 32)),
        (
            "Map (num_proc=2):   0%|          | 0/4430 [00:00<?, ? examples/s]",
            Place("reading rows 0 of 4430", (), 0, 4430),
        ),
        (
            f"{IN_RAY}Global step 8: {{'response_length': 31.1875, 'reward': -13.900223731994629, 'actor_lr': 0.0096, "
            "'reward/rules': -1.0, 'kl': 7.452897891730727e-05, 'malformed': 1.0, 'timing/generation': 3.1}",
            Place("step 8", ("reward -13.9", "kl 7.45e-05", "malformed 100.0%", "tokens 31.2"), 8),
        ),
        (
            "Global step 3: {'reward': nan, 'kl': inf, 'sample': ['a', 'b']}",
            Place("step 3", ("reward nan", "kl inf"), 3),
        ),
        ("Loading weights: 100%|██████████| 24/24 [00:00<00:00, 27228.37it/s]", None),
        ("Global step 3: no numbers", None),
        ("Train step of epoch 0 begins", None),
        ("", None),
    ],
)
def test_a_line_of_openrlhf_says_where_the_run_stands(line, text):
    assert describe(line) == text


def test_the_steps_in_all_are_shown_where_they_are_known():
    assert describe("Global step 8: {'reward': 0.5}", n_steps=40) == Place("step 8 of 40", ("reward 0.5",), 8, 40)


def test_the_line_says_which_epoch_how_long_and_how_much_is_left():
    progress = Progress("sft")
    start = progress.started
    assert progress.take("Train epoch:   0%|          | 0/4 [00:00<?, ?it/s]", start + 30) is None
    bar = "Train step of epoch {}:  83%|████▎ | {}/100 [00:02<00:00, 14.71it/s, gpt_loss=0.5]"
    assert progress.take(bar.format(0, 1), start + 40) == "sft: epoch 1 of 4, step 1 of 100  loss 0.5  (40 s)"
    # 99 steps in 60 s, 300 to go: 181.8 s
    assert progress.take(bar.format(0, 100), start + 100).endswith("step 100 of 100  loss 0.5  (1:40, 3:02 left)")
    assert progress.take(bar.format(3, 100), start + 3700).endswith("step 100 of 100  loss 0.5  (1:01:40, 0 s left)")


def test_a_resumed_training_counts_on_from_where_it_was():
    progress = Progress("garm")
    progress.take("Train epoch:   0%|          | 0/1 [00:00<?, ?it/s]", progress.started + 20)
    bar = "Train step of epoch 1:  50%|████▎ | {}/80 [00:02<00:00, 14.71it/s, loss=0.5]"
    assert progress.take(bar.format(0), progress.started + 30) == "garm: epoch 2 of 2, step 0 of 80  loss 0.5  (30 s)"
    assert progress.take(bar.format(40), progress.started + 50).endswith("step 40 of 80  loss 0.5  (50 s, 20 s left)")


def test_responses_say_how_much_is_left_and_are_no_measure_of_the_steps_after_them():
    progress = Progress("grpo", 10)
    start = progress.started
    bar = "Processed prompts:  25%|██ | {}/32 [00:01<00:03,  7.1it/s]"
    assert progress.take(bar.format(0), start + 10) == "grpo: responses 0 of 32  (10 s)"
    assert progress.take(bar.format(8), start + 14) == "grpo: responses 8 of 32  (14 s, 12 s left)"
    assert progress.take("Global step 1: {'reward': 0.5}", start + 40) == "grpo: step 1 of 10  reward 0.5  (40 s)"
    assert progress.take(bar.format(16), start + 44).endswith("(44 s, 34 s left)")
    assert progress.take(bar.format(0), start + 50) == "grpo: responses 0 of 32  (50 s)"  # of the next step
    assert progress.take(bar.format(16), start + 52).endswith("(52 s, 2 s left)")
    assert progress.take("Global step 2: {'reward': 0.5}", start + 60).endswith("(1:00, 2:40 left)")


def test_a_line_is_never_wider_than_a_terminal_and_keeps_its_times():
    progress = Progress("grpo", 500)
    values = {"reward": -13.900223, "kl": 7.4528e-05, "malformed": 0.0078125, "response_length": 1234.5}
    line = f"Global step 499: {values}"
    progress.take("Global step 1: {'reward': 0.5}", progress.started + 60)
    shown = progress.take(line, progress.started + 40000)
    assert len(shown) <= 79 and shown.startswith("grpo: step 499 of 500  reward -13.9  kl 7.45e-05")
    assert shown.endswith("(11:06:40, 1:20 left)")


class Pieces(io.RawIOBase):
    """A stream that hands out its pieces one by one, as a pipe does."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def read1(self, size: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def test_a_carriage_return_ends_a_line_and_the_log_gets_every_byte():
    log = io.BytesIO()
    # a letter of two bytes and a line are cut between two pieces, the last line has no end
    pieces = (b"10%\r20", b"%\r30%\nT\xc3", b"\xbcr\n", b"end")
    assert list(_lines(Pieces(*pieces), log)) == ["10%", "20%", "30%", "Tür", "end"]
    assert log.getvalue() == b"".join(pieces)


def test_a_full_disk_ends_the_log_and_not_the_run():
    class Full(io.BytesIO):
        def write(self, chunk):
            raise OSError(28, "No space left on device")

    pieces = (b"Global step 1: {}\n", b"Global step 2: {}\n")
    assert list(_lines(Pieces(*pieces), Full())) == [
        "log.txt is no longer written: [Errno 28] No space left on device",
        "Global step 1: {}",
        "Global step 2: {}",
        "",
    ]


def test_bytes_that_are_no_text_are_no_error():
    assert list(_lines(Pieces(b"\xff\xfe\n"), io.BytesIO())) == ["\ufffd\ufffd", ""]


@pytest.mark.parametrize(
    ("output", "last"),
    [
        (
            b"starting\nGlobal step 1: {'reward': 1.0}\nGlobal step 2: {'reward': 1.5}\nbye\n",
            "grpo: step 2 of 2  reward 1.5  (",
        ),
        (b"Traceback (most recent call last):\n", "grpo: ended without a step"),
    ],
)
def test_the_newest_progress_is_the_last_line_and_the_log_is_appended(tmp_path, monkeypatch, capsys, output, last):
    log = tmp_path / "log.txt"
    log.write_bytes(b"before\n")
    monkeypatch.setattr(sys, "stdin", argparse.Namespace(buffer=Pieces(output)))
    follow.run(argparse.Namespace(stage="grpo", log=str(log), n_steps=2))
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)
    assert log.read_bytes() == b"before\n" + output


def test_an_alarm_is_shown_whole_and_once_though_the_error_at_the_end_repeats_it(tmp_path, monkeypatch, capsys):
    alarm = "monitor sigma, step 2: the reward model's standard deviation is 2, 1 at first: " + "a long story " * 20
    output = f"{IN_RAY}{alarm}\x1b[0m\nMonitorStop: {alarm}. The run was told to stop\n".encode()
    monkeypatch.setattr(sys, "stdin", argparse.Namespace(buffer=Pieces(output)))
    follow.run(argparse.Namespace(stage="grpo", log=str(tmp_path / "log.txt"), n_steps=2))
    shown = capsys.readouterr().out
    assert shown.count("standard deviation is 2") == 1
    assert shown.splitlines()[0].startswith(f"grpo: {alarm}")
