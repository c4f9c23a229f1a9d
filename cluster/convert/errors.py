"""The error of `ling convert`."""


class ConvertError(ValueError):
    """A checkpoint can't be converted; the message says why and what to do."""
