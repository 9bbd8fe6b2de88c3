"""The server, asked over HTTP, with a policy that is given what to write."""

import asyncio
import json
import random
import re
import socket

import httpx2
import pytest
import uvicorn
from fakes import OTHERS, TURKISH, FakePolicy, app, filters, response, scorer, service
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from test_forms import ADDED, CONVERSATION, DIFY, OPEN_WEBUI, TITLE

from openrlhf_qs.serve import on_ray
from openrlhf_qs.serve.app import build_app
from openrlhf_qs.serve.arms import Arm, arm_of, check_shares, parse_arm
from openrlhf_qs.serve.export import click_log_rows
from openrlhf_qs.serve.gate import Limits
from openrlhf_qs.serve.live_log import Event
from openrlhf_qs.serve.serve import HTTP, bound
from openrlhf_qs.serve.service import Rules
from openrlhf_qs.serve.suggester import Suggester
from openrlhf_qs.serve.upstream import Upstream

LEARN = [{"role": "user", "content": "How do I learn Turkish?"}, {"role": "assistant", "content": "Read a lot."}]
KEY = "0123456789abcdef"
NAMES = {"user": "Human", "assistant": "Assistant"}  # Dify's
N_GENERATED = 10_000  # conversations; in docs/SERVING.md, too


def client(application, **how) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(application, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765", **how)


def served(folder, work, headers=None, **how):
    """What ``work(client, service)`` gives."""
    application, one = app(folder, **how)

    async def run():
        async with client(application, headers=headers) as asking:
            try:
                return await work(asking, one)
            finally:
                one.close()

    return asyncio.run(run())


def rows(folder):
    from collections import Counter

    return list(click_log_rows([folder], 60.0, False, Counter()))


def test_suggestions_are_shown_logged_and_clicked(tmp_path):
    async def work(asking, one):
        ask = {"conversation": LEARN, "user": "ann", "chat": "c", "explain": True}
        answer = await asking.post("/v1/suggestions", json=ask)
        told = answer.json()
        events = [
            {"impression_id": told["impression_id"], "kind": "shown"},
            {"impression_id": told["impression_id"], "kind": "clicked", "place": 1},
            {"impression_id": told["impression_id"], "kind": "clicked", "place": 1},
        ]
        statuses = (await asking.post("/v1/events", json={"events": events})).json()["statuses"]
        return told, statuses, (await asking.get("/metrics")).text

    told, statuses, metrics = served(tmp_path, work, scorer=scorer({TURKISH[2]: 2.0, OTHERS[0]: 1.0}))
    assert statuses == ["accepted", "accepted", "duplicate"]
    shown = [one["text"] for one in told["suggestions"]]
    assert shown[:2] == [TURKISH[2], OTHERS[0]] and told["suggestions"][0]["mean"] == 2.0
    assert len(told["left_out"]) == 3 and {one["reason"] for one in told["left_out"]} == {"not_among_the_best"}
    (row,) = rows(tmp_path)
    assert row["impression_id"] == told["impression_id"] and row["conversation"] == LEARN
    assert row["suggestions"] == shown and row["clicks"] == [0, 1, 0] and row["policy"] == "fake"
    assert row["user_id"] != "ann" and row["meta"]["temperature"] == 0.7 and row["meta"]["n_sampled"] == 2
    assert len(row["meta"]["left_out"]) == 3
    assert 'openrlhf_qs_clicks_total{policy="fake"} 1.0' in metrics
    assert 'openrlhf_qs_ctr{policy="fake"} 1.0' in metrics
    assert "Turkish" not in metrics and "ann" not in metrics


def test_a_request_that_is_sent_again_gets_the_answer_that_was_given(tmp_path):
    policy = FakePolicy()

    async def work(asking, one):
        ask = {"conversation": LEARN, "user": "ann", "request_id": "r1"}
        answers = [(await asking.post("/v1/suggestions", json=ask)).json()]
        policy.responses = [response(OTHERS)]
        answers.append((await asking.post("/v1/suggestions", json=ask)).json())
        answers.append((await asking.post("/v1/suggestions", json=ask | {"user": "bob"})).json())
        return answers

    first, again, bobs = served(tmp_path, work, policy=policy)
    assert again == first and bobs["impression_id"] != first["impression_id"]
    assert len(rows(tmp_path)) == 2


def test_an_id_that_is_sent_again_with_another_conversation_is_another_request(tmp_path):
    policy = FakePolicy(response())

    async def work(asking, one):
        ask = {"conversation": LEARN, "user": "ann", "chat": "c", "request_id": "r1"}
        first = (await asking.post("/v1/suggestions", json=ask)).json()
        policy.responses = [response(OTHERS)]
        longer = [*LEARN, {"role": "user", "content": "And how many words?"}]
        return first, (await asking.post("/v1/suggestions", json=ask | {"conversation": longer})).json()

    first, other = served(tmp_path, work, policy=policy)
    assert other["impression_id"] != first["impression_id"]
    assert [one["text"] for one in other["suggestions"]] == list(OTHERS)
    assert [len(row["conversation"]) for row in rows(tmp_path)] == [len(LEARN), len(LEARN) + 1]


def test_every_error_has_one_form(tmp_path, monkeypatch):
    async def work(asking, one):
        answers = [
            await asking.get("/nowhere"),
            await asking.get("/v1/suggestions"),
            await asking.delete("/v1/events"),
            await asking.post("/v1/suggestions", json={"conversation": 1}),
            await asking.post("/v1/suggestions", content=b"{"),
            await asking.post("/v1/chat/completions", json={"model": "gpt", "messages": []}),
        ]
        schema = (await asking.get("/openapi.json")).json()
        return answers, schema

    answers, schema = served(tmp_path, work)
    assert [answer.status_code for answer in answers] == [404, 405, 405, 422, 422, 404]
    for answer in answers:
        assert list(answer.json()) == ["error"] and set(answer.json()["error"]) == {"message", "type", "code"}
    assert "ValidationError" not in str(schema)


@pytest.mark.parametrize(("prompt", "key"), [(OPEN_WEBUI, "follow_ups"), (DIFY, None)])
@pytest.mark.parametrize("stream", [False, True])
def test_chats_get_their_own_form(tmp_path, prompt, key, stream):
    async def work(asking, one):
        body = {"model": "suggestions", "messages": [{"role": "user", "content": prompt}], "stream": stream}
        return await asking.post("/v1/chat/completions", json=body)

    answer = served(tmp_path, work)
    if stream:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line and "[DONE]" not in line]
        text = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    found = json.loads(text)[key] if key else json.loads(text)
    (row,) = rows(tmp_path)
    assert found == row["suggestions"] and len(found) == 3
    assert row["conversation"] == CONVERSATION and answer.headers["x-impression-id"] == row["impression_id"]


def follow_ups(history, chat=None, user=None):
    said = "\n".join(f"{message['role'].upper()}: {message['content']}" for message in history[-6:])
    prompt = OPEN_WEBUI[: OPEN_WEBUI.index("USER: How")] + said + "\n</chat_history>"
    headers = {"X-Task": "follow_up_generation"} | ({"X-Chat-Id": chat} if chat else {})
    body = {"model": "suggestions", "messages": [{"role": "user", "content": prompt}]}
    return {"url": "/v1/chat/completions", "json": body, "headers": headers | ({"X-User-Id": user} if user else {})}


@pytest.mark.parametrize("chat", ["c1", None])
def test_the_next_message_of_a_chat_is_the_click(tmp_path, chat):
    async def work(asking, one):
        answer = await asking.post(**follow_ups(LEARN, chat))
        first = json.loads(answer.json()["choices"][0]["message"]["content"])["follow_ups"]
        # a title of the same turn, and the same request once more, say nothing of what was clicked
        headers = {"X-Task": "title_generation", "X-Chat-Id": "c1"}
        body = {"messages": [{"role": "user", "content": TITLE}]}
        await asking.post("/v1/chat/completions", json=body, headers=headers)
        turn = [{"role": "user", "content": f"  {first[1]} "}, {"role": "assistant", "content": "So."}]
        await asking.post(**follow_ups([*LEARN, *turn], chat))
        other = [{"role": "user", "content": "Something else."}, {"role": "assistant", "content": "Well."}]
        await asking.post(**follow_ups([*LEARN, *turn, *other], chat))

    served(tmp_path, work)
    found = rows(tmp_path)
    assert [row["clicks"] for row in found] == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert [row["meta"]["heard"] for row in found] == [["clicked"], ["passed"], []]


@pytest.mark.parametrize("n_lines", [1, 2, 4])
def test_a_click_under_an_instruction_of_the_operators_own_is_joined(tmp_path, n_lines):
    """Dify names no chat, and its instruction follows the answer as another line of it would."""
    own = "\n".join(f"Regel {n}: Was fragt der Mensch als Nächstes?" for n in range(n_lines))

    async def ask(asking, history):
        said = "\n".join(f"{NAMES[message['role']]}: {message['content']}" for message in history)
        prompt = f"{said}\n{own}\n{ADDED}\nquestions:\n"
        body = {"model": "suggestions-array", "messages": [{"role": "user", "content": prompt}]}
        answer = await asking.post("/v1/chat/completions", json=body)
        return json.loads(answer.json()["choices"][0]["message"]["content"])

    async def work(asking, one):
        first = await ask(asking, [LEARN[0], {"role": "assistant", "content": "Read a lot.\n\nThen: speak."}])
        turn = [{"role": "user", "content": first[2]}, {"role": "assistant", "content": "So."}]
        await ask(asking, [LEARN[0], {"role": "assistant", "content": "Read a lot.\n\nThen: speak."}, *turn])

    served(tmp_path, work)
    assert [row["clicks"] for row in rows(tmp_path)] == [[0, 0, 1], [0, 0, 0]]


def test_a_chat_of_another_user_with_the_same_words_is_another_chat(tmp_path):
    async def work(asking, one):
        await asking.post(**follow_ups(LEARN, user="ann"))
        await asking.post(**follow_ups([*LEARN, {"role": "user", "content": TURKISH[0]}], user="bob"))

    served(tmp_path, work)
    assert [row["clicks"] for row in rows(tmp_path)] == [[0, 0, 0], [0, 0, 0]]


def test_a_message_that_comes_too_late_is_no_click(tmp_path):
    async def work(asking, one):
        await asking.post(**follow_ups(LEARN, "c"))
        await asyncio.sleep(0.05)
        await asking.post(**follow_ups([*LEARN, {"role": "user", "content": TURKISH[0]}], "c"))

    served(tmp_path, work, rules=Rules(next_message_s=0.04))
    assert rows(tmp_path)[0]["clicks"] == [0, 0, 0] and rows(tmp_path)[0]["meta"]["heard"] == []


# What is not ours


def upstream_app():
    """A server that says what it got, as a stream where it is asked for one."""
    application = FastAPI()

    @application.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await request.body()
        if b"hang" in body:
            await asyncio.sleep(30)
        if b"teapot" in body:
            return JSONResponse({"error": "short and stout"}, 418)
        if b'"stream": true' in body:

            async def pieces():
                for number in range(3):
                    yield f"data: {number}\n\n"

            return StreamingResponse(pieces(), media_type="text/event-stream")
        return {"got": body.decode(), "key": request.headers.get("authorization"), "x": request.headers.get("x-mine")}

    @application.get("/v1/models")
    async def models():
        return {"data": [{"id": "big", "object": "model"}]}

    return application


def with_upstream(model="", **how):
    one = Upstream("http://upstream/v1", model, "secret", **how)
    one.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(upstream_app()), timeout=one.client.timeout)
    return one


def test_other_requests_go_to_the_upstream_byte_for_byte_with_its_own_key(tmp_path):
    raw = b'{ "model":"big",  "messages": [{"role":"user","content":"Hi \\u00e9"}],"odd" : 1.50}'

    async def work(asking, one):
        headers = {"X-Mine": "1", "Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        return await asking.post("/v1/chat/completions", content=raw, headers=headers)

    answer = served(tmp_path, work, upstream=with_upstream(), keys=[KEY])
    assert answer.json() == {"got": raw.decode(), "key": "Bearer secret", "x": "1"}


def test_a_task_for_our_model_is_asked_of_the_upstreams_model(tmp_path):
    async def work(asking, one):
        body = {"model": "suggestions", "messages": [{"role": "user", "content": TITLE}], "temperature": 0.5}
        answer = await asking.post("/v1/chat/completions", json=body, headers={"X-Task": "title_generation"})
        return body, json.loads(answer.json()["got"])

    body, got = served(tmp_path, work, upstream=with_upstream("big"))
    assert got == body | {"model": "big"}


def test_streams_errors_and_models_of_the_upstream_come_through(tmp_path):
    async def work(asking, one):
        async def ask(text, **more):
            body = {"model": "big", "messages": [{"role": "user", "content": text}], **more}
            return await asking.post("/v1/chat/completions", json=body)

        sent = b'{"model": "big", "stream": true, "messages": []}'
        streamed = await asking.post("/v1/chat/completions", content=sent)
        models = [one["id"] for one in (await asking.get("/v1/models")).json()["data"]]
        return streamed, await ask("teapot"), models

    streamed, teapot, models = served(tmp_path, work, upstream=with_upstream())
    assert streamed.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert teapot.status_code == 418 and teapot.json() == {"error": "short and stout"}
    assert models == ["suggestions", "suggestions-follow-ups", "suggestions-array", "big"]


def test_an_upstream_that_is_not_there_is_said_in_openais_form(tmp_path):
    async def work(asking, one):
        body = {"model": "big", "messages": [{"role": "user", "content": "Hi"}]}
        return await asking.post("/v1/chat/completions", json=body)

    answer = served(tmp_path, work, upstream=Upstream("http://127.0.0.1:9/v1"))
    assert answer.status_code == 502 and answer.json()["error"]["code"] == "upstream"
    answer = served(tmp_path, work)
    assert answer.status_code == 404 and "--upstream" in answer.json()["error"]["message"]


def test_a_chat_that_goes_through_us_is_joined_before_it_goes_on(tmp_path):
    async def work(asking, one):
        await asking.post(**follow_ups(LEARN, "c"))
        body = {"model": "big", "messages": [*LEARN, {"role": "user", "content": TURKISH[2]}]}
        await asking.post("/v1/chat/completions", json=body, headers={"X-Chat-Id": "c"})

    served(tmp_path, work, upstream=with_upstream())
    assert rows(tmp_path)[0]["clicks"] == [0, 0, 1]


def test_without_an_upstream_a_partner_that_says_what_it_is_answers_the_page(tmp_path):
    async def work(asking, one):
        body = {"model": "demo", "messages": [{"role": "user", "content": "Tell me a joke."}]}
        unknown = await asking.post("/v1/chat/completions", json=body)
        body["messages"][0]["content"] = "How do I begin with Turkish grammar?"
        return unknown, await asking.post("/v1/chat/completions", json=body), await asking.get("/")

    unknown, known, page = served(tmp_path, work)
    assert "demo partner" in unknown.json()["choices"][0]["message"]["content"]
    assert "demo" not in known.json()["choices"][0]["message"]["content"]
    assert (
        "text/html" in page.headers["content-type"]
        and "script-src 'sha256-" in page.headers["content-security-policy"]
    )


# What goes wrong


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"policy": FakePolicy(RuntimeError("secret words of a user"))}, "failed"),
        ({"policy": FakePolicy("too many tokens")}, "too_long"),
        ({"policy": FakePolicy(5.0), "rules": Rules(answer_s=0.05)}, "too_slow"),
        ({"rules": Rules(max_in_flight=0)}, "busy"),
        ({"policy": FakePolicy(response(problem="cut"))}, "all_malformed"),
    ],
)
def test_what_goes_wrong_is_an_empty_answer_with_a_counted_reason(tmp_path, caplog, how, reason):
    async def work(asking, one):
        plain = await asking.post("/v1/suggestions", json={"conversation": LEARN})
        chat = await asking.post(**follow_ups(LEARN, "c"))
        return plain, chat, (await asking.get("/metrics")).text

    plain, chat, metrics = served(tmp_path, work, **how)
    assert plain.status_code == 200 and plain.json()["suggestions"] == [] and plain.json()["reason"] == reason
    assert json.loads(chat.json()["choices"][0]["message"]["content"]) == {"follow_ups": []}
    assert f'openrlhf_qs_silent_total{{policy="fake",reason="{reason}"}} 2.0' in metrics
    assert "secret words" not in caplog.text and rows(tmp_path) == []
    if reason == "failed":
        assert "RuntimeError in sample" in caplog.text


def test_a_log_that_cannot_be_written_shows_nothing_and_acknowledges_nothing(tmp_path, monkeypatch):
    async def work(asking, one):
        async def full(*args):
            raise OSError("no space left")

        monkeypatch.setattr(one.log, "_do", full)
        plain = await asking.post("/v1/suggestions", json={"conversation": LEARN, "request_id": "r"})
        event = {"impression_id": "i", "kind": "clicked", "place": 0}
        return plain, await asking.post("/v1/events", json={"events": [event]}), await asking.post(**follow_ups(LEARN))

    plain, events, chat = served(tmp_path, work)
    assert plain.json()["suggestions"] == [] and plain.json()["reason"] == "not_logged"
    assert events.status_code == 503
    assert json.loads(chat.json()["choices"][0]["message"]["content"]) == {"follow_ups": []}


def test_a_dead_engine_is_told_to_whoever_watches(tmp_path):
    async def work(asking, one):
        return (await asking.get("/healthz")).status_code, (await asking.head("/healthz")).status_code

    assert served(tmp_path, work) == (200, 200)
    assert served(tmp_path / "dead", work, policy=FakePolicy(RuntimeError())) == (503, 503)


def test_a_replica_with_a_dead_engine_fails_the_check_by_which_it_is_replaced(tmp_path):
    for name, policy in {"alive": FakePolicy(), "dead": FakePolicy(RuntimeError())}.items():
        application, one = app(tmp_path / name, policy=policy)
        replica = on_ray.Replica()
        replica.app = application
        if name == "alive":
            asyncio.run(replica.check_health())
        else:
            with pytest.raises(RuntimeError):
                asyncio.run(replica.check_health())
        one.close()


def test_errors_of_a_body_say_where_and_not_what(tmp_path):
    async def work(asking, one):
        wrong = await asking.post("/v1/suggestions", json={"conversation": "a secret", "n": 99})
        kind = await asking.post("/v1/events", json={"events": [{"impression_id": "i", "kind": "a secret"}]})
        return wrong, kind, await asking.post("/v1/chat/completions", content=b"a secret")

    for answer in served(tmp_path, work):
        assert answer.status_code in (400, 422) and "secret" not in answer.text
        assert answer.json()["error"]["code"] == "invalid"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"content": b"{}"}, "give the header Content-Type: application/json"),
        ({"data": {"conversation": "x"}}, "give the header Content-Type: application/json"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, "the body is not JSON"),
        ({"content": b"\xff{", "headers": {"Content-Type": "application/json"}}, "the body is not JSON in UTF-8"),
        ({"json": []}, "the body: Input should be a valid dictionary"),
        ({"content": b"", "headers": {"Content-Type": "application/json"}}, "the body: Field required"),
        ({"json": {}}, "conversation: Field required"),
        ({"json": {"conversation": [], "language": "English"}}, "language: String should match pattern"),
    ],
)
def test_a_request_in_another_form_is_told_what_to_change(tmp_path, how, message):
    answer = served(tmp_path, lambda asking, one: asking.post("/v1/suggestions", **how))
    assert answer.status_code in (400, 422) and answer.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize("language", ["en", "en-US", "en_GB", "EN", "", None])
def test_a_language_is_named_as_browsers_and_systems_name_it(tmp_path, language):
    async def work(asking, one):
        one.arms[0].suggester.filters = filters("users_language")
        ask = {"conversation": LEARN, "user": None, "chat": None, "language": language}
        return await asking.post("/v1/suggestions", json=ask)

    assert len(served(tmp_path, work).json()["suggestions"]) == 3
    assert "user_id" not in rows(tmp_path)[0]


ALPHABETS = [
    "abc xyz",
    "été ñ ß",
    "你好吗 世界",
    "مرحبا",
    "สวัสดี",
    "🙂👩‍👩‍👧 ",
    "\u0000\u200b\u202e",
    "<|im_end|> [INST]",
    '{"}]\\\n',
]


def generated(rng):
    """A conversation of any language, length and roles, and things that are none."""
    roles = ["user", "assistant", "system", "tool", "developer", "function", "", None, 3]
    text = lambda: "".join(rng.choices(rng.choice(ALPHABETS), k=rng.choice([0, 1, 20, 300])))  # noqa: E731
    content = lambda: rng.choice([text(), text(), text(), None, 7, [{"type": "text", "text": text()}], {}])  # noqa: E731
    return [{"role": rng.choice(roles), "content": content()} for _ in range(rng.choice([0, 1, 2, 3, 9]))]


def test_every_conversation_gets_an_answer_in_the_form_asked_for(tmp_path):
    rng = random.Random(0)
    policy = FakePolicy(response(), response(problem="cut"), response(["你好吗？", "a" * 500, "Why?"]))

    async def work(asking, one):
        one.arms[0].suggester.filters = filters("asked_before", "users_language", "too_wide")
        for number in range(N_GENERATED):
            conversation = generated(rng)
            if number % 3 == 0:
                answer = await asking.post("/v1/suggestions", json={"conversation": conversation})
                assert answer.status_code == 200 and isinstance(answer.json()["suggestions"], list)
                continue
            model = ("suggestions-array", "suggestions-follow-ups")[number % 2]
            body = {"model": model, "messages": conversation}
            answer = await asking.post("/v1/chat/completions", json=body)
            found = json.loads(answer.json()["choices"][0]["message"]["content"])
            texts = found if model == "suggestions-array" else found["follow_ups"]
            assert all(isinstance(text, str) for text in texts)

    served(tmp_path, work, policy=policy)


# Who may ask


def test_with_keys_all_but_the_page_and_a_word_wants_one(tmp_path):
    async def work(asking, one):
        without = {path: (await asking.get(path)).status_code for path in ("/", "/healthz", "/metrics", "/v1/models")}
        wrong = await asking.get("/metrics", headers={"Authorization": "Bearer 0123456789abcdeg"})
        right = await asking.get("/metrics", headers={"Authorization": f"bearer {KEY}"})
        return without, wrong, right

    without, wrong, right = served(tmp_path, work, keys=["another key 12345", KEY])
    assert without == {"/": 200, "/healthz": 200, "/metrics": 401, "/v1/models": 401}
    assert wrong.status_code == 401 and right.status_code == 200
    assert 'openrlhf_qs_refused_total{reason="key"} 3.0' in right.text and KEY not in right.text


def test_without_keys_no_other_name_leads_to_this_server_and_no_other_page_may_ask(tmp_path):
    async def work(asking, one):
        host = await asking.get("/healthz", headers={"Host": "evil.example"})
        origin = await asking.get("/healthz", headers={"Origin": "https://evil.example"})
        own = await asking.get("/healthz", headers={"Origin": "http://127.0.0.1:8765"})
        return host.status_code, origin.status_code, own.status_code

    assert served(tmp_path, work) == (421, 403, 200)


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "://", "é", "http://127.0.0.1:8765.evil.com"])
def test_whatever_a_page_calls_itself_it_may_not_ask(tmp_path, origin):
    async def work(asking, one):
        headers = {"Origin": origin.encode("latin-1")}
        return await asking.post("/v1/suggestions", json={"conversation": LEARN}, headers=headers)

    assert served(tmp_path, work).status_code == 403


def test_a_body_has_a_size_and_a_client_a_rate(tmp_path):
    limits = Limits(body_bytes=1000, rate=0.001, burst=3)

    async def work(asking, one):
        async def endless():
            for _ in range(100):
                yield b"x" * 100

        large = await asking.post("/v1/events", content=b"x" * 1001)
        chunked = await asking.post("/v1/events", content=endless())
        return large, chunked, [(await asking.get("/v1/models")).status_code for _ in range(2)]

    large, chunked, statuses = served(tmp_path, work, limits=limits)
    assert large.status_code == chunked.status_code == 413
    assert statuses == [200, 429]


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path):
    async def work(asking, one):
        async def slow():
            yield b"{"
            await asyncio.sleep(5)

        return (await asking.post("/v1/events", content=slow())).status_code

    assert served(tmp_path, work, limits=Limits(body_s=0.1)) == 408


# Arms


def test_a_user_stays_in_an_arm_and_arms_have_their_shares(tmp_path):
    policies = {name: FakePolicy(response(texts)) for name, texts in {"old": TURKISH, "new": OTHERS}.items()}
    shares = {"old": 0.8, "new": 0.2}
    arms = [Arm(name, shares[name], Suggester(policies[name], {}, n_samples=1)) for name in policies]
    salt = b"salt"
    users = [f"user {n}" for n in range(5000)]
    first = [arm_of(arms, user, salt).name for user in users]
    assert first == [arm_of(arms, user, salt).name for user in users]
    assert abs(first.count("new") - 1000) < 120  # 4 sigma
    assert first != [arm_of(arms, user, b"pepper").name for user in users]

    async def work(asking, one):
        told = {}
        for user in users[:30] * 2:
            answer = await asking.post("/v1/suggestions", json={"conversation": LEARN, "user": user})
            told.setdefault(user, set()).add(answer.json()["policy"])
        return told

    told = served(tmp_path, work, arms=arms)
    assert all(len(names) == 1 for names in told.values()) and len(set.union(*told.values())) == 2
    for row in rows(tmp_path):
        assert row["suggestions"] == list(TURKISH if row["policy"] == "old" else OTHERS)


def test_arms_that_cannot_be_are_refused():
    assert parse_arm("new=runs/a=b/grpo:0.25") == ("new", "runs/a=b/grpo", 0.25)
    for wrong in ("new", "new=dir", "new=dir:x", "=dir:.5", "new=:.5", "new=dir:0", "new=dir:1.5", "new=dir:nan"):
        with pytest.raises(ValueError, match="NAME=DIR:SHARE"):
            parse_arm(wrong)
    with pytest.raises(ValueError, match="add up to 0.9"):
        check_shares([("a", 0.5), ("b", 0.4)])
    with pytest.raises(ValueError, match="the same name"):
        check_shares([("a", 0.5), ("a", 0.5)])


def test_whoever_has_gone_is_shown_nothing(tmp_path):
    async def run():
        one = service(tmp_path)

        async def gone():
            return True

        from openrlhf_qs.form.request import Request as Conversation
        from openrlhf_qs.serve.service import Whose

        impression, _ = await one.suggest(Conversation(LEARN), Whose(), gone=gone)
        status = await one.events([Event(impression.id, "clicked", 0)])
        one.close()
        return status

    assert asyncio.run(run()) == ["unknown"] and rows(tmp_path) == []


def test_a_port_is_had_before_anything_is_loaded_or_said_to_be_taken():
    with bound("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.socket() as asking, pytest.raises(ConnectionRefusedError):
            asking.connect(("127.0.0.1", port))  # nobody listens yet
        first.listen()
        with pytest.raises(ValueError, match=f"port {port}, is not available"):
            bound("127.0.0.1", port)
    with pytest.raises(ValueError, match="--port 99999: give 1 to 65535"):
        bound("127.0.0.1", 99999)


def test_each_arm_is_asked_once_before_the_first_user_is(tmp_path):
    policies = [FakePolicy(), FakePolicy()]
    arms = [Arm(str(n), 0.5, Suggester(policy, {})) for n, policy in enumerate(policies)]
    application = build_app(service(tmp_path, arms=arms))

    async def begun():
        async with application.router.lifespan_context(application):
            return [len(policy.asked) for policy in policies]

    assert asyncio.run(begun()) == [1, 1] and rows(tmp_path) == []


def test_a_place_that_no_number_of_the_log_can_hold_is_an_invalid_event(tmp_path):
    async def work(asking, one):
        events = [{"impression_id": "i", "kind": "clicked", "place": 2**63}]
        return await asking.post("/v1/events", json={"events": events})

    assert served(tmp_path, work).status_code == 422


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_who_offers_another_protocol_is_answered_in_this_one(tmp_path, protocol):
    application, service = app(tmp_path)
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="critical", lifespan="off", **HTTP))
    body = json.dumps({"conversation": LEARN}).encode()
    head = "POST /v1/suggestions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Connection: Upgrade\r\nUpgrade: {protocol}\r\nContent-Length: {len(body)}\r\n\r\n"

    async def work():
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
        for cut in (len(head), len(head) + 9):  # twice on one connection, the body in a packet of its own
            writer.write((head.encode() + body)[:cut])
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write((head.encode() + body)[cut:])
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            length = int(re.search(rb"content-length: (\d+)", answer.lower())[1])
            assert json.loads(await reader.readexactly(length))["suggestions"]
        writer.close()
        server.should_exit = True
        await serving

    asyncio.run(work())
    service.close()
