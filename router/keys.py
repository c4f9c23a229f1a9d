"""API keys: a file of tenants and hashes of their keys, read again when it changes.

A line is `TENANT sha256:HEX`; a tenant may have several, so that a new key can be in use before the old one goes.
Empty lines and lines that begin with # say nothing. `python -m router.keys TENANT` makes a key and its line.
"""

import argparse
import hashlib
import logging
import os
import re
import secrets
import sys

_log = logging.getLogger(__name__)
_LINE = re.compile(r"(\S+)\s+sha256:([0-9a-f]{64})")
_Stamp = tuple[int, int, int]


def hashed(key: str) -> str:
    """What is kept of a key. A plain hash will do: a key of `make_key` is too random to be guessed."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def make_key() -> str:
    """A new key of 256 random bits."""
    return f"sk-ling-{secrets.token_urlsafe(32)}"


class Keys:
    """Who a key belongs to."""

    def __init__(self, path: str) -> None:
        """OSError if the file can't be read, ValueError naming the line that is no entry."""
        self._path = path
        self._stamp = self._look()
        self._tenants = self._load()

    def tenant(self, key: str) -> str | None:
        """The key's tenant; None if there is none."""
        self._refresh()
        return self._tenants.get(hashed(key))

    def _refresh(self) -> None:
        # Looked at for each request: a withdrawn key must not live on. What can't be read leaves all as it was.
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._tenants = self._load()
                _log.info("read %d API keys from %s", len(self._tenants), self._path)
        except (OSError, ValueError) as error:
            _log.error("API keys stay as they were: %s", error)

    def _look(self) -> _Stamp:
        now = os.stat(self._path)
        return now.st_mtime_ns, now.st_size, now.st_ino

    def _load(self) -> dict[str, str]:
        found: dict[str, str] = {}
        with open(self._path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith("#"):
                    continue
                entry = _LINE.fullmatch(line.strip())
                if entry is None:
                    raise ValueError(f"{self._path}:{number} is no 'TENANT sha256:HEX'")
                found[entry[2]] = entry[1]
        return found


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m router.keys", description="Make an API key; append the output.")
    parser.add_argument("tenant", type=_word)
    tenant = parser.parse_args().tenant
    key = make_key()
    print(f"the key, shown only now: {key}", file=sys.stderr)
    print(f"{tenant} sha256:{hashed(key)}")


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s#]\S*", text):
        raise argparse.ArgumentTypeError("a tenant's name has no spaces and does not begin with #")
    return text


if __name__ == "__main__":
    _main()
