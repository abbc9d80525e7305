"""What a client is told: settings of the table, by their names without ``embed_``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config_embed import EMBED_SETTINGS, EmbedOptions, EmbedSettings
from ..errors import ConfigError, ServiceUnavailable

_NEEDED = ("httpx2", "stamina", "numpy")


def options(urls: str | Sequence[str] | None = None, more: Mapping[str, Any] | None = None) -> EmbedSettings:
    """Return the settings of a client.

    Without addresses they are the configuration's, variables and files included; with addresses only what is given here,
    so that no key goes to a server it was not meant for. Raises ConfigError.
    """
    changes = {f"embed_{name}": _read(name, value) for name, value in (more or {}).items()}
    if urls is None:
        from ..config import load

        config = load().config
        known = {name: getattr(config, name) for name in EMBED_SETTINGS}
    else:
        known = {"embed_urls": _read("urls", [urls] if isinstance(urls, str) else list(urls))}
    found = EmbedOptions(**known | changes)
    check_urls(found)
    return found


def check_urls(settings: EmbedSettings) -> None:
    """Raise ConfigError where there is no server to ask."""
    if not settings.embed_urls:
        raise ConfigError(
            "embed_urls", "", "the address of an embedding server, as http://host:port (variable INFERMESH_URL)"
        )


def check_installed() -> None:
    """Raise ServiceUnavailable where a package is missing, with the command that installs it."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ServiceUnavailable(f"embedding needs {', '.join(missing)}: pip install 'dspy-supervisor[embed]'")


def shared_socket(runtime_dir: Path, queue_id: str, instance: str) -> Path:
    """Return where the process listens that batches for all workers of a supervisor."""
    return runtime_dir / f"{queue_id}.{instance}.embed"


def _read(name: str, value: object) -> object:
    row = EMBED_SETTINGS.get(f"embed_{name}")
    if row is None:
        names = ", ".join(known.removeprefix("embed_") for known in EMBED_SETTINGS)
        raise ConfigError(name, value, f"one of {names}")
    if value is None and row.default is None:
        return None
    try:
        return row.kind.read(value)
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(name, "(secret)" if row.secret else value, row.kind.expected) from None
