"""`moltbot init`: the file explains every setting, loads as it is and with all of it uncommented, and replaces nothing unasked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moltbot.cli.init import GROUPS, OTHERS, START, settings_file
from moltbot.cli.setting_table import allowed, example, toml_value
from moltbot.cli.settings import Settings, load_settings
from tests.support import failed, moltbot

SETTING = re.compile(r"^#(?=\w+ = )", re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_file_loads_as_it_is_and_sets_little(here: Path) -> None:
    (here / "moltbot.toml").write_text(settings_file())
    settings, sources = load_settings({})
    assert tuple(sources) == START
    assert settings == Settings()


def test_the_file_loads_with_every_line_uncommented_and_misses_no_setting(here: Path) -> None:
    (here / "moltbot.toml").write_text(SETTING.sub("", settings_file()))
    settings, sources = load_settings({})
    assert sources.keys() == Settings.model_fields.keys()
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            assert getattr(settings, name) == field.default, name
        else:
            assert getattr(settings, name) is not None, name


def test_every_setting_stands_behind_its_description_and_range() -> None:
    lines = settings_file().splitlines()
    for name, field in Settings.model_fields.items():
        [at] = [i for i, line in enumerate(lines) if re.match(rf"#?{name} = ", line)]
        assert lines[at - 1].startswith(f"# {field.description}"), name
        if field.metadata and "at least" in allowed(field):
            assert allowed(field) in lines[at - 1]


def test_groups_name_settings_only_and_each_once() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) <= Settings.model_fields.keys()


def test_a_setting_of_no_group_is_written_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moltbot.cli.init.GROUPS", {})
    text = settings_file()
    assert f"# --- {OTHERS} " in text
    assert len(SETTING.findall(text)) == len(Settings.model_fields) - len(START)


@pytest.mark.parametrize("name", [n for n, field in Settings.model_fields.items() if field.default is None])
def test_an_example_of_the_right_kind_can_be_read(name: str, here: Path) -> None:
    field = Settings.model_fields[name]
    both = "tls_cert = 'a'\n" if name == "tls_key" else "tls_key = 'b'\n" if name == "tls_cert" else ""
    (here / "moltbot.toml").write_text(f"{both}{name} = {toml_value(example(field), field)}\n")
    assert getattr(load_settings({})[0], name) is not None


def test_a_file_that_is_here_stays_unless_told_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "moltbot.toml"
    assert "moltbot config check" in moltbot(tmp_path, "init").stdout
    assert file.read_text() == settings_file()
    file.write_text("mine")
    assert "--force" in failed(moltbot(tmp_path, "init"), 1)
    assert file.read_text() == "mine"
    assert moltbot(tmp_path, "init", "--force").returncode == 0
    assert file.read_text() == settings_file()
    assert [path.name for path in tmp_path.iterdir()] == ["moltbot.toml"]


@pytest.mark.parametrize("exists", [True, False])
def test_it_never_writes_through_a_link(tmp_path: Path, exists: bool) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    if exists:
        outside.write_text("kept")
    (home / "moltbot.toml").symlink_to(outside)
    failed(moltbot(home, "init"), 1)
    assert moltbot(home, "init", "--force").returncode == 0
    assert not (home / "moltbot.toml").is_symlink()
    assert outside.exists() == exists
    assert not exists or outside.read_text() == "kept"


def test_a_directory_in_its_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "moltbot.toml").mkdir()
    failed(moltbot(tmp_path, "init"), 1)
    assert "cannot be written here" in failed(moltbot(tmp_path, "init", "--force"), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["moltbot.toml"]
