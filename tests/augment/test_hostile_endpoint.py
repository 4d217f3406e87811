"""An endpoint that answers with anything at all: all of it is a reply or one sentence, in time, and tells no secret."""

import asyncio
import base64
import gzip
import json
import socketserver
import threading
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from uld.augment.endpoint import Endpoint, EndpointError, Reply, message_of
from uld.augment.transport import MOST_BYTES, Address, shown

KEY = 'sk-very"secret/+1234567890'
DOCUMENT = "Mara Quillon keeps the lighthouse."


class Server(socketserver.ThreadingTCPServer):
    """Sends raw bytes; the prompt ``case N`` asks for the N-th."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, cases: list[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cases = cases
        self.bodies: list[str] = []
        self.paths: list[str] = []
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            head += line
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        body = self.rfile.read(length).decode()
        self.server.paths.append(head.split()[1].decode())
        self.server.bodies.append(body)
        prompt = json.loads(body)["messages"][0]["content"]
        raw = self.server.cases[int(prompt.split()[1])]
        try:
            if raw == b"drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n")
                for _ in range(200):
                    self.wfile.write(b" ")
                    time.sleep(0.05)
            elif raw == b"endless":
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")
                for _ in range(MOST_BYTES // 2**20 * 4):
                    self.wfile.write(b" " * 2**20)
            else:
                self.wfile.write(raw)
        except OSError:
            pass


def http(status: int, body: bytes | str = b"", kind: str = "application/json", **headers: str) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close"]
    lines += [f"content-type: {kind}"] if kind else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def completion(content: Any = "good", usage: Any = None, **changes: Any) -> str:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7} if usage is None else usage
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(whole | changes)


def refused(message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "x"}})


Case = tuple[bytes, Reply | str]
NO_COMPLETION = "answered with something that is no chat completion"
HELD_BACK = "what it says quotes the key or the password and is not shown"
CONTROLS = [*map(chr, [*range(1, 9), *range(11, 13), *range(14, 32), *range(0x7F, 0xA0)]), *"\u202e\u2066\u200b\ufeff"]


def statuses() -> Iterator[Case]:
    for status in (400, 402, 405, 406, 408, 409, 410, 411, 413, 415, 418, 422, 451, 500, 501, 502, 503, 504, 529, 599):
        yield http(status, refused("no")), f"answered with an error ({status}): "
        yield http(status, "<html>", kind="text/html"), f"answered with an error ({status}): "
        yield http(status, b"\xff\xfe", kind=""), f"answered with an error ({status}): "
    for status in (401, 403):
        yield http(status, refused(f"not with {KEY}")), f"refuses the key of ULD_TEST_KEY ({status})"
    yield http(404, refused("no")), "has no model 'm' (404)"
    for wait in ("1", "86400", "-1", "nan", "inf", "Fri, 31 Dec 9999 23:59:59 GMT", "x", ""):
        yield http(429, refused("slow"), retry_after=wait), "allows no more requests for now (429)"
    for status in (201, 202, 203, 206):
        yield http(status, completion()), Reply("good", 3, 4)
    yield http(204), NO_COMPLETION


def texts_of_errors() -> Iterator[Case]:
    for one in CONTROLS:
        if one.isspace():  # is a blank like any other
            continue
        number = ord(one)
        yield http(400, refused(f"a{one}b")), f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
    yield http(400, refused("\x1b]0;title\x07\x1b[2J")), "\\x1b]0;title\\x07\\x1b[2J"
    yield http(400, refused("half \ud83d")), "half \\ud83d"
    yield http(400, refused("x" * 100_000)), "x" * 50
    yield http(400, refused("a\n\n\r\n\tb")), "a b"


def secrets() -> Iterator[Case]:
    basic = base64.b64encode(b"u:" + KEY.encode()).decode()
    for text in (KEY, f"Bearer {KEY}", KEY[:12], KEY[-9:], f"x{KEY}y", f'"{KEY}"', json.dumps(KEY), f"{KEY} {basic}"):
        yield http(400, refused(text)), HELD_BACK
        yield http(500, text, kind="text/plain"), "answered with an error (500)"
        yield http(400, json.dumps({"detail": [text]})), "answered with an error (400)"
        yield http(418, json.dumps([text])), "answered with an error (418)"
    yield http(200, completion(f"Bearer {KEY}")), Reply("Bearer …", 3, 4)


def redirects(other: str) -> Iterator[Case]:
    for status in (300, 301, 302, 303, 307, 308):
        for place in (
            f"{other}/v1/chat/completions",
            f"http://localhost:{other.rpartition(':')[2]}/steal",
            "https://127.0.0.1/v1",
            "//127.0.0.2/x",
            "http://ann:pass@127.0.0.2/x?key=abc",
            "ftp://127.0.0.2/x",
        ):
            yield http(status, location=place), f"({status}): nothing was sent there"
    for place in ("http://[", "http://127.0.0.1:99999/", "http://a b/"):
        yield http(307, location=place), ""
    yield http(307), "(307)"
    yield http(304), "(304)"
    for status in (301, 302, 303):  # would ask for the same with another method
        yield http(status, location="/v1/other"), f"({status}): nothing was sent there"


def tokens() -> Iterator[Case]:
    for odd in (-5, -1, 0, 1.5, "7", None, True, [], {}, 10**9, 10**10, 10**400, 2**63):
        number = odd if type(odd) is int and 0 <= odd <= 10**9 else 0
        yield http(200, completion(usage={"prompt_tokens": odd, "completion_tokens": 4})), Reply("good", number, 4)
        yield http(200, completion(usage={"prompt_tokens": 3, "completion_tokens": odd})), Reply("good", 3, number)
    for odd in ([], {}, 0, "x", 5, [1]):
        yield http(200, completion(usage=odd)), Reply("good", 0, 0)
    yield http(200, completion().replace(": 3,", ": NaN,")), Reply("good", 0, 4)


def answers() -> Iterator[Case]:
    for text in ("", "x", "\x1b[31m", "\u202e", "a\r\nb", "\x00", "中文 👩\u200d🚀", "x" * 100_000):
        yield http(200, completion(text)), Reply(text, 3, 4)
    for text, said in (("\ud83d", "?"), ("a\udcffb", "a?b"), ("\udc00\ud800", "??"), ("\ud83d\ude00", "😀")):
        yield http(200, completion(text)), Reply(said, 3, 4)
    yield http(200, completion(None)), Reply("", 3, 4)
    for content in (5, 1.5, True, ["a"], {"a": 1}, [{"type": "text", "text": "a"}]):
        yield http(200, completion(content)), NO_COMPLETION
    for choices in (None, [], {}, 5, "x", [None], [5], ["x"], [[]], [{}], [{"message": None}], [{"message": 5}]):
        yield http(200, completion(choices=choices)), NO_COMPLETION
    for message in ([], "x", 5):
        yield http(200, completion(choices=[{"message": message}])), NO_COMPLETION


NO_JSON = ["null", "true", "5", "1e999", "NaN", '"text"', "[]", "{}", "[[]]", "{", "}", "<html>", "data:{}", "[1e999]"]


def bodies() -> Iterator[Case]:
    deep = ["[" * 200_000, '{"a":' * 9999, "9" * 5000]
    near = [
        "",
        " ",
        "\ufeff{}",
        completion()[:-5],
        completion() + "x",
        '{"choices": -Infinity}',
        "{'a':[]}",
        '"\\ud800"',
    ]
    for body in (*NO_JSON, *deep, *near, b"\xff\xfe\x00", b"\x00" * 100, b"\xc3\x28", gzip.compress(b"{}")):
        yield http(200, body), NO_COMPLETION
        yield http(200, body, kind="text/plain"), NO_COMPLETION
    for kind in ("", "application/json; charset=latin-1", "application/json; charset=nonsense", "application/JSON"):
        yield http(200, completion(), kind=kind), ""
    packed = {"gzip": gzip.compress(b" " * 10**7), "deflate": zlib.compress(b"{}"), "br": b"x", "zstd": b"x", "x": b"x"}
    for coding, body in packed.items():
        yield http(200, body, content_encoding=coding), "a packed body, which it was not asked for"
        yield http(500, body, content_encoding=f" {coding.upper()}, gzip"), "a packed body, which it was not asked for"
    yield http(200, completion(), content_encoding="identity"), Reply("good", 3, 4)
    yield http(200, completion(), content_encoding=""), Reply("good", 3, 4)
    yield b"endless", "answers with more than 16 MiB"


def wire() -> Iterator[Case]:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    chunked = head + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    whole = completion().encode()
    starts = [b"", b"\r\n", b"\x00", b"HTTP", b"HTTP/1.1", b"HTTP/1.1 200", b"<html>", b"\x16\x03\x01\x02", head]
    lines = [b"ICY 200 OK", b"HTTP/1.1 2x0 OK", b"HTTP/1.1 99999 OK", b"HTTP/1.1 -1 OK"]
    fields = [b"content-length: -5", b"content-length: x", b"content-length: 9", b"no colon", b"a\x00b: c"]
    fields += [b"x: " + b"y" * 2**20, b"content-length: 1\r\ncontent-length: 2"]
    cut = [chunked + part for part in (b"zz\r\n", b"5\r\nab", b"fffffffffffffffff\r\n{}")]
    whole_heads = [line + b"\r\n\r\n" for line in (*lines, *(head + field for field in fields))]
    for raw in (*starts, *whole_heads, *cut):
        yield raw, "cannot be reached or broke off"
    yield chunked + f"{len(whole):x}\r\n".encode() + whole + b"\r\n0\r\n\r\n", Reply("good", 3, 4)
    yield head + b"connection: close\r\n\r\n" + whole, Reply("good", 3, 4)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULD_TEST_KEY", KEY)
    monkeypatch.setattr("uld.augment.endpoint._BODIES", 1)
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(proxy, raising=False)


def asked(server: Server, numbers: range, **changes: Any) -> list[Reply | EndpointError]:
    """What comes of each case, asked over one client."""
    settings = {"base": f"{server.origin}/v1", "key_env": "ULD_TEST_KEY", "model": "m", "retries": 0, "timeout": 20.0}
    endpoint = Endpoint(**{**settings, **changes})
    found: list[Reply | EndpointError] = []

    async def ask() -> None:
        async with endpoint._client() as client:
            for number in numbers:
                try:
                    found.append(await endpoint._ask(client, f"case {number} {DOCUMENT}", 0))
                except EndpointError as error:
                    found.append(error)

    asyncio.run(ask())
    return found


def wrong(expected: Reply | str, got: Reply | EndpointError) -> bool:
    if isinstance(expected, Reply):
        return got != expected
    if expected == "":
        return isinstance(got, EndpointError) and not str(got).isprintable()
    text = str(got)
    told = any(secret in text for secret in (KEY, KEY[:10], "pass@", "key=abc", DOCUMENT))
    return not isinstance(got, EndpointError) or expected not in text or told or not text.isprintable()


def test_every_answer_is_a_reply_or_one_sentence():
    other = Server([http(200, completion("stolen"))] * 2000)
    kinds = (statuses(), texts_of_errors(), secrets(), redirects(other.origin), tokens(), answers(), bodies(), wire())
    cases = [case for kind in kinds for case in kind]
    assert len(cases) >= 300
    server = Server([raw for raw, _ in cases])
    try:
        got = asked(server, range(len(cases)))
    finally:
        server.shutdown()
        other.shutdown()
    mistakes = [(raw[:99], said, one) for (raw, said), one in zip(cases, got, strict=True) if wrong(said, one)]
    assert not mistakes, f"{len(mistakes)} of {len(cases)}: {mistakes[:9]}"
    assert not other.bodies  # no document has gone anywhere else
    assert len(server.bodies) == len(cases)


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_within_the_origin_is_followed_a_few_times(status: int):
    server = Server([http(status, location="/v1/chat/completions/")])
    try:
        (got,) = asked(server, range(1))
    finally:
        server.shutdown()
    assert isinstance(got, EndpointError) and f"({status})" in str(got)  # it leads on for ever
    assert server.paths == ["/v1/chat/completions", *["/v1/chat/completions/"] * 3]
    assert all(DOCUMENT in body for body in server.bodies)


def test_one_that_arrives_is_as_good_as_an_answer():
    server = Server([http(307, location="/v1/other")])
    handle = Handler.handle

    def once(self: Handler) -> None:
        handle(self)
        self.server.cases[0] = http(200, completion("arrived"))

    server.RequestHandlerClass = type("Once", (Handler,), {"handle": once})
    try:
        assert asked(server, range(1)) == [Reply("arrived", 3, 4)]
    finally:
        server.shutdown()


def test_the_timeout_is_of_the_whole_request_and_a_day_is_not_waited_for():
    server = Server([b"drip", http(429, refused("later"), retry_after="86400")])
    begun = time.monotonic()
    try:
        got = asked(server, range(2), timeout=0.3, retries=1)
    finally:
        server.shutdown()
    assert time.monotonic() - begun < 8
    assert "took longer than 0.3 s, 2 times" in str(got[0]) and "allows no more requests" in str(got[1])


def test_a_login_in_the_url_is_sent_and_not_told(caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    login = base64.b64encode(b"ann:pass/word").decode()
    server = Server(
        [http(400, refused("with pass/word")), http(400, refused(f"Basic {login}")), http(200, completion())]
    )
    place = server.origin.replace("http://", "http://ann:pass%2Fword@")
    try:
        got = asked(server, range(3), base=f"{place}/v1?token=abc", key_env="none")
    finally:
        server.shutdown()
    assert got[2] == Reply("good", 3, 4)
    assert all(f"{server.origin}/v1 answered with an error (400): {HELD_BACK}" in str(one) for one in got[:2])
    assert not any(secret in caplog.text for secret in ("pass", login, "ann"))


def test_no_proxy_sees_what_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch):
    server, proxy = Server([http(200, completion())]), Server([http(200, completion("seen"))])
    monkeypatch.setenv("HTTP_PROXY", proxy.origin)
    monkeypatch.setenv("ALL_PROXY", proxy.origin)
    try:
        assert asked(server, range(1)) == [Reply("good", 3, 4)]
        assert asked(server, range(1), base="http://elsewhere.invalid/v1") == [Reply("seen", 3, 4)]  # as set
    finally:
        server.shutdown()
        proxy.shutdown()
    assert len(proxy.bodies) == 1


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nowhere", "nowhere is no address"),
        ("localhost:8000/v1", "localhost:8000/v1 is no address"),
        ("ftp://ann:pass@host/v1", "ftp://host/v1 is no address"),
        ("http://ann:pass@host:port/v1", "http://host:port/v1 is no address"),
        ("http://ann:pa@ss@host:99999/v1", "http://host:99999/v1 is no address"),
        ("ann:pass@host/v1", "host/v1 is no address"),
        ("http://", "http:// is no address"),
        ("http://a b/v1?key=pass", "http://a b/v1 is no address"),
        ("http://[::1/v1", "http://[::1/v1 is no address"),
        ("http://host\x1b[2J/", "http://host\\x1b[2J/ is no address"),
        ("", "'' is no address"),
    ],
)
def test_what_is_no_address_is_refused_without_its_password(url: str, told: str):
    with pytest.raises(EndpointError) as caught:
        Address.read(url)
    assert str(caught.value).startswith(told) and "pass" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "bare", "local"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1", True),
        ("http://127.3.2.1/v1", "http://127.3.2.1/v1", True),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1", True),
        ("https://ann:p%40ss@api.example.com/v1?x=1", "https://api.example.com/v1?x=1", False),
        ("http://10.0.0.1:80/v1", "http://10.0.0.1:80/v1", False),
        ("http://localhost.example.com/v1", "http://localhost.example.com/v1", False),
    ],
)
def test_addresses(url: str, bare: str, local: bool):
    address = Address.read(url)
    assert (address.url, address.is_local) == (bare, local)
    assert address.login == (("ann", "p@ss") if "@" in url else None)
    assert address.shown == shown(url) == bare.partition("?")[0]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [({"message": "no room"}, "no room"), ({"message": 3}, "Error code: 400"), ("no room", "Error code: 400")],
)
def test_an_endpoint_is_quoted_alike_by_every_version_of_the_client(body, wanted):
    error = SimpleNamespace(body=body, message=f"Error code: 400 - {body}")  # as older ones write it
    assert message_of(error).startswith(wanted)
