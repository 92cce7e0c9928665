"""Sources of many files: a folder, or a pattern such as `exports/*.parquet`. The newest file comes first, and each is read once."""

import datetime as dt
import re
from copy import copy
from dataclasses import dataclass

from telemetry.models import Source, SourceFile
from telemetry.sources.places import ENDINGS, below, refused_path, root
from telemetry.sources.refusals import SourceFailed

MOST_FILES = 10_000
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """A file as its file system tells of it. path: below the folder of files. size: bytes."""

    path: str
    modified_ns: int
    size: int

    def alone(self, source: Source) -> Source:
        """The source as if it were of this file alone; not to be saved."""
        one = copy(source)
        one.path = self.path
        return one


def is_many(source: Source) -> bool:
    """Whether a source's path is a folder or a pattern."""
    path = source.path
    return source.kind == Source.Kind.FILE and bool(_WILD.search(path) or path.endswith("/") or below(path).is_dir())


def problem(source: Source) -> str:
    """What is wrong with the path of a source of many files; empty where nothing is. Raises SourceFailed."""
    parts = source.path.split("/")
    if "**" in source.path:
        return "** is not taken. Name each level of folders: exports/*/*.parquet."
    if ".." in parts or source.path.startswith("/"):
        return f"{source.path[:80]!r} is not below the folder of files, DECISIONING_FILES."
    fixed = next((parts[:place] for place, part in enumerate(parts) if _WILD.search(part)), parts)
    if fixed != parts and not source.path.lower().endswith(("*", *ENDINGS)):
        return f"{source.path[:80]!r} must end with .csv, .csv.gz, .parquet or *."
    return refused_path(source, below("/".join(fixed) or ".") / "any")


def found(source: Source) -> list[Found]:
    """The files of a source of many, newest first. What begins with . or _ is none (`_SUCCESS`, parts under way). Raises SourceFailed."""
    pattern = source.path if _WILD.search(source.path) else f"{source.path.rstrip('/')}/*"
    files = list[Found]()
    for path in root().glob(pattern):
        if path.name.startswith((".", "_")) or not path.name.lower().endswith(ENDINGS) or not path.is_file():
            continue
        relative = str(path.relative_to(root()))
        if refused := refused_path(source, below(relative)):
            raise SourceFailed(f"{relative[:80]!r}: {refused}")
        told = path.stat()
        files.append(Found(relative, told.st_mtime_ns, told.st_size))
        if len(files) > MOST_FILES:
            raise SourceFailed(f"More than {MOST_FILES:,} files match {source.path[:80]!r}. Move those that were read.")
    if not files:
        raise SourceFailed(f"No file matches {source.path[:80]!r} in the folder of files, DECISIONING_FILES.")
    return sorted(files, key=lambda file: (-file.modified_ns, file.path))


def unread(source: Source, *, again_from: dt.datetime | None) -> tuple[list[Found], int]:
    """(those that were not read yet as they are now, and those changed since `again_from`; how many others there are). Forgets files
    that are gone."""
    files = found(source)
    read = {file.path: file for file in SourceFile.objects.filter(source=source)}
    if gone := read.keys() - {file.path for file in files}:
        SourceFile.objects.filter(source=source, path__in=gone).delete()
    again_ns = again_from.timestamp() * 1e9 if again_from else float("inf")
    new = [file for file in files if file.modified_ns >= again_ns or not _is_read(file, read.get(file.path))]
    return new, len(files) - len(new)


def _is_read(file: Found, read: SourceFile | None) -> bool:
    return read is not None and (read.modified_ns, read.size) == (file.modified_ns, file.size)


def note_read(source: Source, file: Found, *, now: dt.datetime) -> None:
    """In the caller's transaction: this file was read as it was found, and is not read again."""
    SourceFile.objects.update_or_create(
        source=source,
        path=file.path,
        defaults={"team_id": source.team_id, "modified_ns": file.modified_ns, "size": file.size, "read_at": now},
    )
