"""Strict CBOR (RFC 8949): what attestation documents and the Nitro Security Module speak, and no more.

General decoders keep the last of two equal keys, ignore what follows, and act on tags: each of these
lets two readers see two documents in the same signed bytes. Here all of it is refused, as are
floats, lengths that are not the shortest, and strings in pieces. Maps and arrays may be of
indefinite length, because NSM firmware since late 2025 writes its payload so.
"""

from nips.errors import BadCbor

MAX_DEPTH = 6
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_BREAK = 0xFF
_SIMPLE_VALUES: dict[int, bool | None] = {0xF4: False, 0xF5: True, 0xF6: None}
# The smallest number that may take 1, 2, 4 or 8 bytes.
_LEAST = (24, 1 << 8, 1 << 16, 1 << 32)


def decode_untrusted(data: bytes) -> object:
    """One value: None, bool, int, bytes, str, list, or dict with int and str keys. Raises `BadCbor`.

    Time and memory are linear in the input: no length is believed that exceeds what is left.
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise BadCbor("bytes follow the value")
    return value


def encode(value: object) -> bytes:
    """The shortest form, definite lengths, keys in the order given. Raises `TypeError`."""
    match value:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
        case bytes():
            return _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            return _head(_TEXT, len(text)) + text
        case list() | tuple():
            return _head(_ARRAY, len(value)) + b"".join(map(encode, value))
        case dict():
            pairs = b"".join(encode(key) + encode(item) for key, item in value.items())
            return _head(_MAP, len(value)) + pairs
        case _:
            raise TypeError(f"CBOR has no {type(value).__name__} here")


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    for power, least in enumerate(_LEAST[1:]):
        if number < least:
            return bytes([major << 5 | 24 + power]) + number.to_bytes(1 << power, "big")
    return bytes([major << 5 | 27]) + number.to_bytes(8, "big")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def value(self, depth: int) -> object:
        if depth > MAX_DEPTH:
            raise BadCbor("nested too deep")
        first = self._peek()
        major, number = self._head()
        if major == _SIMPLE:
            return self._simple(first)
        if major == _ARRAY:
            return self._array(number, depth)
        if major == _MAP:
            return self._map(number, depth)
        if number is None:
            raise BadCbor("a number or string of indefinite length")
        if major in (_UNSIGNED, _NEGATIVE):
            return number if major == _UNSIGNED else -1 - number
        if major == _TAG:
            raise BadCbor("a tag")
        return self._string(number) if major == _BYTES else self._text(number)

    def _peek(self) -> int:
        if self.at >= len(self._data):
            raise BadCbor("ends too early")
        return self._data[self.at]

    def _head(self) -> tuple[int, int | None]:
        """Major type, and the number that goes with it; None for indefinite length."""
        first = self._peek()
        self.at += 1
        major, low = first >> 5, first & 31
        if low < 24:
            return major, low
        if low == 31:
            return major, None
        if low > 27:
            raise BadCbor("a reserved length")
        number = int.from_bytes(self._string(1 << (low - 24)), "big")
        if number < _LEAST[low - 24] and major != _SIMPLE:
            raise BadCbor("a length that is not the shortest")
        return major, number

    def _string(self, length: int) -> bytes:
        if length > len(self._data) - self.at:
            raise BadCbor("ends too early")
        part = self._data[self.at : self.at + length]
        self.at += length
        return part

    def _text(self, length: int) -> str:
        try:
            return self._string(length).decode()
        except UnicodeDecodeError as error:
            raise BadCbor("text is not UTF-8") from error

    def _simple(self, first: int) -> bool | None:
        if first not in _SIMPLE_VALUES:
            raise BadCbor("a float, or a simple value that is not true, false or null")
        return _SIMPLE_VALUES[first]

    def _array(self, length: int | None, depth: int) -> list[object]:
        items: list[object] = []
        while not self._ended(length, len(items)):
            items.append(self.value(depth + 1))
        return items

    def _map(self, length: int | None, depth: int) -> dict[int | str, object]:
        pairs: dict[int | str, object] = {}
        while not self._ended(length, len(pairs)):
            key = self.value(depth + 1)
            # True is 1 in Python; as a key it would be the integer's double.
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise BadCbor("a map key that is neither integer nor text")
            if key in pairs:
                raise BadCbor("a map key stands twice")
            pairs[key] = self.value(depth + 1)
        return pairs

    def _ended(self, length: int | None, read: int) -> bool:
        if length is not None:
            return read == length
        ended = self._peek() == _BREAK
        self.at += ended
        return ended
