"""The settings of embedding servers, and the variables that older tools gave them by."""

import pytest
from dspy_supervisor.config import load
from dspy_supervisor.config_embed import EMBED_SETTINGS
from dspy_supervisor.errors import ConfigError


@pytest.fixture
def get(tmp_path):
    """Load with an environment of just a home folder and what the test adds."""
    return lambda **environ: load({}, {"HOME": str(tmp_path), **environ}, tmp_path).config


def test_the_defaults_are_those_that_the_first_client_had(get):
    config = get()
    assert (config.embed_model, config.embed_batch_size, config.embed_wait_ms) == ("BAAI/bge-small-en-v1.5", 512, 100)
    assert (config.embed_max_requests, config.embed_connections, config.embed_timeout_s) == (100, 50, 30)
    assert (config.embed_urls, config.embed_api_key, config.embed_dialect) == ((), None, "auto")


@pytest.mark.parametrize(
    ("variable", "written", "name", "value"),
    [
        ("INFERMESH_BASE_URL", "http://a:1,https://b", "urls", ("http://a:1", "https://b")),
        ("INFERMESH_URL", "http://a:1", "urls", ("http://a:1",)),
        ("INFERMESH_API_KEY", " key\n", "api_key", "key"),
        ("INFERMESH_MODEL", "m", "model", "m"),
        ("MAX_CONCURRENT_REQUESTS", "7", "max_requests", 7),
        ("INFERMESH_MAX_CONCURRENCY", "7", "max_requests", 7),
        ("BATCH_SIZE", "64", "batch_size", 64),
        ("INFERMESH_BATCH_SIZE", "64", "batch_size", 64),
        ("INFERMESH_REQUEST_BATCH_SIZE", "64", "batch_size", 64),
        ("MAX_WAIT_TIME_MS", "50", "wait_ms", 50),
        ("REQUEST_TIMEOUT_SECS", "5", "timeout_s", 5),
        ("INFERMESH_TIMEOUT_SEC", "5", "timeout_s", 5),
        ("CONNECTION_POOL_SIZE", "9", "connections", 9),
        ("INFERMESH_RETRIES", "1", "retries", 1),
        ("INFERMESH_BACKOFF_SEC", "0.5", "retry_base_s", 0.5),
        ("INFERMESH_ROUTING_STRATEGY", "fast", "routing_strategy", "fast"),
        ("INFERMESH_ROUTING", "fast", "routing_strategy", "fast"),
        ("INFERMESH_PRIORITY", "high", "priority", "high"),
        ("INFERMESH_TENANT", "us", "tenant", "us"),
        ("INFERMESH_CACHE_TTL", "60", "cache_ttl_s", 60),
        ("INFERMESH_CACHE_KEY", "{text}", "cache_key", "{text}"),
        ("INFERMESH_OPTIONS", '{"a": [1]}', "options", {"a": [1]}),
        ("INFERMESH_METADATA", '{"a": 1}', "metadata", {"a": 1}),
        ("INFERMESH_CACHE_OPTIONS", '{"a": 1}', "cache_options", {"a": 1}),
        ("INFERMESH_HINTS", '{"a": 1}', "hints", {"a": 1}),
        ("DSPY_EMBED_DIALECT", "TEI", "dialect", "tei"),
    ],
)
def test_each_variable_of_older_tools_is_heeded(get, variable, written, name, value):
    assert getattr(get(**{variable: written}), f"embed_{name}") == value


def test_our_own_variable_wins_and_of_the_older_ones_the_more_particular(get):
    assert get(DSPY_EMBED_BATCH_SIZE="1", INFERMESH_BATCH_SIZE="2", BATCH_SIZE="3").embed_batch_size == 1
    assert get(INFERMESH_BATCH_SIZE="2", BATCH_SIZE="3").embed_batch_size == 2
    assert get(INFERMESH_BASE_URL="http://a", INFERMESH_URL="http://b").embed_urls == ("http://a",)


def test_a_variable_that_other_programs_use_too_may_mean_something_else(get):
    assert get(BATCH_SIZE="auto", REQUEST_TIMEOUT_SECS="never").embed_batch_size == 512
    for variable, expected in [
        ("INFERMESH_BASE_URL", "http://host:port"),
        ("INFERMESH_BATCH_SIZE", "a whole number"),
        ("INFERMESH_OPTIONS", "a JSON object"),
        ("DSPY_EMBED_WAIT_MS", "milliseconds"),
    ]:
        with pytest.raises(ConfigError, match=expected):
            get(**{variable: "[nonsense]"})


@pytest.mark.parametrize(
    "address", ["host:80", "http://", "http://:80", "http://h:99999", "http://h:0", "ftp://h", "http://[h"]
)
def test_an_address_that_cannot_be_one_is_refused(get, address):
    with pytest.raises(ConfigError, match="addresses as http://host:port"):
        get(INFERMESH_URL=address)


def test_the_key_may_lie_in_a_file_and_is_shown_nowhere(get, tmp_path):
    (tmp_path / "key").write_text("s3cret\n")
    config = get(INFERMESH_API_KEY_FILE=str(tmp_path / "key"))
    assert config.embed_api_key == "s3cret"
    assert "s3cret" not in repr(config)
    with pytest.raises(ConfigError) as refused:
        get(INFERMESH_API_KEY="two words")
    assert "two words" not in str(refused.value)


def test_every_setting_of_servers_is_applied_by_a_reload():
    assert all(row.live for row in EMBED_SETTINGS.values())
