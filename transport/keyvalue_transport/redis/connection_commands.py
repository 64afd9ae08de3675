"""The commands about a connection: who the client is, and how it speaks."""

from __future__ import annotations

from collections.abc import Iterable

from keyvalue_transport.redis.answers import OK, CommandError, Value, Verbatim, encode
from keyvalue_transport.redis.deadlines import SYNTAX
from keyvalue_transport.redis.effects import Awaited
from keyvalue_transport.redis.requests import Request
from keyvalue_transport.redis.revisions import parse_integer
from keyvalue_transport.redis.session import RedisSession
from keyvalue_transport.redis.surroundings import Client, User

Answer = bytes | Awaited

VERSION = "7.0.0"
NAME_BYTES_MAX = 256
I32_MIN, I32_MAX = -(2**31), 2**31 - 1
NO_CLIENT_ID = "ERR client-id should be greater than 0"
LIBRARY_OPTIONS = ("LIB-NAME", "LIB-VER")
WRONG_PASSWORD = "WRONGPASS invalid username-password pair or user is disabled."
NO_PASSWORD_NEEDED = (
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
HELLO_WITHOUT_AUTH = (
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> "
    "option can be used to authenticate the client and select the RESP protocol version at the same time"
)
#: The characters that CLIENT LIST can show as they are.
SHOWN = range(ord("!"), ord("~") + 1)


def ping(session: RedisSession, request: Request) -> Answer:
    """Answer."""
    return encode(request[1], session.resp) if len(request) == 2 else b"+PONG\r\n"


def echo(session: RedisSession, request: Request) -> Answer:
    """Answer with the argument."""
    return encode(request[1], session.resp)


def select(session: RedisSession, request: Request) -> Answer:
    """Use another database."""
    session.check_password()
    database = parse_integer(request[1])
    if not I32_MIN <= database <= I32_MAX:
        raise CommandError(f"ERR value is out of range, value must between {I32_MIN} and {I32_MAX}")
    if not session.select(database):
        raise CommandError("ERR DB index is out of range")
    return OK


def auth(session: RedisSession, request: Request) -> Answer:
    """Act as a user."""
    if len(request) > 3:
        raise CommandError(SYNTAX)
    if len(request) == 2 and session.surroundings.anonymous() is not None:
        raise CommandError(NO_PASSWORD_NEEDED)
    user = request[1] if len(request) == 3 else b"default"
    session.log_in(_account(session, user, request[-1]))
    return OK


def hello(session: RedisSession, request: Request) -> Answer:
    """Choose the version of the protocol."""
    resp = session.resp
    words = request[1:]
    if words:
        resp = parse_integer(words[0], "ERR Protocol version is not an integer or out of range")
        if resp not in (2, 3):
            raise CommandError("NOPROTO unsupported protocol version")
    account, name = session.account, None
    left = iter(words[1:])
    for word in left:
        arguments = {b"AUTH": 2, b"SETNAME": 1}.get(word.upper(), 0)
        found = [argument for _, argument in zip(range(arguments), left, strict=False)]
        if not arguments or len(found) < arguments:
            raise CommandError(f"ERR Syntax error in HELLO option '{word.decode(errors='replace')[:128]}'")
        if arguments == 2:
            account = _account(session, *found)
        else:
            name = _checked(found[0], "Client names")
    if account is None:
        raise CommandError(HELLO_WITHOUT_AUTH)
    if account is not session.account:
        session.log_in(account)
    if name is not None:
        session.name = name
    session.speak(resp)
    about: dict[str, Value] = {
        "server": b"redis",
        "version": VERSION.encode(),
        "proto": resp,
        "id": session.number,
        "mode": b"standalone",
        "role": b"master",
        "modules": [],
    }
    return encode(about, resp)


def quit_(session: RedisSession, request: Request) -> Answer:
    """Close the connection."""
    session.ends = True
    return OK


def reset(session: RedisSession, request: Request) -> Answer:
    """Forget what the client has chosen."""
    session.reset()
    return b"+RESET\r\n"


def foreign(session: RedisSession, request: Request) -> Answer:
    """Close the connection of a browser that was made to send its request here."""
    session.surroundings.count_foreign()
    session.ends = True
    return b""


def client(session: RedisSession, request: Request) -> Answer:
    """Execute a subcommand of CLIENT."""
    function, parts_min, parts_max = SUBCOMMANDS.get(request[1].upper(), (None, 0, 0))
    if function is None:
        shown = request[1].decode(errors="replace")[:128]
        raise CommandError(f"ERR unknown subcommand '{shown}'. Try CLIENT HELP.")
    if not parts_min <= len(request) <= parts_max:
        shown = request[1].decode().lower()
        raise CommandError(f"ERR wrong number of arguments for 'client|{shown}' command")
    if function is not _set_info:
        session.check_password()
    return function(session, request)


def _set_info(session: RedisSession, request: Request) -> Answer:
    option = request[2].decode(errors="replace").upper()
    if option not in LIBRARY_OPTIONS:
        raise CommandError(f"ERR Unrecognized option '{request[2].decode(errors='replace')[:128]}'")
    session.library[option] = _checked(request[3], option.lower())
    return OK


def _set_name(session: RedisSession, request: Request) -> Answer:
    session.name = _checked(request[2], "Client names")
    return OK


def _get_name(session: RedisSession, request: Request) -> Answer:
    return encode(session.name, session.resp) if session.name else session.nil


def _id(session: RedisSession, request: Request) -> Answer:
    return b":%d\r\n" % session.number


def _list(session: RedisSession, request: Request) -> Answer:
    clients = _visible(session)
    match [word.upper() for word in request[2:]]:
        case []:
            pass
        case [b"TYPE", _]:
            clients = clients if _is_normal(request[3]) else []
        case [b"ID", *numbers] if numbers:
            wanted = {parse_integer(number, "ERR Invalid client ID") for number in numbers}
            clients = [each for each in clients if each.number in wanted]
        case _:
            raise CommandError(SYNTAX)
    return encode(Verbatim(b"".join(map(_line, clients))), session.resp)


def _kill(session: RedisSession, request: Request) -> Answer:
    """Close connections, by address or by filters. A restricted user can close only its own."""
    clients = _visible(session)
    if len(request) == 3:
        found = [each for each in clients if each.describe()["addr"] == request[2].decode(errors="replace")]
        if not found:
            raise CommandError("ERR No such client")
        _end(session, found)
        return OK
    if len(request) & 1:
        raise CommandError(SYNTAX)
    skips_me = is_possible = True
    wanted: dict[str, object] = {}
    for word, argument in zip(request[2::2], request[3::2], strict=True):
        match word.upper():
            case b"ID":
                number = parse_integer(argument, NO_CLIENT_ID)
                if number < 1:
                    raise CommandError(NO_CLIENT_ID)
                is_possible &= wanted.setdefault("id", number) == number
            case b"ADDR" | b"LADDR" | b"USER":
                text = argument.decode(errors="replace")
                is_possible &= wanted.setdefault(word.decode().lower(), text) == text
            case b"TYPE":
                is_possible &= _is_normal(argument)
            case b"SKIPME" if argument.upper() in (b"YES", b"NO"):
                skips_me = argument.upper() == b"YES"
            case _:
                raise CommandError(SYNTAX)
    found = [
        each
        for each in (clients if is_possible else [])
        if wanted.items() <= each.describe().items() and not (skips_me and each.number == session.number)
    ]
    _end(session, found)
    return b":%d\r\n" % len(found)


def _end(session: RedisSession, clients: Iterable[Client]) -> None:
    for each in clients:
        if each.number == session.number:
            session.ends = True  # after the answer
        else:
            each.kill()


def _visible(session: RedisSession) -> list[Client]:
    """Return the connections that the client may see."""
    account = session.account
    assert account is not None
    clients = session.surroundings.clients()
    return [each for each in clients if not account.is_restricted or each.user == account.name]


def _is_normal(kind: bytes) -> bool:
    """Return True for the type of all connections, and False for the other types that Redis knows."""
    if kind.upper() not in (b"NORMAL", b"MASTER", b"REPLICA", b"SLAVE", b"PUBSUB"):
        raise CommandError(f"ERR Unknown client type '{kind.decode(errors='replace')[:128]}'")
    return kind.upper() == b"NORMAL"


def _line(client: Client) -> bytes:
    return " ".join(f"{name}={value}" for name, value in client.describe().items()).encode(errors="replace") + b"\n"


def _account(session: RedisSession, user: bytes, password: bytes) -> User:
    account = session.surroundings.account(user.decode(errors="replace"), password)
    if account is None:
        raise CommandError(WRONG_PASSWORD)
    return account


def _checked(name: bytes, what: str) -> bytes:
    if not all(byte in SHOWN for byte in name):
        raise CommandError(f"ERR {what} cannot contain spaces, newlines or special characters.")
    if len(name) > NAME_BYTES_MAX:
        raise CommandError(f"ERR {what} cannot be longer than {NAME_BYTES_MAX} bytes")
    return name


SUBCOMMANDS = {
    b"SETINFO": (_set_info, 4, 4),
    b"SETNAME": (_set_name, 3, 3),
    b"GETNAME": (_get_name, 2, 2),
    b"ID": (_id, 2, 2),
    b"LIST": (_list, 2, 2**31),
    b"KILL": (_kill, 3, 2**31),
}
