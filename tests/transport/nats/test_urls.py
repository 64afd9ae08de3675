"""URLs of NATS servers: whom they name, and what is refused."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.nats.urls import login_of, redacted_url, requires_tls, split_urls, without_login


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nats://u:s3/cret@a", "found a URL whose host or port is none, allowed"),
        ("nats://u:1/s3cret@a", "found a URL that goes on behind the port, allowed"),
        ("nats://s3cret?x@a", "found a URL that goes on behind the port, allowed"),
        ("nats://s3cret#x@a", "found a URL that goes on behind the port, allowed"),
        (
            "nats://u:s3cret@a,nats://u:s3cret2@b",
            "found 2 different users in a list of URLs, allowed one for all of them",
        ),
        (
            "nats://u:s3cret@a,nats://s3cret@b,c",
            "found 2 different users in a list of URLs, allowed one for all of them",
        ),
        ("nats://s3cret%ff@a", "found a user or password that is not UTF-8 once decoded, allowed"),
        ("wss://s3cret@a", "found 'wss://<redacted>@a', allowed nats://HOST:PORT or tls://HOST:PORT"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="allowed") as caught:
        split_urls(text)
    assert str(caught.value).startswith(message)
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no URL, allowed nats://HOST:PORT or tls://HOST:PORT"),
        (" , ", "found no URL, allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("ws://a:1", "found 'ws://a:1', allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("http://user:pass@a:1", "found 'http://<redacted>@a:1', allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("nats://", "found 'nats://', allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("nats://:4222", "found 'nats://:4222', allowed nats://HOST:PORT or tls://HOST:PORT"),
        ("user:pass@a:http", "found a URL whose host or port is none, allowed nats://HOST:PORT or tls://HOST:PORT"),
        (
            "nats://user:pass@a:65536",
            "found a URL whose host or port is none, allowed nats://HOST:PORT or tls://HOST:PORT",
        ),
        ("a:1,nats://pass@[b", "found a URL whose host or port is none, allowed nats://HOST:PORT or tls://HOST:PORT"),
    ],
)
def test_what_is_no_url_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="allowed") as caught:
        split_urls(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("nats://a:1", "nats://a:1"),
        ("nats://user:pass@a:1", "nats://<redacted>@a:1"),
        ("nats://token@a:1", "nats://<redacted>@a:1"),
        ("user:pass@a", "<redacted>@a"),
        ("a", "a"),
        ("nats://user:p@ss@a:1", "nats://<redacted>@a:1"),
        ("nats://user:p://ss@a:1", "nats://<redacted>@a:1"),
    ],
)
def test_urls_are_redacted(url: str, redacted: str) -> None:
    assert redacted_url(url) == redacted


@given(st.text(), st.text())
def test_no_user_and_password_shows(user: str, password: str) -> None:
    assert redacted_url(f"nats://{user}:{password}@host:4222") == "nats://<redacted>@host:4222"
