import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from openrlhf_qs.models import endpoint as chat
from openrlhf_qs.plugins.judges.built_in_world import BuiltInWorld
from openrlhf_qs.plugins.judges.endpoint import OpenAIEndpoint, read_probabilities
from openrlhf_qs.registry import JUDGES

CONVERSATION = [{"role": "user", "content": "How do I bake bread?"}, {"role": "assistant", "content": "With flour."}]


class Endpoint:
    """An endpoint in a thread. ``answer(question, n_asked)`` gives (status, content); ``asked`` holds the requests."""

    def __init__(self):
        self.asked, self.headers = [], []
        self.answer = lambda question, n_asked: (200, probabilities([0.5] * len(question["suggestions"])))
        endpoint, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = json.loads(body["messages"][-1]["content"])
                with lock:
                    endpoint.asked.append({"path": self.path, "body": body, "question": question})
                    endpoint.headers.append(self.headers)
                    n_asked = len(endpoint.asked)
                status, content = endpoint.answer(question, n_asked)
                sent = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def probabilities(values):
    return json.dumps({"click_probabilities": values})


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(chat, "PAUSE_S", 0.001)
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def test_each_row_gets_the_probabilities_of_its_own_suggestions(endpoint):
    endpoint.answer = lambda question, n: (200, probabilities([len(text) / 100 for text in question["suggestions"]]))
    judge = JUDGES.create("openai_endpoint", base_url=endpoint.url, model="m", concurrency="4")
    rows = [["a" * (n + 1), "b" * 7] for n in range(20)]
    assert judge([CONVERSATION] * 20, rows) == [[(n + 1) / 100, 0.07] for n in range(20)]
    assert {a["path"] for a in endpoint.asked} == {"/v1/chat/completions"}
    assert endpoint.asked[0]["body"]["model"] == "m"
    assert endpoint.asked[0]["question"]["conversation"] == CONVERSATION


def test_equal_rows_are_asked_once_and_empty_rows_never(endpoint):
    judge = OpenAIEndpoint(endpoint.url, "m")
    assert judge([CONVERSATION] * 4, [["x"], [], ["x"], ["x"]]) == [[0.5], [], [0.5], [0.5]]
    assert len(endpoint.asked) == 1
    assert judge([], []) == []


def test_the_key_is_sent_where_it_is_set_and_none_otherwise(endpoint, monkeypatch):
    OpenAIEndpoint(endpoint.url, "m")([CONVERSATION], [["x"]])
    monkeypatch.setenv("MY_KEY", "secret")
    OpenAIEndpoint(endpoint.url, "m", api_key_env="MY_KEY")([CONVERSATION], [["x"]])
    assert [headers.get("Authorization") for headers in endpoint.headers] == [None, "Bearer secret"]


@pytest.mark.parametrize("first", [(500, "busy"), (429, "slow down"), (200, "I think 0.5"), (200, None)])
def test_a_passing_failure_is_asked_again(endpoint, first):
    endpoint.answer = lambda question, n: first if n == 1 else (200, probabilities([0.25]))
    assert OpenAIEndpoint(endpoint.url, "m", retries=1)([CONVERSATION], [["x"]]) == [[0.25]]
    assert len(endpoint.asked) == 2


def test_a_lasting_failure_is_an_error_that_names_the_row_and_never_a_number(endpoint):
    endpoint.answer = lambda question, n: (200, probabilities([0.5] if question["suggestions"] == ["good"] else [1.5]))
    judge = OpenAIEndpoint(endpoint.url, "m", retries=2, concurrency=1)
    said = r"judge openai_endpoint, row 2: .* after try 3 of 3: 1.5 is not a probability"
    with pytest.raises(ValueError, match=said):
        judge([CONVERSATION] * 3, [["good"], ["good"], ["bad"]])
    assert len(endpoint.asked) == 1 + 3


def test_a_refusal_is_not_asked_again(endpoint):
    endpoint.answer = lambda question, n: (401, "no key")
    with pytest.raises(ValueError, match="row 0: .* after try 1 of 6: HTTP 401: .*no key"):
        OpenAIEndpoint(endpoint.url, "m", retries=5)([CONVERSATION], [["x"]])
    assert len(endpoint.asked) == 1


def test_an_endpoint_that_is_not_there_is_an_error_of_one_line(endpoint):
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(ValueError, match="row 0: gave up on http://127.0.0.1") as error:
        OpenAIEndpoint(endpoint.url, "m", retries=1, timeout_s=2)([CONVERSATION], [["x"]])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "0.5",
        '```json\n{"click_probabilities": [0.5, 0.5]}\n```',
        '{"click_probabilities": [0.5]}',
        '{"click_probabilities": [0.5, "0.5"]}',
        '{"click_probabilities": [0.5, true]}',
        '{"click_probabilities": [0.5, NaN]}',
        '{"click_probabilities": [0.5, -0.1]}',
        '{"click_probabilities": [0.5, null]}',
        '{"click_probabilities": {"1": 0.5, "2": 0.5}}',
        '{"click_probabilities": [0.5, 0.5], "why": "guess"}',
        "",
    ],
)
def test_what_was_not_asked_for_is_not_read(text):
    with pytest.raises(ValueError, match="answer|probability"):
        read_probabilities(text, 2)


def test_whole_numbers_are_probabilities_too():
    assert read_probabilities(' {"click_probabilities": [0, 1]}\n', 2) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "file:///etc/passwd", "model": "m"}, "give it with http"),
        ({"base_url": "http://h/v1", "model": "m", "concurrency": 0}, "concurrency 0"),
        ({"base_url": "http://h/v1", "model": "m", "timeout_s": 0}, "timeout_s 0"),
        ({"base_url": "http://h/v1", "model": "m", "retries": -1}, "retries -1"),
        ({"base_url": "http://h/v1"}, "model"),
    ],
)
def test_wrong_options_are_refused_at_the_start(options, said):
    with pytest.raises(ValueError, match=said):
        JUDGES.create("openai_endpoint", **options)


def test_the_built_in_world_knows_what_bounds_any_policy_and_says_nothing_of_other_worlds():
    judge = BuiltInWorld()
    asked = [[{"role": "user", "content": "Let us talk about lettuce. What do experts say about soil care?"}]]
    limits = judge.limits(asked, 3)
    assert list(limits) == ["fixed_templates", "ceiling"]
    assert all(len(texts) == 3 for suggestions in limits.values() for texts in suggestions)
    fixed, best = (judge.chance_of_a_click(asked, limits[name])[0] for name in ("fixed_templates", "ceiling"))
    assert best >= fixed > 0.3
    assert judge.limits([[{"role": "user", "content": "xyzzy"}]], 3) == {}
    assert judge.limits(asked, 99) == {}
