"""Structs of Thrift's compact protocol, in which Parquet writes its footers and page headers.

Only whole numbers and structs are kept; the rest is passed over. Must not know what they mean.
"""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 16


class Damaged(ValueError):
    """Bytes that are no struct of Parquet."""


class CutOff(Damaged):
    """A struct, or what it tells of, that goes on after the bytes end."""


def read_struct(raw: bytes) -> tuple[dict[int, Any], int]:
    """The struct at the beginning of some bytes: values by the number of their field; how many
    bytes it takes.

    Raises:
        IndexError: the bytes end before it does.
        Damaged: they are no such struct.
    """
    reader = _Reader(raw)
    return reader.struct(0), reader.place


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw, self.place = raw, 0

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise Damaged("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):  # bools as they stand in lists
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            return self._skip(8 if kind == 7 else self._varint())
        if kind in (9, 10):
            return self._skip_list(depth)
        if kind == 12:
            return self.struct(depth + 1)
        raise Damaged(f"a field of type {kind}, which Parquet has not")

    def _skip_list(self, depth: int) -> None:
        head = self._byte()
        length = head >> 4 if head >> 4 < 15 else self._varint()
        for _ in range(length):
            self._value(head & 15, depth)

    def _skip(self, num_bytes: int) -> None:
        self.place += num_bytes
        if self.place > len(self._raw):
            raise IndexError

    def _byte(self) -> int:
        value = self._raw[self.place]
        self.place += 1
        return value

    def _signed(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number = shift = 0
        while shift < 70:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
        raise Damaged("a number without end")
