"""Where settings come from: flag > environment (`MOLTBOT_...`) > `moltbot.toml` > default.

pydantic-settings reads and merges; here it is told the order, which names are ours, and the sentence for a wrong one.
What the settings mean is in `sandbox/config.py` and `gateway/config.py`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from moltbot.core.errors import SettingsError
from moltbot.gateway.config import EdgeConfig
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.setting_kinds import Count, normalise_names, settings_error, unknown_setting

DEFAULT_PORT = 18789
FILE = "moltbot.toml"
PREFIX = "MOLTBOT_"
_OTHER_VARIABLES = frozenset(
    {"MOLTBOT_TOKEN", "MOLTBOT_URL", "MOLTBOT_CA", "MOLTBOT_WORKER_ID", "MOLTBOT_INCARNATION"}
)
_FLAGS = {
    "worker_count": "-w/--workers",
    "request_timeout": "-t/--timeout",
    "sandbox_base_dir": "-s/--sandbox-dir",
}
"""The flags that are not called as their setting."""


class Settings(EdgeConfig, PoolConfig, BaseSettings):
    """All settings of `moltbot gateway`; read them with `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, enable_decoding=False)

    port: Count = Field(DEFAULT_PORT, ge=0, le=65535, description="Port to listen on; 0 takes a free one")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, read_file())

    def pool_config(self) -> PoolConfig:
        """The part that the router needs; keeps which settings were set."""
        names = self.model_fields_set & PoolConfig.model_fields.keys()
        return PoolConfig.model_validate({name: getattr(self, name) for name in names})

    def edge_config(self) -> EdgeConfig:
        """The part that the port needs."""
        return EdgeConfig.model_validate({name: getattr(self, name) for name in EdgeConfig.model_fields})


def load_settings(flags: Mapping[str, Any]) -> tuple[Settings, dict[str, str]]:
    """Return the settings in force and where each that is not a default came from.

    flags: by setting name, None where a flag was not given. Raises SettingsError.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    sources = _sources(given)
    try:
        return Settings(**given), sources
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        raise settings_error(error, Settings.model_fields, sources.get(name, "the settings")) from None


def _sources(flags: Mapping[str, Any]) -> dict[str, str]:
    environment = EnvSettingsSource(Settings)()
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in _OTHER_VARIABLES]
    for name in unknown:
        setting = name.removeprefix(PREFIX).lower()
        if setting not in Settings.model_fields:
            raise unknown_setting(setting, Settings.model_fields, f"environment variable {name}")
    return {
        **{name: str(FILE) for name in read_file()},
        **{name: f"environment variable {PREFIX}{name.upper()}" for name in environment},
        **{name: _FLAGS.get(name, f"--{name.replace('_', '-')}") for name in flags},
    }


def read_file() -> dict[str, Any]:
    """The settings in `moltbot.toml` of the current directory, if there is one; raises SettingsError if it is not TOML."""
    try:
        with open(FILE, "rb") as file:
            return normalise_names(tomllib.load(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{FILE} cannot be read: {error}: mend it or move it away") from None
