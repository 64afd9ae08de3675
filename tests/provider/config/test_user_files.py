"""Files with a NATS user's credentials: which ones are accepted, and that no secret is shown."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from keyvalue_provider.config import user_files
from keyvalue_provider.config.user_files import read_credentials, read_nkey, shown_path
from tests.nats_configs import credentials_file

SEED = "SU" + "A" * 56
CREDENTIALS = credentials_file("a.jwt", SEED)


def test_credentials_and_nkeys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "user"
    for text in (CREDENTIALS, CREDENTIALS.replace("\n", "\r\n"), f"\ufeff{CREDENTIALS}"):
        path.write_text(text, newline="")
        assert read_credentials(str(path)) == ("a.jwt", SEED)
        assert read_nkey(str(path)) == SEED
    for text in (f" {SEED}\n", f"\ufeff{SEED}"):
        path.write_text(text)
        assert read_nkey(str(path)) == SEED


@pytest.mark.parametrize(
    ("text", "missing"),
    [(credentials_file("a.jwt", ""), "seed"), (credentials_file("", SEED), "JWT"), (SEED, "JWT"), ("", "JWT")],
)
def test_a_file_without_credentials_is_refused(tmp_path: Path, text: str, missing: str) -> None:
    path = tmp_path / "user"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: the {missing} is missing; expected a credentials file of nsc$"):
        read_credentials(str(path))


@pytest.mark.parametrize("text", ["", f"U{SEED[2:]}", SEED[:-1], SEED * 2])
def test_a_file_without_a_seed_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "user"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=f"^{path}: the seed is missing; expected a file that holds only an nkey seed$"
    ):
        read_nkey(str(path))


@pytest.mark.parametrize("given", [SEED, f"./{SEED[:-1]}", CREDENTIALS])
def test_content_given_in_place_of_a_path_is_not_shown(given: str) -> None:
    for read in (read_credentials, read_nkey):
        with pytest.raises(ValueError, match=r"^<redacted>: .*; expected the path of a file$"):
            read(given)
    assert shown_path(given) == "<redacted>"


def test_a_path_is_shown(tmp_path: Path) -> None:
    path = str(tmp_path / f"UA{SEED}.nk")  # the name that nsc gives it
    with pytest.raises(ValueError, match=f"^{path}: No such file or directory; expected the path of a file$"):
        read_nkey(path)


@pytest.mark.parametrize("text", ["-" * 65_536, "BEGIN NATS USER JWT" + "-" * 65_000])
def test_a_file_of_dashes_is_read_fast(tmp_path: Path, text: str) -> None:
    path = tmp_path / "user"
    path.write_text(text)
    with pytest.raises(ValueError, match="the JWT is missing"):
        read_credentials(str(path))


def test_examples() -> None:
    assert doctest.testmod(user_files).failed == 0
