"""Why a file or a text cannot be read, by its reason."""

from __future__ import annotations

import math
import os

import pytest

from hardware.errors import ConfigError
from hardware.reading import (
    JSON_BYTES,
    Kind,
    Unreadable,
    bytes_of,
    cut,
    json_of,
    opened,
    parse_json,
    reading,
    shown,
    text_of,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "it has the key 'a' twice"),
        ('{"a": {"b": [1, NaN]}}', r"a\.b\.1 is nan, no finite number"),
        ('{"a": -Infinity}', "a is -inf, no finite number"),
        ('{"a": 9223372036854775808}', "a is 9223372036854775808, a number beyond 64 bits"),
        ('{"a": "\\ud800"}', "a holds half of a character"),
        ('["\\u0000"]', "0 holds the character NUL"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("{\n\n", "no valid JSON at line 3"),
    ],
)
def test_why_a_text_is_no_json_of_ours(text, reason):
    with pytest.raises(Unreadable, match=reason):
        parse_json(text)


def test_a_training_may_log_what_is_no_number():
    assert math.isnan(parse_json('{"history": [NaN]}', nonfinite=["history"])["history"][0])


def test_why_a_file_is_no_text(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a\xff")
    with pytest.raises(Unreadable, match=r"no text in UTF-8 \(at byte 1\)"):
        text_of(path)
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert json_of(path) == [1]
    with pytest.raises(Unreadable, match="more than"):
        bytes_of(path, limit=5)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Unreadable, match=r"no regular file \(a pipe\)"), opened(path):
        pass
    with pytest.raises(Unreadable, match=r"no regular file \(a device\)"):
        bytes_of("/dev/zero", limit=JSON_BYTES)


def test_a_value_in_a_message_is_a_line():
    assert len(shown({"a" * 10_000: ["b" * 10_000] * 1000})) <= 100
    assert shown("a\nb") == r"'a\nb'"
    assert (cut("a\nb"), cut("a b"), cut("\udc80")) == (r"a\nb", "a b", r"\udc80")
    assert shown(10**5000) == shown([10**5000]) == "a number of thousands of digits"


@pytest.mark.parametrize("inner", ["an unexpected argument '\n'", "x" * 5000])
def test_what_another_reader_says_of_a_file_is_a_line_that_names_it(inner, tmp_path):
    kind = Kind("the thing", "mend it", ConfigError)
    for said in (f"{tmp_path / 'file'}: {inner}", inner):
        with pytest.raises(ConfigError) as caught, reading(tmp_path / "file", kind):
            raise ConfigError(said)
        message = str(caught.value)
        assert str(tmp_path / "file") in message
        assert "\n" not in message
        assert len(message) <= 700
    assert "\n" not in str(kind.refusal(tmp_path / "file", inner))
