"""The `ling` command."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from cluster.chat import Chat
from cluster.config import ClusterConfig, ConfigError
from cluster.convert.command import convert_command
from cluster.convert.verify import verify_command
from cluster.dashboards.command import dashboards
from cluster.drain import drain_command
from cluster.fetch.command import fetch_command
from cluster.launch import serve_here
from cluster.parse import parse
from cluster.plan import plan_command
from cluster.remote import RemoteError, fetch_status
from cluster.snapshot import snapshot
from cluster.status import render
from cluster.terminal import console_for_tables

DEFAULT_PORT = 8000
_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
_HELP = """Serve Ling-2.6-flash checkpoints from split prefill and decode pools, and talk to them.

Start with [bold]ling serve[/]: without --model it serves ling-nano, a small trained checkpoint.
With [bold]--model inclusionAI/Ling-2.6-flash-FP8[/] it fetches that first, as [bold]ling fetch[/] does.
Then, in another terminal, [bold]ling chat[/] and [bold]ling status[/].
[bold]ling plan[/] says what a checkpoint needs of which cards, before there is a cluster.
"""

app = typer.Typer(
    help=_HELP, rich_markup_mode="rich", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
Url = Annotated[str, typer.Option(help="Where the cluster listens.", envvar="LING_URL")]


def _pool_option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Pools", show_default=False)


def _model_option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Model", show_default=False)


def _capacity_option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Capacity of a worker", show_default=False)


def _http_option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="HTTP", show_default=False)


@app.command()
def serve(
    model: Annotated[
        str | None,
        _model_option(
            "Checkpoint folder; ORGANIZATION/NAME[@REVISION] of a hub; or an s3://, gs:// or https:// prefix. "
            "Default: the embedded ling-nano."
        ),
    ] = None,
    model_cache: Annotated[str | None, _model_option("Folder to fetch into. Default: the user's cache.")] = None,
    served_name: Annotated[str | None, _model_option("What clients call it. Default: the folder's name.")] = None,
    dtype: Annotated[
        str | None, _model_option("auto (on a GPU the checkpoint's, else float32), float32, bfloat16.")
    ] = None,
    verify: Annotated[
        bool | None, _model_option("Read every byte before serving, against checksums where there are any.")
    ] = None,
    device: Annotated[str | None, _model_option("auto (GPUs if there are any), cpu, cuda.")] = None,
    prefill: Annotated[int | None, _pool_option("Prefill workers; 0: decode workers prefill. Default 1.")] = None,
    decode: Annotated[int | None, _pool_option("Decode workers. Default 1.")] = None,
    tp: Annotated[int | None, _pool_option("Tensor-parallel ranks of each worker. Default 2, or the YAML's.")] = None,
    slots: Annotated[int | None, _capacity_option("Sequences at once. Default 64.")] = None,
    pages: Annotated[int | None, _capacity_option("Latent pages. Default: by memory.")] = None,
    page_size: Annotated[int | None, _capacity_option("Tokens a page. Default 64.")] = None,
    max_model_len: Annotated[int | None, _capacity_option("Longest sequence. Default: the checkpoint's.")] = None,
    max_step_tokens: Annotated[
        int | None, _capacity_option("Token budget of a step. Default 1024, 8192 for prefill on GPUs.")
    ] = None,
    cache: Annotated[
        str | None, _capacity_option("on, off: reuse prefixes that prompts have in common. Default on.")
    ] = None,
    speculate: Annotated[
        str | None, _capacity_option("Tokens drafted per step: auto (as many as pay, up to 3), off, or a number.")
    ] = None,
    host: Annotated[str | None, _http_option("Address to listen on. Default 127.0.0.1.")] = None,
    port: Annotated[int | None, _http_option(f"Port to listen on. Default {DEFAULT_PORT}.")] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            help="Loopback port of the metrics for Prometheus. Default: any free one.",
            rich_help_panel="HTTP",
            show_default=False,
            min=1,
            max=65535,
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with any settings; flags override it.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. router.max_queue=64. Repeatable."),
    ] = None,
) -> None:
    """Serve a checkpoint on this machine, until Ctrl-C."""
    flags = {
        "model": model,
        "model_cache": model_cache,
        "served_name": served_name,
        "dtype": dtype,
        "verify": verify,
        "device": device,
        "prefill.replicas": prefill,
        "decode.replicas": decode,
        "prefill.tp": tp,
        "decode.tp": tp,
        "slots": slots,
        "pages": pages,
        "page_size": page_size,
        "max_model_len": max_model_len,
        "max_step_tokens": max_step_tokens,
        "cache.mode": cache,
        "speculate": speculate,
        "host": host,
        "port": port,
    }
    try:
        settled = settle(config, {k: v for k, v in flags.items() if v is not None}, settings or [])
        serve_here(settled, metrics_port)
    except (ConfigError, RuntimeError) as error:
        Console(stderr=True).print(f"[red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


def settle(file: Path | None, flags: dict[str, Any], settings: list[str]) -> ClusterConfig:
    """Merge `ling serve`'s own defaults, the YAML file, `--set` and the flags; later ones override earlier ones."""
    defaults: dict[str, Any] = {"port": DEFAULT_PORT, **_state_dir()}
    if file is None:
        defaults |= {"prefill.tp": 2, "decode.tp": 2}
    assigned: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"--set {setting}: must read KEY=VALUE")
        assigned[key] = value
    return parse(defaults, _read_yaml(file) if file else {}, assigned, flags)


def _state_dir() -> dict[str, str]:
    """Set `router.data_dir` to the user's state folder if that is writable; else set nothing, and no record is kept."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ling-cluster"
    nearest = next(path for path in folder.absolute().parents if path.exists())
    return {"router.data_dir": str(folder)} if os.access(nearest, os.W_OK) else {}


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping. By itself YAML's loader would drop all but the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"found {key.value!r} twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"--config: can't read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {file} is not readable as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {file} must hold settings as `name: value`, not a {type(content).__name__}")
    return content


@app.command()
def chat(
    url: Url = _URL,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.", show_default=False)] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Where the cluster asks for one.", envvar="LING_API_KEY", show_default=False)
    ] = None,
) -> None:
    """Talk to a running cluster in the terminal."""
    settings: dict[str, Any] = {"temperature": temperature}
    if max_tokens is not None:
        settings["max_tokens"] = max_tokens
    Chat(url, Console(), system, settings, api_key).run()


@app.command()
def status(url: Url = _URL) -> None:
    """Show a running cluster's pools, workers and ranks."""
    try:
        shown = render(fetch_status(url))
    except (RemoteError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, RemoteError) else f"{url} is of another version: {error!r}"
        Console(stderr=True).print(f"[red]error[/] {escape(reason)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    console_for_tables().print(shown)


app.command("drain")(drain_command)
app.command("fetch")(fetch_command)
app.command("plan")(plan_command)
app.command("convert")(convert_command)
app.command("verify")(verify_command)
app.add_typer(snapshot, name="snapshot")
app.add_typer(dashboards, name="dashboards")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
