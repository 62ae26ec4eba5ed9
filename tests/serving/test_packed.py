"""The codec: openpi's own client reads what we write and the other way round, and damaged messages are refused."""

import math

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy

from wmjax.core.errors import UserError
from wmjax.serving.packed import Limits, measure, pack, unpack

LIMITS = Limits(size=10_000, depth=5, values=64)
KINDS = st.sampled_from(["|b1", "|u1", "<i2", ">i4", "<i8", "<u8", "<f2", "<f4", ">f8", "<U3", "|S2"])


def arrays() -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    finite = {"allow_nan": False, "allow_infinity": False}

    def elements(dtype: str) -> st.SearchStrategy:
        kind = np.dtype(dtype)
        return hnp.from_dtype(kind, **(finite if kind.kind == "f" else {}))

    return KINDS.flatmap(lambda dtype: hnp.arrays(dtype, shapes, elements=elements(dtype)))


def equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype.str == b.dtype.str and a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=60)
@given(arrays())
def test_arrays_are_the_same_for_openpis_client_in_both_directions(array: np.ndarray) -> None:
    message = {"a": array, "text": "x", "number": 1.5, "whole": -3, "map": {"inner": [array, None, True]}}
    assert pack(message) == msgpack_numpy.packb(message)
    ours = unpack(msgpack_numpy.packb(message), LIMITS)
    theirs = msgpack_numpy.unpackb(pack(message))
    for found in (ours, theirs):
        assert set(found) == set(message) and (found["text"], found["number"], found["whole"]) == ("x", 1.5, -3)
        assert equal(found["a"], array) and equal(found["map"]["inner"][0], array)
        assert found["map"]["inner"][1:] == [None, True]


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.int8(-3), np.uint64(2**63), np.bool_(True)])
def test_scalars_are_the_same_for_openpis_client_in_both_directions(scalar: np.generic) -> None:
    assert equal(unpack(msgpack_numpy.packb({"a": scalar}), LIMITS)["a"], scalar)
    assert equal(msgpack_numpy.unpackb(pack({"a": scalar}))["a"], scalar)


def packed(**changes: object) -> bytes:
    """A message with one array, some of whose four entries are changed; None leaves one out."""
    array = {"__ndarray__": True, "data": b"\0" * 24, "dtype": "<f4", "shape": [2, 3]} | changes
    return bytes(msgpack.packb({"a": {key.encode(): value for key, value in array.items() if value is not None}}))


def test_a_plain_array_is_accepted() -> None:
    assert unpack(packed(), LIMITS)["a"].shape == (2, 3)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "ends after 0 bytes"),
        (msgpack.packb([1]), "the message is a list"),
        (msgpack.packb({b"a": 1}), "map with text keys"),
        (msgpack.packb({1: 1}), "damaged"),
        (b"\x81\xa1\xff\x01", "damaged"),
        (b"\x82\xa1a\x01\xa1a\x02", "the same key twice"),
        (msgpack.packb({"a": 1})[:-1], "ends after 3 bytes"),
        (msgpack.packb({"a": b"xyz"})[:-1], "in the middle of a value"),
        (b"\xdf\xff\xff\xff\xff", "more than 64 values"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "in the middle of a value"),
        (msgpack.packb({"a": 1}) + b"\0", "has 1 bytes after its end"),
        (b"\x91" * 200 + b"\x01", "nested more than 5 deep"),
        (msgpack.packb({"a": list(range(65))}), "more than 64 values"),
        (msgpack.packb({"a": b"x" * 10_000}), "the limit is 10000"),
        (msgpack.packb({"a": msgpack.Timestamp(1)}), "type 0xd6"),
        (b"\x81\xa1a\xc1", "type 0xc1"),
        (msgpack.packb({"a": math.nan}), "a is nan"),
        (msgpack.packb({"a": [1.0, [-math.inf]]}), "a is -inf"),
        (msgpack_numpy.packb({"a": np.array([1, np.nan])}), "a has numbers that are not finite"),
        (msgpack_numpy.packb({"a": {"b": np.float16(np.inf)}}), "b has numbers that are not finite"),
        (packed(dtype="|O8"), "dtype '|O8'"),
        (packed(dtype="|V4"), "dtype '|V4'"),
        (packed(dtype="<c8"), "dtype '<c8'"),
        (packed(dtype="<f3"), "dtype '<f3'"),
        (packed(dtype="<M8[ns]"), "dtype '<M8"),
        (packed(dtype="f4,f4"), "dtype 'f4,f4'"),
        (packed(dtype=7), "dtype '7'"),
        (packed(dtype="<U0", data=b"", shape=[10**9]), "dtype '<U0'"),
        (packed(dtype="<U1", data=b"\xff" * 4, shape=[1]), "beyond Unicode"),
        (packed(dtype=None), "without its keys"),
        (packed(extra=1), "without its keys"),
        (packed(data="text"), "without its keys"),
        (packed(shape=[2, 4]), "has 32; send all"),
        (packed(shape=[2**62, 2**62]), "24 bytes of data"),
        (packed(shape=[-2, -3]), "of the shape"),
        (packed(shape=[6.0]), "of the shape"),
        (packed(shape=[True, 6]), "of the shape"),
        (packed(shape=[6] + [1] * 8), "up to 8 sizes"),
        (packed(shape="23"), "of the shape"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "too large for |u1"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": 1e300, b"dtype": "<f4"}}), "not finite"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}}), "a str as scalar"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": 1}}), "without its keys"),
    ],
)
def test_a_bad_message_is_refused(frame: bytes, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        unpack(frame, LIMITS)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_are_a_map(frame: bytes) -> None:
    try:
        found = unpack(frame, LIMITS)
    except UserError:
        return
    assert isinstance(found, dict)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(PLAIN, st.integers(0, 40))
def test_measuring_agrees_with_the_library_on_what_is_whole(value: object, cut: int) -> None:
    roomy, frame = Limits(depth=100), msgpack.packb(value)
    measure(frame, roomy)
    if 0 < cut <= len(frame):
        with pytest.raises(UserError):
            measure(frame[:-cut], roomy)


@pytest.mark.parametrize("value", [np.array([object()]), np.zeros(2, "c8"), np.zeros(2, "V3"), object()])
def test_what_cannot_be_packed_is_not(value: object) -> None:
    with pytest.raises(ValueError, match="cannot be packed"):
        pack({"a": value})
