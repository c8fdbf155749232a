"""Errors whose message is meant for the person at the keyboard."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can fix: bad parameters, bad input files, a full disk.

    The message is one line that says what is wrong, where (key, file, video id, line) and what would be
    right. `util.command.errors_in_one_line` prints it without a traceback and exits with status 1.
    """


def first_ten(names: Sequence[str], listed: str = "") -> str:
    """Name the first ten and count the others; `listed` says where those are, such as ", all in the log"."""
    more = f" and {len(names) - 10} more{listed}" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"
