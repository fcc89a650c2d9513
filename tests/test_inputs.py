"Files, records and a cell's world: one sentence each for what is wrong."
import gzip

import pytest
from pydantic import ConfigDict, PositiveInt
from typing_extensions import TypedDict

from adwm.core import UserError
from adwm.inputs import checked, read_json


class Cup(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)
    name: str
    sizes: list[PositiveInt]


@pytest.mark.parametrize("content,says", [(b"", "Expecting value"), (b"{", "not readable"), (b'{"a": NaN}', "NaN is not a number"), (b"[Infinity]", "Infinity is not"), (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
                                          ("[\"\u00e4\"]".encode("latin-1"), "utf-8"), (b"\xef\xbb\xbf[]", "BOM"), (b"[" * 100_000, "nested too deeply"), (b"[1]]", "Extra data"), (b'["\\ud800"]', "surrogates not allowed")])
def test_damaged_json_is_one_sentence(tmp_path, content, says):
    for name, data in (("x.json", content), ("x.json.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=says) as error: read_json(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_damaged_archives_are_one_sentence(tmp_path):
    whole, path = gzip.compress(b"[" + b"1, " * 500 + b"1]"), tmp_path / "x.json.gz"
    path.write_bytes(whole)
    assert len(read_json(path)) == 501
    for data in (whole[:-9], whole[:15], b"", b"no archive", *(whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1:] for i in range(10, len(whole), 3))):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not readable"): read_json(path)
    with pytest.raises(UserError, match="not readable"): read_json(tmp_path)


@pytest.mark.parametrize("value,says", [({"sizes": []}, "cup 1 lacks the field 'name'"), ({"name": 3, "sizes": []}, "cup 1 has 3 as 'name': input should be a valid string"), 
                                        ({"name": "x", "sizes": [1, "2"]}, r"has '2' as 'sizes\[1\]'"), ({"name": "x", "sizes": [True]}, r"has True as 'sizes\[0\]'"), ({"name": "x", "sizes": [0]}, "greater than 0"), ([], r"cup 1 has \[\]"), (None, "has None")])
def test_a_fault_names_record_and_field(value, says):
    with pytest.raises(UserError, match=says): checked(Cup, value, "cup 1")
