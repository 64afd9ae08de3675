"""The commands about the server, and the table of all commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from keyvalue_transport.keyvalue.outcomes import Tally, new_tally
from keyvalue_transport.redis import connection_commands, keys, strings
from keyvalue_transport.redis.answers import CommandError, Value, Verbatim, encode
from keyvalue_transport.redis.effects import Awaited, Effect
from keyvalue_transport.redis.glob import matcher
from keyvalue_transport.redis.requests import Request
from keyvalue_transport.redis.session import UNKNOWN, Command, Commands, RedisSession

__all__ = ["command_table", "command_tallies"]

Answer = bytes | Awaited

#: The sections of INFO that are shown only if they are named.
HIDDEN_SECTIONS = frozenset({"commandstats"})
ANY = 2**31
#: An error shows at most this many characters of a name or the arguments.
SHOWN_MAX = 128
#: The limits for the patterns of CONFIG GET, and for the names of COMMAND INFO and COMMAND DOCS.
PATTERNS_MAX, NAMES_MAX = 64, 1_000


def info(session: RedisSession, request: Request) -> Answer:
    """Answer with facts about the server."""
    session.check_password()
    wanted = {word.decode(errors="replace").lower() for word in request[1:]} or {"default"}
    parts = []
    for section, facts in session.surroundings.information(session.account).items():
        name = section.lower()
        if name in wanted or wanted & {"all", "everything"} or ("default" in wanted and name not in HIDDEN_SECTIONS):
            lines = "".join(f"{fact}:{value}\r\n" for fact, value in facts.items())
            parts.append(f"# {section}\r\n{lines}")
    return encode(Verbatim("\r\n".join(parts).encode()), session.resp)


def config(session: RedisSession, request: Request) -> Answer:
    """Answer with settings."""
    session.check_password()
    if request[1].upper() != b"GET":
        shown = request[1].decode(errors="replace")[:SHOWN_MAX]
        raise CommandError(f"ERR unknown subcommand '{shown}'. Try CONFIG GET.")
    if len(request) < 3:
        raise CommandError("ERR wrong number of arguments for 'config|get' command")
    _check_number(len(request) - 2, PATTERNS_MAX)
    tests = [matcher(pattern.lower()[:SHOWN_MAX]) for pattern in request[2:]]
    found: dict[str, Value] = {
        name: value.encode()
        for name, value in session.surroundings.settings().items()
        if any(test is None or test(name.encode()) for test in tests)
    }
    return encode(found, session.resp)


def command(session: RedisSession, request: Request) -> Answer:
    """Answer with facts about commands."""
    session.check_password()
    _check_number(len(request) - 2, NAMES_MAX)
    rows = {row.name: row for row in ROWS}
    match [word.upper() for word in request[1:]]:
        case []:
            found: Value = [_information(row) for row in ROWS]
        case [b"COUNT"]:
            found = len(ROWS)
        case [b"INFO", *names]:
            wanted = [rows.get(name.decode(errors="replace").lower()) for name in names] or [*ROWS]
            found = [None if row is None else _information(row) for row in wanted]
        case [b"DOCS", *names]:
            known = [rows.get(name.decode(errors="replace").lower()) for name in names] or [*ROWS]
            found = {row.name: _documentation(row) for row in known if row is not None}
        case [name, *_] if name in (b"COUNT", b"INFO", b"DOCS"):
            raise CommandError(f"ERR wrong number of arguments for 'command|{name.decode().lower()}' command")
        case _:
            shown = request[1].decode(errors="replace")[:SHOWN_MAX]
            raise CommandError(f"ERR unknown subcommand '{shown}'. Try COMMAND HELP.")
    return encode(found, session.resp)


def _check_number(arguments: int, arguments_max: int) -> None:
    if arguments > arguments_max:
        raise CommandError(f"ERR the request has {arguments} arguments; the limit is {arguments_max}")


def unknown(session: RedisSession, request: Request) -> Answer:
    """Refuse an unknown command."""
    arguments = ""
    for argument in request[1:]:
        if len(arguments) >= SHOWN_MAX:
            break
        arguments += f"'{_shown(argument, SHOWN_MAX - len(arguments))}' "
    shown = _shown(request[0], SHOWN_MAX)
    raise CommandError(f"ERR unknown command '{shown}', with args beginning with: {arguments}")


def _shown(text: bytes, length: int) -> str:
    """Return the beginning of a text, up to the first NUL, as Redis shows it."""
    return text[:length].partition(b"\0")[0].decode(errors="replace")


class CommandRow(NamedTuple):
    """A command as clients see it.

    :ivar arity: the number of parts, or its negative if there may be more
    :ivar places: the parts that are keys: the first, the last, and the step
    """

    name: str
    function: Callable[[RedisSession, Request], Answer]
    arity: int
    kind: Effect | Callable[[Request], Effect]
    flags: str
    places: tuple[int, int, int] = (0, 0, 0)
    parts_max: int = ANY
    is_always: bool = False


ONE_KEY, ALL_KEYS, PAIRS = (1, 1, 1), (1, -1, 1), (1, -1, 2)
READS, WRITES = "readonly fast", "write denyoom"
ROWS = (
    CommandRow("get", strings.get, 2, Effect.READ, READS, ONE_KEY),
    CommandRow("set", strings.set_, -3, strings.effect_of_set, WRITES, ONE_KEY),
    CommandRow("setnx", strings.setnx, 3, Effect.UPDATE, WRITES, ONE_KEY),
    CommandRow("setex", strings.setex, 4, strings.effect_of_setex, WRITES, ONE_KEY),
    CommandRow("psetex", strings.psetex, 4, strings.effect_of_setex, WRITES, ONE_KEY),
    CommandRow("getset", strings.getset, 3, Effect.UPDATE, WRITES, ONE_KEY),
    CommandRow("getdel", strings.getdel, 2, Effect.UPDATE, "write fast", ONE_KEY),
    CommandRow("getex", strings.getex, -2, strings.effect_of_getex, "write fast", ONE_KEY),
    CommandRow("mget", strings.mget, -2, Effect.READ, READS, ALL_KEYS),
    CommandRow("mset", strings.mset, -3, Effect.WRITE, WRITES, PAIRS),
    CommandRow("msetnx", strings.msetnx, -3, Effect.ALONE, WRITES, PAIRS),
    CommandRow("del", keys.delete, -2, Effect.UPDATE, "write", ALL_KEYS),
    CommandRow("unlink", keys.delete, -2, Effect.UPDATE, "write fast", ALL_KEYS),
    CommandRow("exists", keys.exists, -2, Effect.READ, READS, ALL_KEYS),
    CommandRow("incr", strings.incr, 2, Effect.UPDATE, WRITES, ONE_KEY),
    CommandRow("incrby", strings.incrby, 3, Effect.UPDATE, WRITES, ONE_KEY),
    CommandRow("decr", strings.decr, 2, Effect.UPDATE, WRITES, ONE_KEY),
    CommandRow("decrby", strings.decrby, 3, Effect.UPDATE, WRITES, ONE_KEY),
    CommandRow("strlen", strings.strlen, 2, Effect.READ, READS, ONE_KEY),
    CommandRow("append", strings.append, 3, Effect.UPDATE, WRITES, ONE_KEY),
    CommandRow("type", keys.type_, 2, Effect.READ, READS, ONE_KEY),
    CommandRow("ttl", keys.ttl, 2, Effect.READ, READS, ONE_KEY),
    CommandRow("pttl", keys.pttl, 2, Effect.READ, READS, ONE_KEY),
    CommandRow("expire", keys.expire, -3, Effect.UPDATE, "write fast", ONE_KEY),
    CommandRow("pexpire", keys.pexpire, -3, Effect.UPDATE, "write fast", ONE_KEY),
    CommandRow("expireat", keys.expireat, -3, Effect.UPDATE, "write fast", ONE_KEY),
    CommandRow("pexpireat", keys.pexpireat, -3, Effect.UPDATE, "write fast", ONE_KEY),
    CommandRow("persist", keys.persist, 2, Effect.UPDATE, "write fast", ONE_KEY),
    CommandRow("expiretime", keys.expiretime, 2, Effect.READ, READS, ONE_KEY),
    CommandRow("pexpiretime", keys.pexpiretime, 2, Effect.READ, READS, ONE_KEY),
    CommandRow("scan", keys.scan, -2, Effect.READ, "readonly"),
    CommandRow("keys", keys.keys, 2, Effect.ALONE, "readonly"),
    CommandRow("dbsize", keys.dbsize, 1, Effect.ALONE, READS),
    CommandRow("randomkey", keys.randomkey, 1, Effect.ALONE, "readonly"),
    CommandRow("flushdb", keys.flushdb, -1, Effect.ALONE, "write"),
    CommandRow("memory", keys.memory, -2, Effect.READ, "readonly", (2, 2, 1)),
    CommandRow("ping", connection_commands.ping, -1, Effect.LOCAL, "fast", parts_max=2),
    CommandRow("echo", connection_commands.echo, 2, Effect.LOCAL, "fast"),
    CommandRow("select", connection_commands.select, 2, Effect.ALONE, "loading fast", is_always=True),
    CommandRow("auth", connection_commands.auth, -2, Effect.ALONE, "no_auth loading fast", is_always=True),
    CommandRow("hello", connection_commands.hello, -1, Effect.ALONE, "no_auth loading fast", is_always=True),
    CommandRow("client", connection_commands.client, -2, Effect.ALONE, "loading", is_always=True),
    CommandRow("command", command, -1, Effect.LOCAL, "loading", is_always=True),
    CommandRow("info", info, -1, Effect.LOCAL, "loading", is_always=True),
    CommandRow("config", config, -2, Effect.LOCAL, "admin loading", is_always=True),
    CommandRow("quit", connection_commands.quit_, -1, Effect.ALONE, "no_auth loading fast", is_always=True),
    CommandRow("reset", connection_commands.reset, 1, Effect.ALONE, "no_auth loading fast", is_always=True),
)
FOREIGN = (b"POST", b"HOST:")


def command_tallies() -> dict[str, Tally]:
    """Return a new tally for each command, by name, and one for unknown commands."""
    return {name: new_tally() for name in (*(row.name for row in ROWS), UNKNOWN)}


def command_table(tallies: Mapping[str, Tally]) -> Commands:
    """Return the commands by name, in upper and lower case. The command for any other name is `b""`."""
    table = {}
    for row in ROWS:
        parts_max = row.arity if row.arity > 0 else row.parts_max
        is_readonly = "readonly" in row.flags.split()
        entry = Command(
            *(row.name, row.function, abs(row.arity), parts_max, row.kind, row.is_always, is_readonly),
            tallies[row.name],
        )
        table[row.name.encode()] = table[row.name.upper().encode()] = entry
    tally = tallies[UNKNOWN]
    for name in FOREIGN:
        table[name] = Command(UNKNOWN, connection_commands.foreign, 1, ANY, Effect.ALONE, True, False, tally)
    table[b""] = Command(UNKNOWN, unknown, 1, ANY, Effect.LOCAL, True, False, tally)
    return table


def _information(row: CommandRow) -> Value:
    return [row.name.encode(), row.arity, frozenset(row.flags.split()), *row.places, frozenset(), [], [], []]


def _documentation(row: CommandRow) -> Value:
    summary = (row.function.__doc__ or "").encode()
    group = b"string" if row.places != (0, 0, 0) else b"server"
    return {"summary": summary, "since": b"1.0.0", "group": group, "complexity": b"", "arguments": []}
