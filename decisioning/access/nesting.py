"""How deep a JSON text nests, told before anything recurses into it, and what is deeper left out: a thread of the web server has a small
stack."""

import re

MAX_DEPTH = 32
_FLAT = bytes(set(range(256)) - set(b'"[]{}'))
_ALIKE = bytes.maketrans(b"{}", b"[]")
_STEP = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def is_too_deep(json: bytes) -> bool:
    """Whether arrays and objects nest deeper than MAX_DEPTH. Of what is no JSON it may say either; a decoder then refuses it.

    >>> is_too_deep(b"[" * 32 + b"]" * 32), is_too_deep(b"[" * 33 + b"]" * 33)
    (False, True)
    """
    if b"\\" in json:
        json = _TEXT.sub(b"", json)
    outline = json.translate(_ALIKE, _FLAT).replace(b'""', b"")
    if b'"' in outline:  # texts with brackets in them
        outline = _TEXT.sub(b"", outline)
    if b"[" * (MAX_DEPTH + 1) in outline:
        return True
    for _ in range(MAX_DEPTH):  # each turn takes the innermost level away
        if not outline:
            return False
        outline = outline.replace(b"[]", b"")
    return b"[]" in outline or outline.count(b"[") > MAX_DEPTH


def pruned(json: bytes) -> bytes:
    """The text with null for every array and object below MAX_DEPTH, which is not read. Of what is no JSON a decoder refuses what is left.

    >>> pruned(b"[" * 33 + b"]" * 33) == b"[" * 32 + b"null" + b"]" * 32
    True
    """
    if not is_too_deep(json):
        return json
    kept: list[bytes] = []
    depth = taken = 0
    for step in _STEP.finditer(json):
        sign = json[step.start()]
        if sign in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += [json[taken : step.start()], b"null"]
        elif sign in b"]}":
            depth -= 1
            if depth == MAX_DEPTH:
                taken = step.end()
    return b"".join(kept) if depth > MAX_DEPTH else b"".join([*kept, json[taken:]])
