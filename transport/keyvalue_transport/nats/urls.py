"""URLs of NATS servers: how to parse them, find the user in them, and show them without secrets."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

__all__ = ["Login", "login_of", "reached_url", "redacted_url", "requires_tls", "split_urls", "without_login"]

ALLOWED = "allowed nats://HOST:PORT or tls://HOST:PORT"
#: The addresses of every interface. A client that connects to one reaches the loopback address.
LOOPBACKS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
#: The login options of nats-py's `connect`, by name.
Login = dict[str, str]


def split_urls(text: str) -> tuple[str, ...]:
    """Return the NATS URLs in a comma-separated list. Add `nats://` and port 4222 where they are missing.

    A percent-encoded user and password, or a token, may precede the host. This login applies to all URLs in the list.

    >>> split_urls("127.0.0.1:4222, tls://other")
    ('nats://127.0.0.1:4222', 'tls://other:4222')

    :raises ValueError: there is no URL, a URL is malformed, or the URLs have different users. The message does not
        show text that may hold a password
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise ValueError(f"found text that can't be encoded in UTF-8, {ALLOWED}") from None
    urls = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        url = part if "://" in part else f"nats://{part}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError(f"found a URL with a malformed host or port, {ALLOWED}") from None
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError(
                f"found a URL with more text after the port, {ALLOWED}; in a password, write / ? # as %2F %3F %23"
            )
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ValueError(f"found {redacted_url(url)!r}, {ALLOWED}")
        netloc = parts.netloc if port is not None else parts.netloc.removesuffix(":") + ":4222"
        urls.append(f"{parts.scheme}://{netloc}")
    if not urls:
        raise ValueError(f"found no URL, {ALLOWED}")
    login_of(urls)
    return tuple(urls)


def login_of(urls: Iterable[str]) -> Login:
    """Return the decoded login from URLs: `user` and `password`, or `token`. Return {} if no URL has a login.

    :raises ValueError: the URLs name several users, or a user or password is not UTF-8
    """
    logins: list[Login] = []
    for url in urls:
        name, colon, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
        try:
            name, password = unquote(name, errors="strict"), unquote(password, errors="strict")
        except UnicodeDecodeError:
            raise ValueError(
                "found a user or password that is not UTF-8 after decoding, allowed percent-encoded UTF-8"
            ) from None
        login = {"user": name, "password": password} if colon else {"token": name}
        if any(login.values()) and login not in logins:
            logins.append(login)
    if len(logins) > 1:
        raise ValueError(f"found {len(logins)} different users in a list of URLs, allowed one for all")
    return logins[0] if logins else {}


def without_login(url: str) -> str:
    """Return the URL without user, password or token."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def requires_tls(urls: Iterable[str]) -> bool:
    """Return True if any URL begins with `tls://`. TLS is then required for all URLs."""
    return any(urlsplit(url).scheme == "tls" for url in urls)


def redacted_url(url: str) -> str:
    """Return the URL with `<redacted>` in place of user, password or token."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    _, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{'<redacted>@' if at else ''}{host}"


def reached_url(url: str) -> str:
    """Return the URL of a server that was reached, without secrets, so that people can use it.

    >>> reached_url("nats://user:pass@0.0.0.0:4222"), reached_url("tls://[::]:4222")
    ('nats://<redacted>@127.0.0.1:4222', 'tls://[::1]:4222')
    """
    login, at, address = redacted_url(url).rpartition("@")
    scheme, separator, address = ("", "", address) if at else address.rpartition("//")
    host, colon, port = address.rpartition(":")
    return f"{login}{at}{scheme}{separator}{LOOPBACKS.get(host, host)}{colon}{port}"
