"""The one SELECT of a source: what it must say, and how its :since and :until are put to an engine; pure."""

import re
from collections.abc import Iterator

from decisioning.refusals import Fault

_QUIET = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$", re.DOTALL)
PARAMETER = re.compile(r"(?<![:\w]):(since|until)\b")


def code_of(query: str) -> str:
    """A query without its texts, quoted names and comments."""
    return _QUIET.sub(" ", query)


def with_parameters(query: str, *, parameter: str, colon: str) -> str:
    r"""The query as an engine takes it: `parameter` in place of :since and :until, `colon` of all others, in texts and comments too.

    >>> with_parameters("SELECT '12:30 :since', a::int WHERE ts > :since", parameter=r"$\1", colon=":")
    "SELECT '12:30 :since', a::int WHERE ts > $since"
    """

    def said(text: str) -> str:
        return re.sub(rf"{PARAMETER.pattern}|:", lambda found: found.expand(parameter) if found[1] else colon, text)

    parts, at = list[str](), 0
    for quiet in _QUIET.finditer(query):
        parts += [said(query[at : quiet.start()]), quiet[0].replace(":", colon)]
        at = quiet.end()
    return "".join([*parts, said(query[at:])])


def faults(query: str) -> Iterator[Fault]:
    said = code_of(query).strip().removesuffix(";").rstrip()
    if not re.match(r"(select|with)\b", said, re.IGNORECASE):
        yield Fault("/query", "invalid", "The query must be one SELECT.")
    elif ";" in said:
        yield Fault("/query", "invalid", "The query must be one statement.")
    missing = {"since", "until"} - set(PARAMETER.findall(said))
    if missing:
        yield Fault(
            "/query", "missing_field", f"The query must be bounded by :since and :until; it has no :{min(missing)}."
        )
