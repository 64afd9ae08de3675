"""URLs of NATS servers: the hosts and users that they name, and the URLs that are refused."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.nats.urls import login_of, reached_url, redacted_url, requires_tls, split_urls, without_login


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("127.0.0.1", ("nats://127.0.0.1:4222",)),
        ("127.0.0.1:4223", ("nats://127.0.0.1:4223",)),
        ("nats://a", ("nats://a:4222",)),
        ("nats://a:", ("nats://a:4222",)),
        ("nats://user:pass@a", ("nats://user:pass@a:4222",)),
        ("token@a:1", ("nats://token@a:1",)),
        ("nats://[::1]", ("nats://[::1]:4222",)),
        ("nats://[::1]:1", ("nats://[::1]:1",)),
        (" a , nats://b:2,, ", ("nats://a:4222", "nats://b:2")),
        ("tls://a", ("tls://a:4222",)),
        ("TLS://a:1,NATS://b", ("tls://a:1", "nats://b:4222")),
        ("nats://a/", ("nats://a:4222",)),
        ("tls://t%40ken@[::1]", ("tls://t%40ken@[::1]:4222",)),
        ("tls://u:p@a,tls://u:p@b,c", ("tls://u:p@a:4222", "tls://u:p@b:4222", "nats://c:4222")),
    ],
)
def test_urls_are_split_and_completed(text: str, urls: tuple[str, ...]) -> None:
    assert split_urls(text) == urls
    assert requires_tls(urls) is ("tls" in text.lower())


ALLOWED = "allowed nats://HOST:PORT or tls://HOST:PORT"
NO_HOST = "found a URL with a malformed host or port, " + ALLOWED
GOES_ON = "found a URL with more text after the port, "
SEVERAL = "found 2 different users in a list of URLs, allowed one for all"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"found no URL, {ALLOWED}"),
        (" , ", f"found no URL, {ALLOWED}"),
        ("user:s3cret\ud800@a:1", f"found text that can't be encoded in UTF-8, {ALLOWED}"),
        ("ws://a:1", f"found 'ws://a:1', {ALLOWED}"),
        ("http://user:s3cret@a:1", f"found 'http://<redacted>@a:1', {ALLOWED}"),
        ("wss://s3cret@a", f"found 'wss://<redacted>@a', {ALLOWED}"),
        ("nats://", f"found 'nats://', {ALLOWED}"),
        ("nats://:4222", f"found 'nats://:4222', {ALLOWED}"),
        ("user:s3cret@a:http", NO_HOST),
        ("nats://user:s3cret@a:65536", NO_HOST),
        ("a:1,nats://s3cret@[b", NO_HOST),
        ("nats://u:s3/cret@a", NO_HOST),
        ("nats://u:1/s3cret@a", GOES_ON),
        ("nats://s3cret?x@a", GOES_ON),
        ("nats://s3cret#x@a", GOES_ON),
        ("nats://u:s3cret@a,nats://u:s3cret2@b", SEVERAL),
        ("nats://u:s3cret@a,nats://s3cret@b,c", SEVERAL),
        ("nats://s3cret%ff@a", "found a user or password that is not UTF-8 after decoding, allowed"),
    ],
)
def test_refused_urls(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        split_urls(text)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("nats://a:1", {}),
        ("nats://@a:1", {}),
        ("nats://token@a:1", {"token": "token"}),
        ("nats://u:@a:1", {"user": "u", "password": ""}),
        ("nats://:p@a:1", {"user": "", "password": "p"}),
        ("nats://u:p:q@r@a:1", {"user": "u", "password": "p:q@r"}),
        ("nats://%41%zz:50%@a:1", {"user": "A%zz", "password": "50%"}),
    ],
)
def test_the_user_of_a_url(url: str, login: dict[str, str]) -> None:
    assert login_of((url,)) == login
    assert without_login(url) == "nats://a:1"


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")))
def test_any_user_can_be_written(user: str, password: str) -> None:
    (url,) = split_urls(f"tls://{quote(user, safe='')}:{quote(password, safe='')}@host")
    assert login_of((url,)) == {"user": user, "password": password}
    assert without_login(url) == "tls://host:4222"
    (url,) = split_urls(f"{quote(user, safe='')}@host")
    assert login_of((url,)) == {"token": user}


@given(st.text(), st.text())
def test_no_user_or_password_is_shown(user: str, password: str) -> None:
    assert redacted_url(f"nats://{user}:{password}@host:4222") == "nats://<redacted>@host:4222"
    assert redacted_url("user:pass@host") == "<redacted>@host"
    for url in ("nats://host:4222", "host"):
        assert redacted_url(url) == url


@pytest.mark.parametrize("login", ["", "<redacted>@"])
@pytest.mark.parametrize(
    ("host", "reached"),
    [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]"), ("0.0.0.0.example.org", "0.0.0.0.example.org"), ("[::2]", "[::2]")],
)
def test_the_url_of_a_server_is_one_that_people_can_use(login: str, host: str, reached: str) -> None:
    given = login.replace("<redacted>", "user:0.0.0.0:4222")
    assert reached_url(f"tls://{given}{host}:4222") == f"tls://{login}{reached}:4222"
