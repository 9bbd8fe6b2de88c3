import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from openrlhf_qs import cli
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.files.whole import read_json_lines, write_json_lines
from openrlhf_qs.form.response import format_response, response_regex
from openrlhf_qs.form.task import SUGGEST
from openrlhf_qs.models import endpoint as chat
from openrlhf_qs.models.engine import Answer
from openrlhf_qs.sft.cold_start import TEMPLATES, chosen, read_suggestions, read_template

RIGHT = "1. How long?\n2. Which flour?\n3. Why salt?"


class Server:
    """A chat endpoint in a thread. ``answer(name, n)`` is what the ``n``-th request about conversation ``name`` gets:
    (status, text), or seconds to sleep before RIGHT; ``asked`` counts the requests by name."""

    def __init__(self):
        self.answer = lambda name, n: (200, RIGHT)
        self.asked, self.headers, self.in_flight, self.most_in_flight = {}, {}, 0, 0
        server, self.lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = next(word for word in json.dumps(body["messages"]).split() if word.startswith("topic"))
                with server.lock:
                    n = server.asked[name] = server.asked.get(name, 0) + 1
                    server.in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server.in_flight)
                answer = server.answer(name, n)
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = 200, RIGHT
                with server.lock:
                    server.in_flight -= 1
                status, text = answer
                sent = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                try:
                    self.send_response(status)
                    for header in server.headers.items():
                        self.send_header(*header)
                    self.send_header("Content-Length", str(len(sent)))
                    self.end_headers()
                    self.wfile.write(sent)
                except BrokenPipeError:
                    pass  # whoever asked did not wait

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(chat, "PAUSE_S", 0.001)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def ask(tmp_path, server):
    """``ask(n, *flags)`` runs cold-start on ``n`` conversations; returns the log's path."""
    file, out = tmp_path / "conversations.jsonl", tmp_path / "log.jsonl"

    def ask(n, *flags):
        write_json_lines(file, [{"conversation": conversation(i), "user_id": f"u{i}"} for i in range(n)])
        cli.main(["cold-start", str(file), "--out", str(out), "--endpoint", server.url, "--model", "big", *flags])
        return out

    return ask


def conversation(i):
    return [{"role": "user", "content": f"About topic{i} please"}, {"role": "assistant", "content": "Use flour."}]


def test_each_conversation_gets_an_impression_in_the_order_given(ask, server):
    server.answer = lambda name, n: (200, f"1. {name}?\n2. Which flour?\n3. Why salt?")
    rows = read_json_lines(ask(20))
    assert [row["suggestions"][0] for row in rows] == [f"topic{i}?" for i in range(20)]
    assert [row["conversation"] for row in rows] == [conversation(i) for i in range(20)]
    assert [row["user_id"] for row in rows] == [f"u{i}" for i in range(20)]
    assert {row["policy"] for row in rows} == {"big+follow_up@2"}
    assert len({row["impression_id"] for row in rows}) == 20


def test_what_nobody_was_shown_is_no_click_log_until_it_was_served(ask):
    out = ask(3)
    with pytest.raises(ValueError, match="log.jsonl:1: no clicks"):
        read_click_log(out)
    served = [row | {"clicks": [0, 1, 0]} for row in read_json_lines(out)]
    write_json_lines(out, served)
    log = read_click_log(out)
    assert log["suggestions"].to_list() == [["How long?", "Which flour?", "Why salt?"]] * 3
    assert log["policy"].to_list() == ["big+follow_up@2"] * 3


@pytest.mark.parametrize("first", [(500, ""), (429, ""), (200, "Sure! Here you are"), (200, None), 3.0])
def test_what_may_pass_is_asked_again(ask, server, first):
    server.answer = lambda name, n: first if n == 1 else (200, RIGHT)
    assert len(read_json_lines(ask(2, "--timeout_s", "1.5"))) == 2  # long enough for a busy machine
    assert server.asked == {"topic0": 2, "topic1": 2}


def test_the_pause_that_the_server_names_is_kept(ask, server):
    server.headers = {"Retry-After": "1"}
    server.answer = lambda name, n: (429, "") if n == 1 else (200, RIGHT)
    started = time.monotonic()
    ask(1)
    assert time.monotonic() - started >= 1


def test_a_row_that_fails_stops_the_run_and_is_named_and_the_others_are_kept(ask, server, capsys, tmp_path):
    server.answer = lambda name, n: (400, "no such model") if name == "topic3" else (200, RIGHT)
    with pytest.raises(SystemExit):
        ask(8, "--concurrency", "1")
    said = capsys.readouterr().err
    assert "conversations.jsonl:4: gave up on" in said and "HTTP 400" in said and "3 of 8 impressions are done" in said
    assert not (tmp_path / "log.jsonl").exists()
    server.answer = lambda name, n: (200, RIGHT)
    assert len(read_json_lines(ask(8))) == 8
    assert server.asked == {f"topic{i}": 2 if i == 3 else 1 for i in range(8)}


def test_rows_that_fail_can_be_left_out_but_are_counted_and_listed(ask, server, capsys, tmp_path):
    bad = {"topic2": (500, "busy"), "topic5": (200, "1. One?\n2. Two?")}
    server.answer = lambda name, n: bad.get(name, (200, RIGHT))
    rows = read_json_lines(ask(8, "--on_error", "skip", "--retries", "1"))
    assert [row["user_id"] for row in rows] == ["u0", "u1", "u3", "u4", "u6", "u7"]
    failures = read_json_lines(tmp_path / "log.failures.jsonl")
    assert [failure["line"] for failure in failures] == [3, 6]
    assert "HTTP 500" in failures[0]["problem"] and "numbers [1, 2]" in failures[1]["problem"]
    said = capsys.readouterr().out
    assert "6" in said and "left out" in said and "after 2 tries" in said

    bad.clear()
    assert len(read_json_lines(ask(8))) == 8
    assert server.asked == {f"topic{i}": 3 if i in (2, 5) else 1 for i in range(8)}
    assert not (tmp_path / "log.failures.jsonl").exists()


def test_a_longer_file_asks_for_what_is_new_alone_and_keeps_clicks(ask, server):
    out = ask(2)
    write_json_lines(out, [row | {"clicks": [1, 0, 0]} for row in read_json_lines(out)])
    rows = read_json_lines(ask(4))
    assert [row["clicks"] for row in rows] == [[1, 0, 0], [1, 0, 0], None, None]
    assert server.asked == {f"topic{i}": 1 for i in range(4)}
    ids = [row["impression_id"] for row in rows]
    assert [row["impression_id"] for row in read_json_lines(ask(4, "--n_samples", "2"))][::2] == ids


@pytest.mark.parametrize("flags", [["--template", "instruction"], ["--temperature", "0.5"], ["--model", "small"]])
def test_a_log_of_other_options_is_not_mixed_in(ask, capsys, flags):
    ask(2)
    with pytest.raises(SystemExit):
        ask(2, *flags)
    assert "2 of 2 impressions from another model" in capsys.readouterr().err


def test_no_more_requests_are_under_way_than_allowed(ask, server):
    server.answer = lambda name, n: 0.02
    ask(12, "--concurrency", "3")
    assert server.most_in_flight == 3


def test_a_killed_run_goes_on_where_it_was(ask, server, tmp_path):
    file, out = tmp_path / "conversations.jsonl", tmp_path / "log.jsonl"
    write_json_lines(file, [{"conversation": conversation(i), "user_id": f"u{i}"} for i in range(40)])
    server.answer = lambda name, n: 0.05
    command = ["cold-start", str(file), "--out", str(out), "--endpoint", server.url, "--model", "big"]
    process = subprocess.Popen([sys.executable, "-m", "openrlhf_qs.cli", *command, "--concurrency", "2"])
    while len(server.asked) < 12 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with open(tmp_path / ".log.jsonl.part", "ab") as part:
        part.write(b'["0123')  # as if it was killed while it wrote
    n_before = sum(server.asked.values())
    server.answer = lambda name, n: (200, RIGHT)
    rows = read_json_lines(ask(40))
    assert [row["user_id"] for row in rows] == [f"u{i}" for i in range(40)]
    assert 12 <= n_before < 40
    assert sum(server.asked.values()) <= 40 + 2  # the two that were under way, no other, were asked again
    assert {path.name for path in tmp_path.iterdir()} == {"conversations.jsonl", "log.jsonl"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "conversations.jsonl:1: conversation None"),
        ({"conversation": []}, "conversations.jsonl:1: conversation []"),
        ({"conversation": [{"role": "bot", "content": "Hi"}]}, "conversations.jsonl:1: role 'bot'"),
        ({"conversation": [{"role": "user"}]}, "conversations.jsonl:1: message"),
    ],
)
def test_a_conversation_that_is_none_is_named_before_anything_is_asked(server, tmp_path, capsys, row, said):
    file = tmp_path / "conversations.jsonl"
    write_json_lines(file, [row])
    with pytest.raises(SystemExit):
        cli.main(["cold-start", str(file), "--out", "log.jsonl", "--endpoint", server.url, "--model", "m"])
    assert said in capsys.readouterr().err and not server.asked


# Templates


def test_a_template_that_changes_gets_a_new_version():
    pinned = {"examples": ("1", "ee60bed9"), "follow_up": ("2", "2e7bfc1e"), "instruction": ("2", "afe7a224")}
    found = {}
    for path in TEMPLATES.glob("*.txt"):
        template = read_template(path.stem)
        shown = "".join(f"{transcript}\n{suggestions}\n---\n" for transcript, suggestions in template.examples)
        text = f"{template.system}\n---\n{shown}{template.user}"
        found[path.stem] = (template.version, hashlib.blake2b(text.encode(), digest_size=4).hexdigest())
    assert found == pinned, "raise the version in the file, then write it and the digest here"


@pytest.mark.parametrize("n", [1, 3, 8])
def test_examples_go_before_the_conversation_in_its_form_with_as_many_suggestions(n):
    template = read_template("examples")
    *examples, asked = template.messages(conversation(7), n)
    assert [message["role"] for message in examples] == ["user", "assistant"] * len(template.examples)
    assert all(len(read_suggestions(one["content"], n)) == n for one in examples[1::2])
    assert asked["content"].startswith("User: About topic7 please\n\nAssistant: Use flour.\n\nWrite ")
    line = asked["content"].splitlines()[-1]
    assert {one["content"].splitlines()[-1] for one in examples[::2]} == {line}


EIGHT = "\n".join(f"{n}. Why {n} eggs?" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"version: 1\n---\n---\nHi\n---\n{EIGHT}\n---\nThree", r"no \$conversation"),
        ("version: 1\n---\n---\nHi\n---\n1. Why?\n---\n$conversation", "an example needs 8 suggestions"),
        (f"version: 1\n---\n---\nHi\n---\n{EIGHT}", "is not a template"),
    ],
)
def test_an_example_that_is_none_is_named(tmp_path, text, said):
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_template(str(file))


# Several answers


BREAD = [
    {"role": "user", "content": "How do I bake bread?"},
    {"role": "assistant", "content": "With flour and yeast."},
]


def answer(*texts, finish_reason="stop"):
    return Answer(format_response(texts), finish_reason, [1], [0.0])


def test_of_several_answers_what_differs_is_taken_and_what_is_on_the_topic_first():
    answers = [
        answer("What is the capital of Peru?", "Which flour is best?", "How much yeast?"),
        answer("Which flour is best", "How do I bake bread?", "How long does bread keep?"),
    ]
    # the third is on the topic and in the second answer; the user's own question and the same again are left out
    assert chosen(answers, 3, BREAD) == ("Which flour is best?", "How much yeast?", "How long does bread keep?")
    assert chosen(answers[:1], 3, BREAD) == ("What is the capital of Peru?", "Which flour is best?", "How much yeast?")


def test_what_is_left_of_malformed_answers_is_not_mixed_in():
    cut = answer("Which flour is best?", "How much yeast?", "How long", finish_reason="length")
    assert chosen([cut, cut], 3, BREAD).startswith("0 different suggestions in 2 answers: cut")
    assert chosen("the prompt has 9000 tokens", 3, BREAD) == "the prompt has 9000 tokens"


@pytest.mark.parametrize("flags", [["--n_answers", "4"], ["--constrained_enable"]])
def test_what_only_vllm_here_can_do_is_refused_with_an_endpoint(ask, capsys, flags):
    with pytest.raises(SystemExit):
        ask(1, *flags)
    assert "need vLLM here" in capsys.readouterr().err


def test_a_constrained_answer_is_well_formed():
    form = re.compile(response_regex(3))
    assert form.fullmatch(format_response(["How long does it take?", "Why?", "Which flour is best?"])) is None
    text = format_response(["How long does it take?", "Which flour is best?", "哪一种面粉最适合做面包呢？"])
    assert form.fullmatch(text) and read_suggestions(text)
    assert form.fullmatch(text + "\nI hope that helps!") is None


def test_the_instruction_template_is_what_the_policy_is_trained_with():
    assert read_template("instruction").messages(conversation(0)) == SUGGEST.messages(conversation(0))


def test_a_transcript_stands_in_one_message_whatever_is_written_in_it():
    odd = [{"role": "user", "content": "It costs $5, ${conversation} or $system"}]
    system, user = read_template("follow_up").messages(odd)
    assert (system["role"], user["role"]) == ("system", "user")
    assert "<conversation>\nUser: It costs $5, ${conversation} or $system\n</conversation>" in user["content"]


def test_a_template_of_ones_own_is_a_file(tmp_path):
    file = tmp_path / "mine.v2.txt"
    file.write_text("version: 2.1\n---\nBe brief.\n---\n$conversation\n\nThree, please.\n")
    template = read_template(str(file))
    assert (template.name, template.version) == ("mine.v2", "2.1")
    assert template.messages([{"role": "user", "content": "Hi"}]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "User: Hi\n\nThree, please."},
    ]


@pytest.mark.parametrize(
    "text", ["", "Three, please.", "version: 1\n---\nBe brief.\n", "version: \n---\n---\nThree\n"]
)
def test_a_file_of_another_form_is_no_template(tmp_path, text):
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match="mine.txt is not a template"):
        read_template(str(file))


def test_an_unknown_template_is_told_with_those_there_are():
    with pytest.raises(ValueError, match="no template 'made_up'; give one of examples, follow_up, instruction"):
        read_template("made_up")


def test_what_a_model_thought_before_is_no_suggestion():
    assert read_suggestions(f"<think>\n1. Hm\n</think>\n\n{RIGHT}") == ("How long?", "Which flour?", "Why salt?")
    with pytest.raises(ValueError, match="malformed answer"):
        read_suggestions("<think>\nHm, which three")


GERMAN = [{"role": "user", "content": "Wie backe ich zu Hause ein gutes Brot?"}]


@pytest.mark.parametrize(
    "texts",
    [
        ("Which flour should I take for the bread?", "Wie lange dauert das?", "Warum Salz?"),
        ("面粉怎么选比较好？", "Wie lange dauert das?", "Warum Salz?"),
        ("Frage 1", "Frage 2", "Frage 3"),
        ("问题一？", "Wie lange dauert das?", "Warum Salz?"),
    ],
)
def test_what_is_not_in_the_users_language_or_a_placeholder_is_asked_again(texts):
    with pytest.raises(ValueError, match="malformed answer: (not in the user's language|a placeholder)"):
        read_suggestions(format_response(texts), conversation=GERMAN)


def test_what_the_user_asked_in_nearly_the_same_words_is_asked_again_as_a_server_leaves_it_out():
    texts = ("Wie backe ich zu Hause gutes Brot?", "Wie lange dauert das?", "Warum Salz?")
    with pytest.raises(ValueError, match="malformed answer: what the user asked: 'Wie backe ich zu Hause gutes Brot"):
        read_suggestions(format_response(texts), conversation=GERMAN)


def test_names_code_and_short_texts_are_of_every_language():
    texts = ("Brot mit ChatGPT backen?", "`pip install bread`?", "Roggenmehl 1150?")
    assert read_suggestions(format_response(texts), conversation=GERMAN) == texts
    assert read_suggestions(format_response(["Which flour should I take?", "How long?", "Why salt?"]))
