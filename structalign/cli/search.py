"""Query a trained model: rank the gallery as stored after a task, with the model as it was then.

    structalign search "a blue molga with a pink core sliding" --after 5 --top 8
    structalign search "a blue molga sliding" --compare 3,5

prints a table and writes a contact sheet of the frames, the best word-frame matches framed.
"""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from structalign import paths
from structalign.config.schema import Config
from structalign.data.store import FrameStore
from structalign.report.figures.hits import contact_sheet
from structalign.report.figures.style import save
from structalign.search import GallerySearch, Hit
from structalign.util.command import command_parser, console, errors_in_one_line, parse
from structalign.util.errors import UserError
from structalign.util.log import log


def hits_table(query: str, after: int, hits: list[Hit]) -> Table:
    """Tabulate what was found: a row a video."""
    # Text, because brackets in a query or a caption are not markup
    table = Table(title=Text(f"{query!r}, after task {after}"), title_justify="left")
    for column in ("rank", "score", "clip", "category", "task", "caption", "best frame of each word"):
        table.add_column(column, overflow="fold")
    for hit in hits:
        words = " ".join(f"{word}:{frame}" for word, frame in hit.matches)
        cells = (str(hit.rank), f"{hit.score:.2f}", hit.clip, hit.category, str(hit.task), hit.caption, words)
        table.add_row(*map(Text, cells))
    return table


def parse_tasks(after: int | None, compare: str | None, num_tasks: int) -> list[int]:
    """Read which tasks should answer: `--after 5`, `--compare 3,5`, or the last; check all before any answers.

    Raises
    ------
    UserError
        If one is not a number, or not a task of the run.
    """
    option = f"--compare {compare}" if compare else f"--after {after}"
    try:
        tasks = [int(part) for part in compare.split(",")] if compare else [num_tasks if after is None else after]
    except ValueError:
        raise UserError(f"{option}: expected task numbers such as 1,5") from None
    if not all(1 <= task <= num_tasks for task in tasks):
        raise UserError(f"{option}: tasks go from 1 to {num_tasks}")
    return tasks


def main() -> None:
    """Parse the command line and search."""
    parser = command_parser(__doc__)
    parser.add_argument("query", help="what the video should show")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--after", type=int, default=None, metavar="T", help="task that answers (default: the last)")
    which.add_argument("--compare", default=None, metavar="T,U", help="answer after several tasks, one table each")
    parser.add_argument("--top", type=int, default=8, help="videos to show (default: %(default)s)")
    parser.add_argument("--params", default="params.yaml", help="parameters of the run (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=paths.SEARCHES,
        help="folder of the contact sheets (default: %(default)s)",
    )
    args = parse(parser)
    with errors_in_one_line(args.debug):
        config = Config.load(args.params)
        tasks = parse_tasks(args.after, args.compare, config.K)
        if args.top < 1:
            raise UserError(f"--top {args.top}: must be at least 1")
        args.output.mkdir(parents=True, exist_ok=True)
        store = FrameStore(paths.FRAMES)
        for after in tasks:
            hits = GallerySearch(config, after).search(args.query, args.top)
            console().print(hits_table(args.query, after, hits))
            path = args.output / f"after-{after:02d}.png"
            save(contact_sheet(hits, [store.read(hit.clip) for hit in hits]), path)
            log.info(f"contact sheet: {path}")
