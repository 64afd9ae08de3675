"""How we write, where a test can say it: constructions that make a native reader stumble, in code and documents."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_style import sources

ROOT = Path(__file__).parent.parent
ROOMS = ("engine", "transport", "provider", "bench", "tests")
DOCUMENTS = ("*.md", "docs/*.md", "deploy/*.y*ml", "run.sh", "scripts/*")
#: This module quotes what it refuses.
OWN_PATH = "tests/test_english.py"
LINE_COLUMNS_MAX = 120
PARAGRAPH_LINES_MAX = 5

#: Where a sentence or a clause of its own begins.
START = r"(?:^|(?<=[.;:!?)] ))"
REFUSED = {
    "a sentence that begins with 'Of'": re.compile(START + r"Of (?!course)"),
    "a statement that begins with 'Whether'": re.compile(START + r"Whether [^?]*(?:[.;:]|$)"),
    "'who' or 'what' as a subject": re.compile(
        r"(?:^|(?<=[.:!?)] ))(?:Who|What|Whatever) \w[^?]*(?:[.;:]|$)|(?<=; )(?:who|what|whatever) \w[^?]*(?:[.;:]|$)"
    ),
    "'whoever' as a subject": re.compile(r"\b[Ww]hoever\b"),
    "'so many' for 'at most' or 'this many'": re.compile(r"\b[Ss]o (?:many|much)\b(?! (?:faster|slower|more|that)\b)"),
    "'behind' for 'after'": re.compile(
        r"(?<!fall )(?<!falls )(?<!fell )(?<!far )(?<!lags )(?<!nothing )\bbehind\b(?! a proxy)"
    ),
    "'whose time is over' for 'expired'": re.compile(r"\btimes? (?:is|are|was|were) over\b"),
    "'no values' for 'malformed'": re.compile(r"\b(?:is|are|was|were) no values?\b"),
    "'wants a' for 'needs'": re.compile(r"\bwants? an?\b"),
    "'at one stroke' for 'at once'": re.compile(r"\bat one stroke\b"),
    "'is to be had', 'be it'": re.compile(r"\bto be had\b|\b(?:can't|cannot) be had\b|\bbe it\b"),
}
#: Words that no docstring of a function begins with: it begins with an imperative verb.
NO_VERBS = re.compile(
    r"(?:A|After|All|An|And|Any|As|At|Before|Both|Each|Every|First|For|From|How|If|In|It|Its|Later|More|"
    r"Nothing|Now|None|Of|On|One|Only|Other|Same|Some|That|The|Their|These|They|This|Those|True|Two|What|When|Where|Whether|Which|Who|Whole|With)"
)
DECORATORS_OF_NOUNS = ("property", "cached_property", "setter", "fixture", "overload")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring, message and block of comments of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for paragraph in re.split(r"\n\s*\n", node.value):
                yield node.lineno, " ".join(paragraph.split())
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("#: ")
        if block and token.start[0] != last + 1:
            yield last, " ".join(block)
            block = []
        block.append(text)
        last = token.start[0]
    if block:
        yield last, " ".join(block)


def paragraphs(document: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield line, text and lines of each paragraph, point and row of a table of a document. Headings and code are left out."""
    is_code, lines, first = False, list[str](), 0
    for number, line in enumerate([*document.splitlines(), ""], 1):
        fence = line.lstrip().startswith("```")
        is_code ^= fence
        begins = re.match(r"\s*(?:[-*] |\d+\. |\|)", line)
        if lines and (fence or is_code or not line.strip() or begins or line.startswith("#")):
            yield first, re.sub(r"^(?:[-*] |\d+\. )", "", " ".join(" ".join(lines).split())), lines
            lines = []
        if fence or is_code or not line.strip() or line.startswith("#"):
            continue
        first = number if not lines else first
        lines = [*lines, line]


def refused(text: str) -> Iterator[str]:
    """Yield the refused constructions in a text. Code in backticks is not English."""
    text = re.sub(r"`[^`]*`", "`x`", text)
    for cell in text.strip("|").split(" | "):
        yield from (why for why, pattern in REFUSED.items() if pattern.search(cell.strip()))


def noun_docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and first words of the docstrings of functions that begin with no verb."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = [ast.unparse(decorator).split("(")[0].rpartition(".")[2] for decorator in node.decorator_list]
        words = (ast.get_docstring(node) or "").split()
        if words and NO_VERBS.fullmatch(words[0].rstrip(",;:")) and not set(decorators) & set(DECORATORS_OF_NOUNS):
            yield node.lineno, " ".join(words[:6])


def documents() -> Iterator[tuple[str, str]]:
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                yield path.relative_to(ROOT).as_posix(), path.read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_no_text_in_the_code_has_a_refused_construction(room: str) -> None:
    found = [(path, source) for path, source in sources(ROOT, (room,)) if path != OWN_PATH]
    assert len(found) > 5
    faults = [
        f"{path}:{line}: {why}: {text[:160]}"
        for path, source in found
        for line, text in texts(source)
        for why in refused(text)
    ]
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


def test_no_document_has_a_refused_construction() -> None:
    found = list(documents())
    assert len(found) > 5
    faults = [
        f"{path}:{line}: {why}: {text[:160]}"
        for path, document in found
        for line, text, _ in paragraphs(document)
        for why in refused(text)
    ]
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "tests"])
def test_docstrings_of_functions_begin_with_a_verb(room: str) -> None:
    faults = [
        f"{path}:{line}: {words}" for path, source in sources(ROOT, (room,)) for line, words in noun_docstrings(source)
    ]
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


def test_documents_have_short_lines_and_paragraphs() -> None:
    faults = []
    for path, document in documents():
        if path.endswith(".md") and path != "docs/performance.md":  # its tables are written by the benchmarks
            for line, _, lines in paragraphs(document):
                faults += [f"{path}:{line}: {len(lines)} lines"] if len(lines) > PARAGRAPH_LINES_MAX else []
            for line, text in enumerate(document.splitlines(), 1):
                is_wide = len(text) > LINE_COLUMNS_MAX and not text.startswith("|")  # a table has no place to wrap
                faults += [f"{path}:{line}: {len(text)} columns"] if is_wide else []
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "text",
    [
        "Of all keys, one.",
        "Keys. Of these, one.",
        "Whether a key is there.",
        "True; Whether it is there.",
        "Who reads sees all.",
        "It is bounded; what is queued is dropped.",
        "Let whoever asks wait.",
        "So many keys as fit.",
        "the bytes behind it",
        "keys whose time is over",
        "parameters are no values of their types",
        "A certificate wants a restart.",
        "All at one stroke.",
        "An address that can't be had.",
    ],
)
def test_refused_constructions_are_found(text: str) -> None:
    assert list(refused(text))
    assert list(refused(f"| name | {text} |"))
    source = f'def f():\n    """Do.\n\n    {text}\n    """\n    raise ValueError("{text}")\n    # {text}\n'
    assert len([why for _, found in texts(source) for why in refused(found)]) >= 3


@pytest.mark.parametrize(
    "text",
    [
        "Return True if the key exists.",
        "Of course.",
        "What is a shard?",
        "Say what is wrong.",
        "The caller who asked gets it.",
        "Ask whether it is there.",
        "`Of` is a word.",
        "A NATS server drops a consumer that falls behind.",
    ],
)
def test_plain_english_is_taken(text: str) -> None:
    assert not list(refused(text))


def test_docstrings_without_a_verb_are_found() -> None:
    source = 'def f():\n    """The key."""\n\n@property\ndef g():\n    """The key."""\n\ndef h():\n    """Return the key."""\n'
    assert list(noun_docstrings(source)) == [(1, "The key.")]
