"""How far a command that goes over many experiments is, on the terminal of whoever waits for it; elsewhere nothing."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def shown[Item](items: Sequence[Item], *, of: str) -> Iterator[Item]:
    """The items one by one, with a bar on standard error. of: what they are, as in "experiments"."""
    console = Console(stderr=True)
    columns = (TextColumn(of), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items)
