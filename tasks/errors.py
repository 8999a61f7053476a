"""The error for a mistake that the user can mend: one line, shown without a traceback, exit code 2."""


class UserError(Exception):
    pass
