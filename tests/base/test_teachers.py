"""The settings of a served teacher: what is refused before torch is imported, and that no password is quoted."""

import pytest

from poweropd_lite.base.config import load_config
from poweropd_lite.base.config_files import dump_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.teachers import called, files_of, how_kept
from poweropd_lite.cli import main

AT, NAMED = {"teacher": "http://localhost:8000"}, {"teacher_name": "Qwen/Qwen3-32B"}
REFUSED = [
    (AT, "needs teacher_name; type --teacher-name"),
    (
        {**AT, **NAMED, "reward": "full_kl"},
        "full_kl compares whole distributions, .* choose another reward or no baseline",
    ),
    (
        NAMED,
        "teacher_name is of a served teacher, and bundled is none; leave it out, or type --teacher with an address",
    ),
    ({"teacher_tokenizer": "bundled"}, "teacher_tokenizer is of a served teacher"),
    ({**NAMED, "teacher": "http://"}, "an address is a scheme, a host and a port"),
    ({**NAMED, "teacher": "http://host:99999"}, "a host or port that can't be"),
    ({**NAMED, "teacher": "https://host:8000?key=1"}, "nothing more"),
    ({**AT, **NAMED, "teacher_timeout": 0}, "teacher_timeout"),
    ({**AT, **NAMED, "teacher_concurrency": 0}, "teacher_concurrency"),
]


@pytest.mark.parametrize("settings, message", REFUSED)
def test_what_cant_work_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        load_config("bundled", **settings)


@pytest.mark.parametrize("address", ["http://me:secret@host:8000", "https://secret@host", "HTTP://me:secret@host"])
def test_an_address_with_a_password_is_refused_and_not_quoted(address):
    for refused in (
        lambda: load_config("bundled", teacher=address, **NAMED),
        lambda: main(["train", "--teacher", address]),  # the student is not named
        lambda: main(["doctor", "--config", "bundled", "--teacher", address, "--teacher-name", "x"]),
    ):
        with pytest.raises(UserError, match="export POWEROPD_TEACHER_KEY=") as fault:
            refused()
        assert "secret" not in str(fault.value)


def test_what_a_served_teacher_is_called_and_where_its_tokenizer_is(tmp_path):
    config = load_config("bundled", **AT, **NAMED)
    assert config.served and config.pair == "bundled-student <- Qwen/Qwen3-32B"
    assert (called(config, "teacher"), how_kept(config)) == ("Qwen/Qwen3-32B", "served")
    assert (files_of(config, "teacher"), files_of(config, "student")) == ("Qwen/Qwen3-32B", "bundled")
    elsewhere = load_config("bundled", **AT, **NAMED, teacher_tokenizer="Qwen/Qwen3-8B")
    assert files_of(elsewhere, "teacher") == "Qwen/Qwen3-8B"
    (tmp_path / "config.yaml").write_text(dump_yaml(elsewhere))
    assert load_config(tmp_path / "config.yaml") == elsewhere
    loaded = load_config("bundled")
    assert not loaded.served and (files_of(loaded, "teacher"), how_kept(loaded)) == ("bundled", "4-bit")
