"""The error for the person who made the mistake: one line, shown without a traceback, exit code 2."""


class UserError(Exception):
    pass
