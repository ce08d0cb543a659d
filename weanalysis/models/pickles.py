"""What loading a pickle would take, counted over its opcodes before torch follows them.

torch's restricted unpickler runs no code of a file, but it hashes what the file names as keys, and hands what the file
gives to some constructors. A tuple that holds a tuple twice, which holds another twice, takes exponential time to hash;
numbers can be chosen that all have one hash; a list can be made a set a million times. Each is one call that nothing
ends. So the stack is followed here with weights in place of values: how many parts a value has, where what is shared
counts each time. Takes time linear in the pickle's length.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import struct
from typing import Any, BinaryIO

import torch
from torch import _weights_only_unpickler

# torch takes about a microsecond for an opcode, which may be one byte.
_MOST_BYTES = 2**23
# Tuples, lists, dicts and calls of constructors, and the parts of all that is used again or copied.
_MOST_VALUES = 10**6
# The parts of all keys that are neither text nor short numbers: if all have one hash, a second of comparing.
_MOST_KEY_PARTS = 20_000
_MOST_KEY_DEPTH = 100
_LONG_TEXT, _LONG_NUMBER = 1000, 8
# torch's older format: pickles of a magic number, a version, the system, the content, and the keys of the storages.
_NUM_PICKLES = 5

# On the stack stands a weight alone, or what begins with one: (weight, parts) for a tuple, (weight, name) for a
# function, long text or a long number, [weight, weight of what would be odd keys, has lists inside] for what grows.
_SHORT_TEXT, _PLAIN, _EMPTY_TUPLE, _LATIN1, _TEXT = 1, 2, (1, ()), (1, "latin1"), "text"
_STOP, _MARK, _TUPLE, _BINUNICODE = (code[0] for code in (pickle.STOP, pickle.MARK, pickle.TUPLE, pickle.BINUNICODE))
#: opcode -> bytes of its argument, what it pushes
_PUSHES: dict[int, tuple[int, Any]] = {
    pickle.BININT1[0]: (1, _PLAIN),
    pickle.BININT2[0]: (2, _PLAIN),
    pickle.BININT[0]: (4, _PLAIN),
    pickle.BINFLOAT[0]: (8, _PLAIN),
    pickle.EMPTY_TUPLE[0]: (0, _EMPTY_TUPLE),
    pickle.NONE[0]: (0, _PLAIN),
    pickle.NEWTRUE[0]: (0, _PLAIN),
    pickle.NEWFALSE[0]: (0, _PLAIN),
    pickle.PROTO[0]: (1, None),
}
_TUPLES = {pickle.TUPLE1[0]: 1, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
_GROWING = frozenset(pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.EMPTY_SET)
_PUTS = {pickle.BINPUT[0]: ("B", 1), pickle.LONG_BINPUT[0]: ("<I", 4)}
_GETS = {pickle.BINGET[0]: ("B", 1), pickle.LONG_BINGET[0]: ("<I", 4)}
# What makes a tensor or the like, in time linear in its arguments; and what hashes, copies or counts what it is given.
_MAKING = re.compile(r"torch\._utils\._rebuild_\w+|torch\.(device|serialization\._get_layout)|builtins\.complex")
_COPYING = {"collections.OrderedDict", "collections.Counter", "builtins.set", "torch.Size"}
_REBUILT = "torch._utils._rebuild_"


def _tensor_pattern() -> re.Pattern[bytes]:
    """Return what follows a call's name where a tensor stands as torch.save writes it: nearly all of most pickles."""
    put, get, number = rb"(?:q.|r.{4})?", rb"(?:h.|j.{4})", rb"(?:K.|M..|J.{4})"
    digits = b"|".join(rb"%b\0{3}[0-9]{%d}" % (re.escape(bytes([n])), n) for n in range(1, 16))
    few = b"|".join(number * n + op + put for n, op in ((1, rb"\x85"), (2, rb"\x86"), (3, rb"\x87")))
    numbers = rb"(?:\)|%b|\((?:%b){4,6}t%b)" % (few, number, put)
    storage = (
        rb"\((?:X\x07\0{3}storage%(put)b|%(get)b)(?:ctorch\n[A-Za-z0-9]+Storage\n%(put)b|%(get)b)"
        rb"X(?:%(digits)b)%(put)b(?:X\x03\0{3}cpu%(put)b|X\x06\0{3}cuda:[0-9]%(put)b|%(get)b)%(number)bN?t%(put)bQ"
    ) % {b"put": put, b"get": get, b"digits": digits, b"number": number}
    hooks = rb"[\x88\x89](?:ccollections\nOrderedDict\n%b|%b)\)R%b" % (put, get, put)
    return re.compile(rb"\(" + storage + number + numbers + numbers + hooks + rb"t" + put + rb"R", re.DOTALL)


_TENSOR = _tensor_pattern()
# What is used again of what such a tensor named: a few numbers at most, or the dict of its hooks.
_OF_TENSOR = (20, "collections.OrderedDict")


# How a pickle ends that is cut off or changed; torch's reader of archives raises RuntimeError.
_DAMAGE = (IndexError, EOFError, UnicodeDecodeError, struct.error, pickle.UnpicklingError, RuntimeError)


class TooCostly(Exception):
    """Loading a pickle would take far more time or memory than it is long; the message says what takes it."""


def check_pickles(file: BinaryIO, zipped: bool) -> None:
    """Raise TooCostly where torch.load of a file need not end in time; other damage is left to torch to say."""
    try:
        if zipped:
            # By torch's own reader, since another may find another member of this name in an archive made to deceive.
            _Scan(torch._C.PyTorchFileReader(file).get_record("data.pkl")).run(0)
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                at = 0
                for number in range(_NUM_PICKLES):
                    scan = _Scan(content)
                    at = scan.run(at)
                    # Torch prints what stands in the place of the version, and a nested one has no end of text.
                    if number == 1 and _may_nest(scan.stack[-1]):
                        raise TooCostly("it has no number where its version should stand")
    except _DAMAGE:  # torch stops at the same place, and says why
        return


class _Scan:
    """One pass over the opcodes of a pickle."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.values = 0
        self.key_parts = 0

    def run(self, at: int) -> int:
        """Follow the pickle that begins at a byte, and return where it ends."""
        data, stack, memo, end, op = self.data, self.stack, {}, at + _MOST_BYTES, 0
        while op != _STOP:
            op = data[at]
            at += 1
            if at > end:
                raise TooCostly(f"its description is longer than {_MOST_BYTES:,} bytes")
            if op in _PUTS:
                kind, length = _PUTS[op]
                memo[struct.unpack_from(kind, data, at)[0]] = stack[-1]
                at += length
            elif op in _GETS:
                kind, length = _GETS[op]
                value = memo.get(struct.unpack_from(kind, data, at)[0], _OF_TENSOR)
                at += length
                if type(value) is not int:
                    self._count(value[0])
                stack.append(value)
            elif op in _PUSHES:
                length, value = _PUSHES[op]
                at += length
                if value is not None:
                    stack.append(value)
            elif op == _BINUNICODE:
                length = struct.unpack_from("<I", data, at)[0]
                at += 4 + length
                is_latin1 = length == 6 and data[at - 6 : at] == b"latin1"
                stack.append(_LATIN1 if is_latin1 else _SHORT_TEXT if length <= _LONG_TEXT else (length, _TEXT))
            elif op == _MARK:
                tensor = _TENSOR.match(data, at - 1)
                if tensor and stack and type(stack[-1]) is tuple and stack[-1][1] == _REBUILT + "tensor_v2":
                    at, stack[-1] = tensor.end(), _PLAIN
                else:
                    self.marks.append(len(stack))
            elif op == _TUPLE:
                stack.append(self._tuple(self._marked()))
            elif op in _TUPLES:
                stack[-_TUPLES[op] :] = [self._tuple(stack[-_TUPLES[op] :])]
            elif op in _GROWING:
                self._count(1)
                stack.append([1, 0, False])
            else:
                at = self._rare(op, at)
        return at

    def _rare(self, op: int, at: int) -> int:
        """Follow an opcode that few values need, and return where its argument ends."""
        data, stack, code = self.data, self.stack, bytes([op])
        if code == pickle.GLOBAL:
            middle = data.find(b"\n", at)
            end = data.find(b"\n", middle + 1) + 1
            if middle < 0 or end <= 0:
                raise EOFError
            lines = io.BytesIO(data[at:end])
            stack.append((1, ".".join(_weights_only_unpickler._read_global_instruction(lines.readline))))
            return end
        if code in (pickle.REDUCE, pickle.NEWOBJ):
            arguments, called = stack.pop(), stack.pop()
            stack.append(self._called(called, arguments, at))
        elif code in (pickle.APPEND, pickle.APPENDS):
            self._add(self._marked() if code == pickle.APPENDS else [stack.pop()])
        elif code in (pickle.SETITEM, pickle.SETITEMS):
            items = self._marked() if code == pickle.SETITEMS else [stack.pop(-2), stack.pop()]
            for key in items[::2]:
                self._key(key)
            self._add(items)
        elif code == pickle.BUILD:
            state = stack.pop()
            if type(state) is int:
                raise TooCostly("it builds something of what is neither a tuple nor a dict")
            if type(stack[-1]) is list:
                self._add([state])
        elif code == pickle.BINPERSID:
            stack[-1] = _PLAIN
        elif code == pickle.SHORT_BINSTRING:
            stack.append(_SHORT_TEXT)
            return at + 1 + data[at]
        elif code == pickle.LONG1:
            stack.append(_PLAIN if data[at] <= _LONG_NUMBER else (data[at], "number"))
            return at + 1 + data[at]
        elif code != pickle.STOP:
            known = [one.name for one in pickletools.opcodes if one.code == chr(op)]
            if any(hasattr(_weights_only_unpickler, name) for name in known):
                raise TooCostly(f"it has an opcode, {known[0]}, whose cost is not known")
            raise pickle.UnpicklingError(f"opcode {op}")
        return at

    def _called(self, called: Any, arguments: Any, at: int) -> Any:
        """Count what a constructor takes, and return what it makes, in weights."""
        if _may_nest(called) or not _may_nest(arguments) or type(arguments) is list:
            raise TooCostly("it calls what is no constructor, or with what are no arguments")
        name, parts = called[1] if type(called) is tuple else "", arguments[1]
        self._count(1)
        if name in ("_codecs.encode", "builtins.bytearray"):
            return self._bytes(name, parts)
        if name == "torch._tensor._rebuild_from_type_v2" and not (
            len(parts) > 2
            and type(parts[0]) is tuple
            and str(parts[0][1]).startswith(_REBUILT)
            and type(parts[2]) is tuple
        ):
            raise TooCostly(f"it lets {name} call what makes no tensor")
        if name.startswith("torch.") and name.endswith(("Tensor", "Storage")) and parts:
            raise TooCostly(f"it calls {name} with sizes or values")
        if _MAKING.fullmatch(name):
            return _PLAIN
        # What is called without being named here may be anything that torch allows.
        strict = name in _COPYING or not name
        if strict and not all(_may_nest(part) for part in parts):
            raise TooCostly(f"it calls {name or 'something'} with what is neither a tuple nor a list")
        for part in parts:
            if type(part) is list:
                self._keys(part[1])
                # Lists within lists may have grown since they were put there: to all that there is, at most.
                self._count(at + self.values if part[2] else 0)
            elif strict and type(part) is tuple:
                self._keys(part[0])
        return arguments if name == "torch.Size" else _grow([1, 0, False], parts)

    def _bytes(self, name: str, parts: Any) -> Any:
        """Count text that becomes bytes, as protocol 2 keeps these; refuse all else, which can be encoded again."""
        text, encoding = list(parts[:1]), list(parts[1:])
        if encoding not in ([], [_LATIN1]) or not all(
            one == _SHORT_TEXT or (type(one) is tuple and one[1] in (_TEXT, "latin1")) for one in text
        ):
            raise TooCostly(f"it calls {name} with something else than text in Latin-1")
        length = max([_LONG_TEXT, *(one[0] for one in text if type(one) is tuple)])
        self._count(length)
        return (length, _TEXT)

    def _tuple(self, items: list[Any]) -> tuple[int, list[Any]]:
        self._count(1)
        weight = 1
        for item in items:
            weight += item if type(item) is int else item[0]
        return weight, items

    def _add(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("nothing can be added to this")
        _grow(self.stack[-1], items)

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _count(self, weight: int) -> None:
        self.values += weight
        if self.values > _MOST_VALUES:
            raise TooCostly(f"it makes, or uses again and again, more than {_MOST_VALUES:,} values")

    def _key(self, key: Any) -> None:
        if type(key) is tuple and key[1] != _TEXT:
            self._keys(key[0])
            if _depth(key) > _MOST_KEY_DEPTH:
                raise TooCostly(f"it has keys that are nested more than {_MOST_KEY_DEPTH} deep")

    def _keys(self, weight: int) -> None:
        self.key_parts += weight
        if self.key_parts > _MOST_KEY_PARTS:
            raise TooCostly(f"its keys that are no text have more than {_MOST_KEY_PARTS:,} parts")


def _grow(grown: Any, items: Any) -> Any:
    """Add what is put into a dict, list or set; return it."""
    for item in items:
        if type(item) is int:
            grown[0] += item
        else:
            grown[0] += item[0]
            grown[1] += item[1] if type(item) is list else item[0]
            grown[2] = grown[2] or type(item) is list
    return grown


def _may_nest(value: Any) -> bool:
    """Say whether a value is a tuple, dict, list or set."""
    return type(value) is list or (type(value) is tuple and not isinstance(value[1], str))


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= _MOST_KEY_DEPTH:
        level = [part for one in level if type(one) is tuple and _may_nest(one) for part in one[1]]
        depth += 1
    return depth
