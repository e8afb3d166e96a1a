"""Secrets in texts: found where a configuration must not hold them, taken out of what is told.

Libraries put whole URLs into their messages, and a URL may hold a token; and names of files, which
may hold anything. Must not know what a text is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SECRET_WORDS = ("secret", "password", "token", "credential", "access_key", "api_key")
"""What a name holds whose value is a secret."""
WAYS_TO_CREDENTIALS = ("anon", "cloud", "google_default")
"""What `storage.token` may be: where credentials are found, none itself."""
NO_SECRET_BEFORE_AT = frozenset({"abfs", "abfss", "wasb", "wasbs", "ssh", "git+ssh", "sftp"})
"""Schemes whose user part, alone, is the name of a container or an account."""
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>"
    r"(?:[^\s/@:'\"<>]+:(?!\d{1,5}(?:[/?#\s]|$))(?=\S)[^\n@]{0,256}@)?[^\s'\"<>]+)"
)
"""A URL as it stands in a sentence, where only a password may hold spaces and quotes."""
_USER = re.compile(r"[^/?#]*@|(?!\[)[^@/?#:]*:(?!\d{1,5}(?:[/?#\s]|$)).*?@")
"""What stands before the host: `token@`, `name:password@`, also where a `/` is in the password."""
_SIGNED = re.compile(
    r"(?:^|[-_.])(?:sig|signature|token|accesstoken|secret|password|passwd|credential|credentials"
    r"|auth|authorization|apikey|accesskey|accesskeyid|awsaccesskeyid|googleaccessid|key"
    r"|jwt|sas|code|ticket)$",
    re.IGNORECASE,
)
"""The end of a parameter's name in the query of a URL that opens what it names."""


def holds_secret(text: str) -> bool:
    """Tell whether a text holds a URL with a user part, or with a query that is a key."""
    return any(_user_part(url) or _is_signed(url) for url in _URL.finditer(text))


def without_secrets(text: str) -> str:
    """The same text, its URLs without user part and query where these may be secret.

    What is taken out leaves `***` in its place. Costs nothing where there is no URL.
    """
    return _URL.sub(_clean, text) if "://" in text else text


def tellable(text: str) -> str:
    """A text as it may be printed and stored: without secrets, and with what would steer a terminal
    written out, such as `\\x1b`."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", without_secrets(text))


def is_secret_name(name: str) -> bool:
    """Tell whether a field of this name would hold a secret."""
    return any(word in name.lower() for word in SECRET_WORDS)


def without_secret_value(setting: str) -> str:
    """The same `FIELD=VALUE` or other word of a command line, without what it should not hold."""
    name, equals, value = setting.partition("=")
    is_secret = equals and is_secret_name(name) and value not in WAYS_TO_CREDENTIALS
    return f"{name}=***" if is_secret else without_secrets(setting)


def _clean(url: re.Match[str]) -> str:
    rest = url["rest"]
    if user := _user_part(url):
        rest = f"***@{rest[len(user) :]}"
    place, question, query = _apart(rest)
    is_web = url["scheme"].lower().endswith(("http", "https"))
    if question and (is_web or _is_signed(url)):
        end = query[len(query.rstrip(":,;.)")) :]  # of the sentence that the URL stands in
        rest = f"{place}{question}***{end}" if query else place
    return f"{url['scheme']}://{rest}"


def _apart(rest: str) -> tuple[str, str, str]:
    """A URL before its query or fragment, the sign between them, and that."""
    first = re.search(r"[?#]", rest)
    if first is None:
        return rest, "", ""
    return rest[: first.start()], first[0], rest[first.end() :]


def _user_part(url: re.Match[str]) -> str:
    found = _USER.match(url["rest"])
    if not found or found[0] == "@" or found[0] == "***@":
        return ""
    is_name = url["scheme"].lower() in NO_SECRET_BEFORE_AT and ":" not in found[0]
    return "" if is_name else found[0]


def _is_signed(url: re.Match[str]) -> bool:
    return any(_SIGNED.search(name) for name in _query_names(url["rest"]))


def _query_names(rest: str) -> Iterator[str]:
    _, _, query = _apart(rest)
    for pair in re.split(r"[&;?#]", query):
        yield pair.partition("=")[0]
