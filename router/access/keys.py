"""API keys and their limits: a file of tenants and hashes of their keys, read again when it changes.

    TENANT sha256:HEX                                      a key; a tenant may have several, so that a new one can be
                                                           in use before the old one goes
    TENANT sha256:HEX requests=60                          a key with limits of its own, apart from its tenant's
    TENANT limits requests=600 tokens=200000 concurrent=8 limits of all the tenant's other keys together
    * limits tokens=50000 limits of each tenant without such a line

requests and tokens are limits per minute, concurrent is the number of requests that may run at once; a limit that is
not given does not apply. Empty lines and lines that begin with # are ignored. `python -m router.access.keys TENANT`
makes a key and its line.
"""

import argparse
import hashlib
import logging
import os
import re
import secrets
import sys
import time
from dataclasses import dataclass

from router.access.limits import Account, KeyLimits

_log = logging.getLogger(__name__)
_KINDS = ("requests", "tokens", "concurrent")
_LINE = re.compile(r"(\S+)\s+(?:sha256:([0-9a-f]{64})|limits)((?:\s+\w+=[0-9]{1,15})*)")
_ANYBODY = "*"
_ABOUT = "Make an API key. The key is shown once, on standard error; the output is the line for the keys' file."
_Stamp = tuple[int, int, int]


def hashed(key: str) -> str:
    """The stored form of a key. A plain hash is safe: keys of `make_key` are too random to be guessed."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def make_key() -> str:
    """A new key of 256 random bits."""
    return f"sk-ling-{secrets.token_urlsafe(32)}"


@dataclass(frozen=True, slots=True)
class Holder:
    """The owner of a key. account: its limits and use, shared by all keys under the same limits; None: no limits."""

    tenant: str
    account: Account | None


class Keys:
    """Maps keys to their owners. replicas: how many routers read the file; each grants its share of the limits."""

    def __init__(self, path: str, replicas: int = 1) -> None:
        """OSError if the file can't be read, ValueError naming the line that is no entry."""
        self._path = path
        self._replicas = replicas
        self._accounts: dict[str, Account] = {}
        self._stamp = self._look()
        self._holders = self._load()

    def holder(self, key: str) -> Holder | None:
        """The owner of a key; None if the key is unknown."""
        self._refresh()
        return self._holders.get(hashed(key))

    def _refresh(self) -> None:
        # Checked for each request, so that revocation is immediate. If the file can't be read, the old keys stay valid.
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._holders = self._load()
                _log.info("read %d API keys from %s", len(self._holders), self._path)
        except (OSError, ValueError) as error:
            _log.error("API keys stay as they were: %s", error)

    def _look(self) -> _Stamp:
        now = os.stat(self._path)
        return now.st_mtime_ns, now.st_size, now.st_ino

    def _load(self) -> dict[str, Holder]:
        keys: dict[str, tuple[str, KeyLimits | None]] = {}
        tenants: dict[str, KeyLimits] = {}
        with open(self._path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith("#"):
                    continue
                entry = _LINE.fullmatch(line.strip())
                if entry is None or (entry[1] == _ANYBODY and entry[2]):
                    raise ValueError(f"{self._path}:{number} must be 'TENANT sha256:HEX' or 'TENANT limits KIND=N'")
                try:
                    limits = _limits(entry[3].split())
                    if entry[2]:
                        keys[entry[2]] = entry[1], limits
                    elif limits is None or entry[1] in tenants:
                        raise ValueError("gives no limits" if limits is None else "gives limits a second time")
                    else:
                        tenants[entry[1]] = limits
                except ValueError as error:
                    raise ValueError(f"{self._path}:{number} {error}") from None
        return self._hold(keys, tenants)

    def _hold(self, keys: dict[str, tuple[str, KeyLimits | None]], tenants: dict[str, KeyLimits]) -> dict[str, Holder]:
        """Each key's owner. A reload keeps accounts whose limits did not change, so that it refills none."""
        kept: dict[str, Account] = {}

        def account(name: str, limits: KeyLimits | None) -> Account | None:
            if limits is None:
                return None
            if name not in kept:
                now, share = time.monotonic(), limits.share(self._replicas)
                kept[name] = self._accounts.get(name) or Account(share, now)
                if kept[name].limits != share:
                    kept[name].change(share, now)
            return kept[name]

        holders = {}
        for key, (tenant, own) in keys.items():
            shared = tenants.get(tenant, tenants.get(_ANYBODY))
            holders[key] = Holder(tenant, account(key, own) if own else account(f"tenant {tenant}", shared))
        self._accounts = kept
        return holders


def _limits(words: list[str]) -> KeyLimits | None:
    """The limits that the words state; None if there are none. ValueError names the word that is wrong."""
    given: dict[str, int] = {}
    for word in words:
        kind, _, number = word.partition("=")
        if kind not in _KINDS or kind in given or int(number) < 1:
            raise ValueError(f"has {word!r}: each of {', '.join(_KINDS)} once, from 1 on")
        given[kind] = int(number)
    return KeyLimits(**given) if given else None


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m router.access.keys", description=_ABOUT)
    parser.add_argument("tenant", type=_word, help="whose key it is")
    for kind, what in zip(_KINDS, ("requests a minute", "tokens a minute", "requests under way at once"), strict=True):
        parser.add_argument(f"--{kind}", type=_count, metavar="N", help=f"at most N {what}, for this key alone")
    given = vars(parser.parse_args())
    key = make_key()
    print(f"the key, shown only now: {key}", file=sys.stderr)
    limits = [f"{kind}={given[kind]}" for kind in _KINDS if given[kind] is not None]
    print(" ".join((given["tenant"], f"sha256:{hashed(key)}", *limits)))


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s#]\S*", text) or text == _ANYBODY:
        raise argparse.ArgumentTypeError("a tenant's name has no spaces, does not begin with # and is not *")
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,14}", text):
        raise argparse.ArgumentTypeError("a limit is a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    _main()
