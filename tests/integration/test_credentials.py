"""Credentials of the provider: real NATS servers that require some, and connections with right and wrong ones.

A refusal is reported at once and without a secret. It ends a provider with exit code 1.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import nkeys
import pytest

from keyvalue_transport.nats.connection import Connection, ConnectionOptions, redacted_url
from keyvalue_transport.nats.tls import TlsOptions
from keyvalue_transport.wrpc.errors import ConnectError
from tests.conftest import DEADLINE_S, Launch, NatsServer, Provider, in_thread
from tests.log_lines import LogLines
from tests.nats_configs import Authority, Key, Operator, nkey_config, token_config, user_config

NewServer = Callable[[str], NatsServer]
#: Longer than any test, since a refused connection is not retried.
OPEN_TIMEOUT_S = 600
#: Characters with a meaning in a URL, characters that JSON escapes, and some that are not ASCII.
ODD = 'p@s:s/w?o#r%d,"\\ %41+é[]'


@dataclass(frozen=True)
class Means:
    """The means to connect: the user part of the URL, an nkey user, certificates.

    :ivar reason: why the server refuses them
    :ivar secrets: texts that no output may contain
    """

    login: str = ""
    user_jwt: str = ""
    user_seed: str = ""
    tls: TlsOptions | None = None
    reason: str = re.escape("the NATS server refuses the connection: 'Authorization Violation'")
    secrets: tuple[str, ...] = field(default=(), repr=False)
    scheme: str = "nats"

    def url(self, server: NatsServer) -> str:
        return f"{self.scheme}://{self.login and self.login + '@'}127.0.0.1:{server.port}"

    def options(self, server: NatsServer) -> ConnectionOptions:
        return ConnectionOptions(
            (self.url(server),),
            user_jwt=self.user_jwt,
            user_seed=self.user_seed,
            tls=self.tls,
            open_timeout_s=OPEN_TIMEOUT_S,
        )

    def launch(self, launch: Launch, server: NatsServer, wait: bool = True) -> Provider:
        """Launch a provider with these means, at the finest log level."""
        tls = self.tls or TlsOptions()
        options = {"tls_ca": tls.ca, "tls_certificate": tls.certificate, "tls_key": tls.key}
        return launch(
            {name: value for name, value in options.items() if value} | {"connect_timeout_ms": f"{OPEN_TIMEOUT_S}000"},
            wait=wait,
            lattice_rpc_url=self.url(server),
            lattice_rpc_user_jwt=self.user_jwt,
            lattice_rpc_user_seed=self.user_seed,
            log_level="debug",
        )

    def is_reason(self, server: NatsServer, told: str) -> bool:
        """Return True if the error gives the reason why these means are refused."""
        return bool(re.fullmatch(f"{re.escape(redacted_url(self.url(server)))}: {self.reason}", told))

    def are_hidden(self, output: str) -> bool:
        return not any(secret in output for secret in self.secrets)


@dataclass(frozen=True)
class Case:
    """A server's configuration, means that it accepts, and means that it refuses."""

    config: str
    right: tuple[Means, ...]
    wrong: tuple[Means, ...] = ()


def user(name: str, password: str) -> Means:
    login = f"{quote(name, safe='')}:{quote(password, safe='')}"
    return Means(login, secrets=(password, quote(password, safe="")))


def token(text: str) -> Means:
    return Means(quote(text, safe=""), secrets=(text, quote(text, safe="")))


def nkey(key: Key) -> Means:
    return Means(user_seed=key.seed, secrets=(key.seed,))


def no_authentication(directory: Path) -> Case:
    return Case("", (Means(), user("any-user", "any-passw0rd"), nkey(Key.new())))


def with_token(directory: Path) -> Case:
    return Case(
        token_config("t0ken-hush"),
        (token("t0ken-hush"),),
        (token("t0ken-other"), Means("t0ken-hush:", secrets=("t0ken-hush",)), Means()),
    )


def with_user(directory: Path) -> Case:
    wrong = (user("somebody", "passw0rd-other"), user("another", "passw0rd-hush"), token("passw0rd-hush"), Means())
    return Case(user_config("somebody", "passw0rd-hush"), (user("somebody", "passw0rd-hush"),), wrong)


def with_odd_user(directory: Path) -> Case:
    return Case(user_config("u:@", ODD), (user("u:@", ODD),), (user("u:@", quote(ODD)),))


def with_nkey(directory: Path) -> Case:
    """Return a case in which keys of other kinds sign too. The server knows none of them."""
    key = Key.new()
    others = (nkey(Key.new(kind)) for kind in (nkeys.PREFIX_BYTE_USER, nkeys.PREFIX_BYTE_ACCOUNT))
    return Case(nkey_config(key.public_key), (nkey(key),), (*others, user("u", "passw0rd-hush"), Means()))


def with_jwt(directory: Path) -> Case:
    operator, key, other = Operator(), Key.new(), Key.new()
    user_jwt = operator.user(key)

    def jwt(user_jwt: str, key: Key) -> Means:
        return Means(user_jwt=user_jwt, user_seed=key.seed, secrets=(user_jwt, key.seed))

    expired = operator.user(key, exp=int(time.time()) - 60)
    wrong = (jwt(user_jwt, other), jwt(Operator().user(key), key), jwt(expired, key), nkey(key), Means())
    return Case(operator.config, (jwt(user_jwt, key),), wrong)


def with_tls_and_user(directory: Path) -> Case:
    authority = Authority(directory)
    tls = TlsOptions(str(authority.ca))
    right, wrong = (Means(user("u", p).login, tls=tls, secrets=(p,)) for p in ("passw0rd-hush", "passw0rd-other"))
    return Case(authority.config() + user_config("u", "passw0rd-hush"), (right,), (wrong,))


def with_mutual_tls(directory: Path) -> Case:
    authority = Authority(directory)
    certificate, key = authority.issue("provider.test")
    ca, key_text = authority.ca.read_text(), key.read_text()
    right = (
        Means(tls=TlsOptions(str(authority.ca), str(certificate), str(key))),
        Means(tls=TlsOptions(ca, certificate.read_text(), key_text), secrets=(key_text.splitlines()[1],)),
    )
    (directory / "other").mkdir()
    strangers = (Authority(directory / "other").issue("provider.test"), authority.issue("provider.test", days=-1))
    wrong = (
        Means(tls=TlsOptions(ca), reason="the server requires a client certificate, but none is configured"),
        *(
            Means(
                tls=TlsOptions(ca, str(certificate), str(key)),
                reason="the server does not accept the client certificate: (unknown ca|bad certificate|certificate expired|it ended the connection)",
            )
            for certificate, key in strangers
        ),
    )
    return Case(authority.config(clients=authority.ca), right, wrong)


NOT_ACCEPTED = "the server's certificate is not accepted: "


def with_a_certificate_of_another_authority(directory: Path) -> Case:
    """Return a case in which the provider trusts another authority, or only the system's."""
    (directory / "other").mkdir()
    tls = TlsOptions(str(Authority(directory / "other").ca))
    reason = NOT_ACCEPTED + "(unable to get local issuer certificate|self[- ]signed certificate in certificate chain)"
    wrong = (
        Means("u:passw0rd-hush", tls=tls, reason=reason, secrets=("passw0rd-hush",)),
        Means("u:passw0rd-hush", reason=reason, secrets=("passw0rd-hush",)),
        Means("u:passw0rd-hush", reason=reason, secrets=("passw0rd-hush",), scheme="tls"),
    )
    return Case(Authority(directory).config(), (), wrong)


def with_a_certificate_of_another_name(directory: Path) -> Case:
    authority = Authority(directory)
    reason = NOT_ACCEPTED + "IP address mismatch, certificate is not valid for '127.0.0.1'"
    return Case(
        authority.config("localhost", "127.0.0.2"), (), (Means(tls=TlsOptions(str(authority.ca)), reason=reason),)
    )


def with_a_certificate_that_has_expired(directory: Path) -> Case:
    authority = Authority(directory)
    wrong = Means(tls=TlsOptions(str(authority.ca)), reason=f"{NOT_ACCEPTED}certificate has expired")
    return Case(authority.config(days=-1), (), (wrong,))


def without_tls(directory: Path) -> Case:
    reason = "TLS is required, and the server has none: nothing was sent to it"
    user = Means("u:passw0rd-hush", reason=reason, secrets=("passw0rd-hush",), scheme="tls")
    return Case("", (), (user, replace(user, scheme="nats", tls=TlsOptions(str(Authority(directory).ca)))))


CASES = (
    *(no_authentication, with_token, with_user, with_odd_user, with_nkey, with_jwt),
    *(with_tls_and_user, with_mutual_tls),
    *(with_a_certificate_of_another_authority, with_a_certificate_of_another_name),
    *(with_a_certificate_that_has_expired, without_tls),
)


@pytest.mark.parametrize("case_of", CASES)
async def test_right_credentials_connect_and_wrong_ones_do_not(
    case_of: Callable[[Path], Case], new_nats_server: NewServer, log_lines: LogLines, tmp_path: Path
) -> None:
    case = case_of(tmp_path)
    server = new_nats_server(case.config)
    for means in case.right:
        connection = await Connection.open(means.options(server))
        await connection.flush(DEADLINE_S)
        await connection.close()
    for means in case.wrong:
        with pytest.raises(ConnectError) as caught:
            await asyncio.wait_for(Connection.open(means.options(server)), DEADLINE_S)
        assert means.is_reason(server, str(caught.value))
    for means in (*case.right, *case.wrong):
        assert means.are_hidden(log_lines.text)


@pytest.mark.parametrize("case_of", [with_user, with_jwt, with_mutual_tls])
async def test_a_provider_connects_as_its_host_data_says(
    case_of: Callable[[Path], Case], new_nats_server: NewServer, launch: Launch, tmp_path: Path
) -> None:
    case = case_of(tmp_path)
    server = new_nats_server(case.config)
    right, wrong = case.right[-1], case.wrong[0]
    refused = wrong.launch(launch, server, wait=False)
    provider = await in_thread(right.launch, launch, server)
    assert await in_thread(provider.stop) == 0
    assert right.are_hidden(provider.output)
    assert await in_thread(refused.wait) == 1
    (line,) = refused.output.splitlines()
    assert wrong.is_reason(server, line.partition(" ERROR keyvalue_provider: ")[2])
    assert wrong.are_hidden(refused.output)


async def test_a_refused_reconnect_is_reported_once(new_nats_server: NewServer, log_lines: LogLines) -> None:
    server = new_nats_server(token_config("t0ken-hush"))
    connection = await Connection.open(ConnectionOptions((token("t0ken-hush").url(server),)))
    await in_thread(server.kill)
    await in_thread(server.start, token_config("another"))
    await log_lines.wait_for("NATS: the NATS server refuses the connection")
    await in_thread(server.wait_for, "authentication error", 3)
    await in_thread(server.kill)
    await in_thread(server.start, token_config("t0ken-hush"))
    await log_lines.wait_for("INFO NATS: connected again")
    await connection.flush(DEADLINE_S)
    await connection.close()
    assert [line for line in log_lines.lines if line.startswith("WARNING ")] == [
        "WARNING NATS: the connection is lost; reconnecting for as long as it takes",
        "WARNING NATS: the NATS server refuses the connection: 'Authorization Violation'; still reconnecting",
    ]
    assert "t0ken-hush" not in log_lines.text


async def test_one_user_applies_to_all_urls(new_nats_server: NewServer) -> None:
    server = new_nats_server(user_config("u", ODD))
    means = user("u", ODD)
    async with AsyncExitStack() as stack:
        for urls in ((server.url, means.url(server)), (means.url(server), server.url), (means.url(server),) * 2):
            connection = await Connection.open(ConnectionOptions(urls))
            stack.push_async_callback(connection.close)
            assert connection.server == server.url


# Certificates that cannot be used


def test_unusable_certificates_are_faults_of_the_configuration(launch: Launch, tmp_path: Path) -> None:
    """They are found before NATS is contacted, and no error shows a possible key.

    tests/transport/nats/test_tls.py has all faults.
    """
    certificate, key = Authority(tmp_path).issue("client.test")
    body = key.read_text().splitlines()[1]
    missing = tmp_path / "missing.pem"
    allowed = "No such file or directory, expected the path or the text of a PEM file"
    for config, reason in (
        ({"tls_ca": str(missing)}, f"tls_ca: '{missing}': {allowed}"),
        ({"tls_certificate": certificate.read_text(), "tls_key": key.read_text().replace(body, body[::-1])}, "key: "),
    ):
        provider = launch(config, wait=False, lattice_rpc_url="127.0.0.1:1", log_level="debug")
        assert provider.wait() == 2
        (line,) = provider.output.splitlines()
        assert reason in line
        assert body not in line
        assert body[::-1] not in line
