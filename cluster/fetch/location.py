"""Reads a checkpoint's location from the setting `model`. Pure."""

import re
from dataclasses import dataclass
from pathlib import Path

from cluster.config import ConfigError

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HUB = "hf://"
_HUB_SITE = "https://huggingface.co/"
STORES = ("s3://", "gs://", "https://", "http://")


@dataclass(frozen=True, slots=True)
class Hub:
    """A repository of a hub. revision: branch, tag or commit; None is the hub's default branch."""

    repository: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """The repository without its organization."""
        return self.repository.rpartition("/")[2]

    @property
    def slug(self) -> str:
        """The file name under which this is cached."""
        return self.repository.replace("/", "--")

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Store:
    """A prefix of an object store, or a folder of a web server, without a slash at its end."""

    url: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.url.rpartition("/")[2]

    @property
    def slug(self) -> str:
        """The file name under which this is cached."""
        return re.sub(r"[^\w.-]+", "--", self.url)

    def __str__(self) -> str:
        return self.url


def remote(model: str) -> Hub | Store | None:
    """The remote location of `model`; None if it is a folder of this host; ConfigError if it is no location.

    A name like `org/name` is a hub's repository unless there is such a folder.
    """
    if model.startswith(_HUB_SITE):
        raise ConfigError(f"model: {model} is a page; give the repository's name, {model.removeprefix(_HUB_SITE)}")
    if model.startswith(STORES):
        url = model.rstrip("/")
        if not re.fullmatch(r"\w+://[^/?#]+(/[^?#]+)?", url):
            raise ConfigError(f"model: {model} can't be read; write SCHEME://BUCKET/PREFIX, without ? and #")
        return Store(url)
    text = model.removeprefix(_HUB)
    found = _REPOSITORY.fullmatch(text)
    if model.startswith(_HUB) and found is None:
        raise ConfigError(
            f"model: {model} can't be read; write hf://ORGANIZATION/NAME or hf://ORGANIZATION/NAME@REVISION"
        )
    if "://" in text:
        raise ConfigError(f"model: {model} can't be fetched; known are hf://, {', '.join(STORES)} and folders")
    if found is None or (text == model and (text.startswith(".") or Path(model).exists())):
        return None
    return Hub(found["repository"], found["revision"])
