"""The error for data that cannot be read: one line that names the file or field and says what would be right."""


class DataError(Exception):
    pass
