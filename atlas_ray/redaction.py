"""What is written or logged carries no password.

Passwords come in addresses: `postgresql://user:PASSWORD@host/db`, `https://host/?token=SECRET`. The user stays, so that whoever
reads the address elsewhere still knows as whom to log in. The password is then found by the driver's own means: PGPASSWORD,
~/.pgpass, `passfile=`, MLFLOW_TRACKING_PASSWORD. Not covered: a secret that stands in no address, such as one in a file's name.
"""

import logging
import re

# After "://user:" and before the last "@" of the word. Digits up to a slash or the end are a port, not a password.
_IN_USERINFO = re.compile(r"(://[^:/?#\s@'\"]*):(?!\d{1,5}(?:[/?#\s'\"]|$))[^\s'\"]*@")
_SECRET_KEYS = r"(?:\w|-)*(?:passw(?:or)?d|pwd|secret|token|api_?key|access_?key(?:_?id)?|signature|credential)"
_IN_QUERY = re.compile(rf"([?&])({_SECRET_KEYS})=[^&#\s'\"]*(&?)", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """The text with the passwords of its addresses left out; everything else is as it was."""
    text = _IN_USERINFO.sub(r"\1@", text)
    replaced = 1
    while replaced:  # each pass takes every other one of neighbors that share a "&"
        text, replaced = _IN_QUERY.subn(lambda found: found[1] if found[3] else "", text)
    return text


class RedactingFormatter(logging.Formatter):
    """A log line, its exception's text included, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return without_passwords(super().format(record))
