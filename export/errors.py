"""ExportError: what every exporter raises when it cannot write a file that would run."""


class ExportError(RuntimeError):
    """A checkpoint that a format cannot carry, or a file that cannot be written."""
