"""A server that is not to be trusted: it hangs, redirects, floods, breaks off."""

from __future__ import annotations

import json
import re
import socket
import threading
import time

import pytest

from openrlhf_qs.models import endpoint as chat
from openrlhf_qs.models.endpoint import ChatEndpoint

GOOD = b'{"choices": [{"message": {"content": "yes"}}]}'
HEAD = b"HTTP/1.1 200 OK\r\n"


def drip(connection: socket.socket, data: bytes) -> None:
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def flood(connection: socket.socket, head: bytes = HEAD) -> None:
    connection.sendall(head + b"\r\n")
    for _ in range(40):
        connection.sendall(b" " * 1_000_000)


def whole_request(connection: socket.socket) -> bytes:
    """What is left unread would reset the connection when it is closed."""
    request = b""
    while b"\r\n\r\n" not in request or len(request.partition(b"\r\n\r\n")[2]) < body_length(request):
        request += connection.recv(65536)
    return request


def body_length(request: bytes) -> int:
    return int(re.search(rb"Content-Length: (\d+)", request, re.IGNORECASE)[1])


def answer(data: bytes):
    return lambda connection: connection.sendall(data)


@pytest.fixture
def serve(monkeypatch):
    """``serve(behave)``: the address of a server that does so with each connection, and the requests it got."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(chat, "PAUSE_S", 0.001)
    monkeypatch.setattr(chat, "MAX_BYTES", 200_000)
    servers = []

    def start(behave):
        server, requests = socket.create_server(("127.0.0.1", 0)), []
        servers.append(server)

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        requests.append(whole_request(connection))
                        behave(connection)
                    except OSError:
                        pass

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1", requests

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (lambda c: time.sleep(3), "no complete answer within 0.5 s"),
        (lambda c: drip(c, HEAD + b"X-Slow: " + b"a" * 200), "no complete answer within 0.5 s"),
        (lambda c: drip(c, HEAD + b"\r\n" + b" " * 200), "no complete answer"),
        (flood, "an answer of more than 200,000 bytes"),
        (lambda c: flood(c, b"HTTP/1.1 400 No\r\n"), "HTTP 400: '   "),
        (answer(HEAD + b"\r\n" + b"[" * 190_000), "the answer is nested too deep"),
        (answer(HEAD + b"Content-Length: 100\r\n\r\n{"), "peer closed connection"),
        (answer(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "illegal chunk header"),
        (answer(b"HTTP/1.1 500 Oh\r\nContent-Length: 9\r\n\r\nno"), "HTTP 500: "),
        (answer(b""), "disconnected without sending"),
        (answer(HEAD + b"\r\n[1]"), "no choices"),
    ],
    ids=[
        "hangs",
        "slow head",
        "slow body",
        "floods",
        "floods after an error",
        "brackets",
        "cut",
        "bad chunk",
        "cut error",
        "closes",
        "no text",
    ],
)
def test_whatever_a_server_does_is_one_error_line_in_time(serve, behave, said):
    url, _ = serve(behave)
    started = time.monotonic()
    with pytest.raises(ValueError, match=said) as error:
        ChatEndpoint(url, "m", timeout_s=0.5, retries=0).ask([], str)
    assert time.monotonic() - started < 5 and "\n" not in str(error.value)


def test_a_key_follows_no_redirect(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    elsewhere, stolen = serve(answer(HEAD + b"\r\n" + GOOD))
    there = b"HTTP/1.1 307 Go\r\nLocation: " + elsewhere.encode() + b"\r\nContent-Length: 0\r\n\r\n"
    url, requests = serve(answer(there))
    with pytest.raises(ValueError, match="try 1 of 4: HTTP 307: a redirect to '127.0.0.1:.*' is not followed"):
        ChatEndpoint(url, "m").ask([], str)
    assert len(requests) == 1 and b"secret" in requests[0] and stolen == []


def test_a_good_answer_is_read(serve):
    url, requests = serve(answer(HEAD + b"\r\n" + GOOD))
    messages = [{"role": "user", "content": "Is it?"}]
    assert ChatEndpoint(f"{url}/?version=2", "m", retries=0).ask(messages, str, temperature=0.5, max_tokens=9) == "yes"
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions?version=2 ")
    assert json.loads(body) == {"model": "m", "messages": messages, "temperature": 0.5, "max_tokens": 9}


def test_the_organisation_of_a_hosted_account_is_not_told_to_another_server(serve, monkeypatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, requests = serve(answer(HEAD + b"\r\n" + GOOD))
    ChatEndpoint(url, "m", retries=0).ask([], str)
    assert b"secret" not in requests[0] and b"authorization" not in requests[0].lower()


@pytest.mark.parametrize(
    "url", ["http://me:secret@host/v1", "ftp://me:secret@host/v1", "http://host:no/v1?key=secret"]
)
def test_a_password_in_the_address_is_never_printed(url):
    with pytest.raises(ValueError) as error:
        ChatEndpoint(url, "m")
    assert "secret" not in str(error.value) and "host" in str(error.value)


def test_a_key_in_the_query_is_never_printed(serve):
    url, _ = serve(answer(b""))
    with pytest.raises(ValueError) as error:
        ChatEndpoint(f"{url}?key=secret", "m", retries=0).ask([], str)
    assert "secret" not in str(error.value)
