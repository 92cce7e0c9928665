"""Where sources may read: files below the folder of files, and what the operator has bound to their team."""

from pathlib import Path

from django.conf import settings
from django.db import connection
from django.db.models import QuerySet

from telemetry.models import Source, SourcePlace
from telemetry.sources.refusals import SourceFailed


def may_read(source: Source, kind: SourcePlace.Kind, place: str) -> bool:
    """Whether a place is bound to the source's team or, being nobody's, free: what lies in the root of DECISIONING_FILES is
    everybody's, and where there is one team, the demo's aside, nothing needs binding."""
    if _places(source, kind).filter(name=place).exists():
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT metadata.place_is_free(%s, %s, %s)", [source.team_id, kind, place])
        (free,) = cursor.fetchone() or (False,)
        return bool(free)


def _places(source: Source, kind: SourcePlace.Kind) -> QuerySet[SourcePlace]:
    return SourcePlace.objects.filter(team=source.team_id, kind=kind)


def refused_path(source: Source, found: Path) -> str:
    """Why a source's team may not read a path, links followed; empty where it may."""
    if any(found.is_relative_to(folder) for folder in folders(source)):
        return ""
    place = str(found.relative_to(root()))
    if may_read(source, SourcePlace.Kind.FOLDER, place):
        return ""
    return not_bound(source, f"The file {source.path[:80]!r}", "--folder", "...")


def folders(source: Source) -> list[Path]:
    """Where the files of a source's team lie. Links are followed, so that none leads into another team's folder."""
    bound = _places(source, SourcePlace.Kind.FOLDER).values_list("name", flat=True)
    return [(root() / name).resolve() for name in (source.team.key, *bound)]


def not_bound(source: Source, what: str, option: str, name: str) -> str:
    key = source.team.key
    return (
        f"{what} is not bound to team {key}. The operator binds it: in the admin under Source places, or by "
        f"manage.py bind_source --team {key} {option} {name}."
        + (f" Files in the folder {key}/ and in the root need no binding." if option == "--folder" else "")
    )


def root() -> Path:
    """The folder of files, DECISIONING_FILES."""
    return Path(settings.SOURCES_DIR).resolve()


ENDINGS = (".csv", ".csv.gz", ".parquet")


def file_of(path: str) -> Path:
    """A source's file, which must lie below the folder of files. Raises SourceFailed."""
    found = below(path)
    if not found.name.lower().endswith(ENDINGS):
        raise SourceFailed(f"{path[:80]!r} must end with .csv, .csv.gz or .parquet.")
    return found


def database_file(path: str) -> Path:
    """The file of a database that is read here, which must lie below the folder of files and be there. Raises SourceFailed."""
    found = database_path(path)
    if not found.is_file():  # an engine might make it
        raise SourceFailed("There is no such database file in the folder of files, DECISIONING_FILES.")
    return found


def database_path(path: str) -> Path:
    if not path or path.startswith(":") or path.lower().startswith(("file:", "md:", "motherduck:")):
        raise SourceFailed("A database of this kind must be a file below the folder of files, DECISIONING_FILES.")
    return below(path)


def below(path: str) -> Path:
    """Where a path leads, links followed. Raises SourceFailed."""
    found = None if "\x00" in path else (root() / path).resolve()
    if not path or found is None or not found.is_relative_to(root()):
        raise SourceFailed(f"{path[:80]!r} is not below the folder of files, DECISIONING_FILES.")
    return found
