"""Checks a checkpoint before anything starts: whether it is one, and whether its files are complete."""

from pathlib import Path

from cluster.config import ClusterConfig, ConfigError
from workers.model.config import LingConfig
from workers.model.files import WeightError

_GGUF = "GGUF files are not read: give the folder of a release, with config.json and safetensors files"


def find_checkpoint(model: str) -> Path:
    """The folder of `model`, which holds a config.json; ConfigError says what is there instead."""
    folder = Path(model).expanduser().resolve()
    if folder.is_file():
        told = _GGUF if folder.suffix == ".gguf" else "give the folder it lies in"
        raise ConfigError(f"model: {folder} is a file; {told}")
    if not folder.is_dir():
        raise ConfigError(
            f"model: no checkpoint folder at {folder}; give the folder that holds config.json, or what can be fetched: "
            "ORGANIZATION/NAME of a hub, or an s3://, gs:// or https:// prefix"
        )
    if (folder / "config.json").exists():
        return folder
    if any(folder.glob("*.gguf")):
        raise ConfigError(f"model: {folder} holds no config.json; {_GGUF}")
    what = "holds no config.json" if any(folder.iterdir()) else "is empty"
    raise ConfigError(f"model: {folder} {what}; give the folder of a release, with config.json and safetensors files")


def check_files(config: ClusterConfig, folder: Path, weights: bool = True) -> None:
    """Check that a checkpoint can be served; ConfigError lists the problems. Only headers of its weights are read.

    config: as given; without a model the embedded checkpoint is used, which needs no check. weights: whether the folder
    has the weights too.
    """
    if config.model is None:
        return
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"model: {folder} holds no tokenizer.json; copy it from the release of these weights")
    # Imported here, like `plan` below, because otherwise every `ling` command would wait for these imports.
    from router.text.tokenizer import Tokenizer  # noqa: PLC0415

    try:
        Tokenizer(str(folder))
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise ConfigError(
            f"model: the tokenizer or chat template in {folder} can't be read: {error}; copy tokenizer.json, "
            "tokenizer_config.json and chat_template.jinja from the release again"
        ) from error
    if config.load == "synthetic" or not weights:
        return
    from workers.model.load_plan import check  # noqa: PLC0415

    try:
        for tp in {pool.tp for pool in config.pools.values()}:
            check(folder, LingConfig.load(folder, config.model_overrides), tp)
    except WeightError as error:
        raise ConfigError(f"model: {error}") from error
