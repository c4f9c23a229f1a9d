"""Tests which build of torch `make install` chooses, by the machine's hardware and the reachable indexes."""

import socket
from collections.abc import Iterator

import pytest

from tests.cluster.serving import free_port
from tests.deploy.scripts import load

SCRIPT = load("install")


@pytest.fixture
def silent() -> Iterator[str]:
    """An index that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_or_unreachable_index_counts_as_no_answer(silent: str) -> None:
    assert not SCRIPT.answers(silent, patience_s=0.2)
    assert not SCRIPT.answers(f"http://127.0.0.1:{free_port()}")
    assert not SCRIPT.answers("http://no-such-host.invalid", patience_s=0.2)


@pytest.mark.parametrize(
    ("platform", "driver", "reached", "index", "why"),
    [
        ("linux", False, True, "https://cpu", "no NVIDIA driver, and https://cpu answers"),
        ("linux", False, False, None, "no NVIDIA driver, but https://cpu did not answer within 3 s"),
        ("linux", True, True, None, "there is an NVIDIA driver"),
        ("darwin", False, True, None, "outside Linux PyPI has the CPU build"),
    ],
)
def test_the_cpu_build_is_for_linux_without_a_driver(
    platform: str, driver: bool, reached: bool, index: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SCRIPT, "answers", lambda _index: reached)
    found, said = SCRIPT.torch_index(platform, driver, "https://cpu")
    assert found == index
    assert why in said


@pytest.mark.parametrize("works", [True, False])
def test_torch_is_installed_first_and_its_build_is_printed(
    works: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def pip(*arguments: str) -> bool:
        asked.append(arguments)
        return works or "--index-url" not in arguments

    monkeypatch.setattr(SCRIPT, "pip", pip)
    monkeypatch.setattr(SCRIPT, "torch_index", lambda _platform, _driver: ("https://cpu", "because"))
    monkeypatch.setattr("sys.argv", ["install"])
    assert SCRIPT.main() == 0
    assert asked == [("--index-url", "https://cpu", "torch==2.13.0"), ("--editable", f"{SCRIPT.ROOT}[dev]")]
    assert ("because" if works else "could not be installed from it") in capsys.readouterr().out


@pytest.mark.parametrize(("index", "build"), [("https://cpu", "cpu"), (None, "cuda")])
def test_a_node_gets_the_versions_of_the_images(index: str | None, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(SCRIPT, "pip", lambda *arguments: asked.append(arguments) or True)
    monkeypatch.setattr(SCRIPT, "torch_index", lambda _platform, _driver: (index, ""))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sys.argv", ["install", "--runtime"])
    assert SCRIPT.main() == 0
    constraints = [f"--constraint={SCRIPT.ROOT}/constraints{name}.txt" for name in ("", f"-{build}")]
    assert asked[-1] == ("--editable", str(SCRIPT.ROOT), *constraints)


def test_a_failed_installation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SCRIPT, "pip", lambda *_: False)
    monkeypatch.setattr(SCRIPT, "torch_index", lambda _platform, _driver: (None, ""))
    assert SCRIPT.main() == 1
