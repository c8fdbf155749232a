"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can fix: bad parameters, bad input files, a full disk.

    The message is one line that says what is wrong, where (key, file, video id, line) and what would be
    right. `util.command.errors_in_one_line` prints it without a traceback and exits with status 1.
    """
