"""Settings are valid or are not made."""

import dataclasses

import pytest

from recurrent_memory import BackboneError, ConfigError, MemoryConfig, RecurrentMemoryConfig


def test_the_defaults() -> None:
    assert MemoryConfig() == MemoryConfig(num_memory_tokens=16, segment_length=512, kind="tokens", carry="hidden")
    assert MemoryConfig(num_memory_tokens=0, segment_length=1).num_memory_tokens == 0


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MemoryConfig().segment_length = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_memory_tokens": -1}, "num_memory_tokens=-1 must be at least 0"),
        ({"segment_length": 0}, "segment_length=0 must be at least 1"),
        ({"segment_length": -5}, "segment_length=-5 must be at least 1"),
        ({"segment_length": 2.0}, "segment_length=2.0 must be an int of at least 1, not float"),
        ({"num_memory_tokens": True}, "num_memory_tokens=True must be an int of at least 0, not bool"),
        ({"num_memory_tokens": "4"}, "num_memory_tokens='4' must be an int of at least 0, not str"),
        ({"num_memory_tokens": None}, "num_memory_tokens=None must be an int of at least 0, not NoneType"),
        ({"kind": "elephant"}, "kind='elephant' is not a kind of memory; choose one of associative, per-layer, tokens"),
        ({"kind": "associative", "carry": "sign"}, "carry='sign' is of kind='tokens' only; leave it out of kind="),
        ({"key_width": 0}, "key_width=0 must be at least 1"),
        ({"dpfp_order": 1.5}, "dpfp_order=1.5 must be an int of at least 1, not float"),
        ({"kind": "associative", "cover": 1.5}, "cover=1.5 must be a number from 0 to 1"),
        ({"kind": "associative", "cover": float("nan")}, "cover=nan must be a number from 0 to 1"),
        ({"kind": "associative", "cover": True}, "cover=True must be a number from 0 to 1"),
        ({"cover": 0.1}, "cover=0.1 is of kind='associative' only; leave it out of kind='tokens'"),
        ({"kind": None}, "kind=None is not a kind of memory"),
        ({"recent": -1}, "recent=-1 must be at least 0"),
        ({"num_memory_tokens": 2, "recent": 3}, "recent=3 is more than num_memory_tokens=2, of which it is a part"),
        ({"kind": "per-layer", "recent": 1}, "recent=1 is of kind='tokens' only; leave it out of kind='per-layer'"),
        ({"slot_embeddings": 1}, "slot_embeddings=1 must be True or False"),
        (
            {"kind": "associative", "slot_embeddings": True},
            "slot_embeddings is of kind='tokens' only; leave it out of kind=",
        ),
        ({"carry": "pigeon"}, "carry='pigeon' is not a way to carry; choose one of hidden, sign, norm, gate"),
    ],
)
def test_what_cannot_work_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MemoryConfig(**values)
    assert str(error.value).startswith(message)
    with pytest.raises(ValueError, match=r"."):  # a ConfigError is one
        MemoryConfig(**values)


def test_there_and_back() -> None:
    config = MemoryConfig(num_memory_tokens=3, segment_length=7)
    assert MemoryConfig.from_dict(config.to_dict()) == config
    with pytest.raises(
        ConfigError,
        match=r"unknown memory settings \['size'\]; known are \['carry', 'cover', 'dpfp_order', 'hold', 'key_width', 'kind', "
        r"'num_memory_tokens', 'recent', 'segment_length', 'slot_embeddings'\]",
    ):
        MemoryConfig.from_dict({"size": 3})
    with pytest.raises(ConfigError, match="segment_length=-1 must be at least 1"):
        MemoryConfig.from_dict({"segment_length": -1})


def test_a_model_configuration_without_a_backbone_says_so() -> None:
    config = RecurrentMemoryConfig()
    assert config.memory_config == MemoryConfig()
    with pytest.raises(
        BackboneError,
        match="this configuration names no backbone; make the model with RecurrentMemoryModel.from_backbone",
    ):
        _ = config.backbone_config
