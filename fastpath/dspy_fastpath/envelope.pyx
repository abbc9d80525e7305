# cython: autotestdict=False
"""The scanner of envelopes: one pass over the bytes of a task file, and no Python object for what is only passed on.

The whole file is checked against RFC 8259, so that what is accepted here can be read by any parser later: one object,
strict UTF-8, finite numbers, integers that fit 64 bits, no lone surrogates. The table of keys is in task.py of the
supervisor; the limits of each value are below.

The C functions take ``at``, a place in the bytes, and return the place after what they read, or NULL with the reason
and the place in ``Failure``. They know the end by the NUL that CPython keeps behind every bytes object: no rule of the
grammar takes a NUL, and none goes on before it has seen what stands at ``at``. Containers are kept on a stack of bytes,
so depth costs no C stack.
"""

cimport cython
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

# orjson reads no deeper than this.
cdef enum:
    DEEPEST = 1024

cdef enum:  # keys
    ID
    CLASS
    PAYLOAD
    KIND
    PRIORITY
    NOT_BEFORE
    TIMEOUT_S
    MAX_ATTEMPTS
    IDEMPOTENCY_KEY
    AFFINITY
    RESOURCES
    TRACEPARENT
    KEYS
    UNKNOWN = KEYS

cdef enum:
    FAR_OUT = 1000000  # no whole number may be as large
    WORTH_A_RELEASE = 16384  # bytes; less is read faster than other threads could take the GIL

# The place of a spelling is its key; the other spellings of the first three keys stand behind.
cdef enum:
    SPELLINGS = KEYS + 3
    LONGEST_SPELLING = 15

cdef const char *SPELLING[SPELLINGS]
SPELLING[:] = [
    "id", "class", "payload", "kind", "priority", "not_before", "timeout_s", "max_attempts", "idempotency_key",
    "affinity", "resources", "traceparent", "ID", "Class", "Payload",
]

cdef enum Reason:
    FINE
    EMPTY
    BYTE_ORDER_MARK
    UTF_16
    NO_OBJECT
    NO_END
    NO_KEY
    NO_COLON
    NO_VALUE
    NO_COMMA_IN_OBJECT
    NO_COMMA_IN_ARRAY
    TOO_DEEP
    TWICE
    TOO_MANY
    NOT_A_NUMBER
    BAD_NUMBER
    HUGE_INTEGER
    HUGE_NUMBER
    UNTERMINATED
    CONTROL
    ESCAPE
    SURROGATE
    NOT_UTF_8
    NO_MEMORY

# "{}" is Failure.detail; what was found instead is added to "expected ...".
_REASONS = {
    EMPTY: "empty file",
    BYTE_ORDER_MARK: "byte order mark: write UTF-8 without one",
    UTF_16: "UTF-16: write UTF-8",
    NO_OBJECT: "expected an object",
    NO_END: "expected nothing after the object",
    NO_KEY: "expected a key in double quotes",
    NO_COLON: "expected ':' after the key",
    NO_VALUE: "expected a value",
    NO_COMMA_IN_OBJECT: "expected ',' or '}'",
    NO_COMMA_IN_ARRAY: "expected ',' or ']'",
    TOO_DEEP: "nested deeper than {} levels",
    TWICE: "the key {} is there twice",
    TOO_MANY: "more than {} unknown keys: a payload of many keys belongs under the key payload",
    NOT_A_NUMBER: "NaN and Infinity are not JSON",
    BAD_NUMBER: "not a number of JSON",
    HUGE_INTEGER: "an integer beyond 64 bits",
    HUGE_NUMBER: "a number beyond the range of a double",
    UNTERMINATED: "a string without an end",
    CONTROL: "a control character in a string, not escaped",
    ESCAPE: "not an escape of JSON",
    SURROGATE: "half of a surrogate pair",
    NOT_UTF_8: "not UTF-8",
}

cdef struct Failure:
    Reason reason
    const uint8_t *at
    int detail

cdef struct Span:
    const uint8_t *start
    const uint8_t *end

cdef struct Extra:
    Span key
    Span value

cdef struct Parts:
    Span whole
    Span known[KEYS]
    Extra *extras
    int extras_count
    int extras_room

cdef uint64_t EVERY_BYTE = 0x0101010101010101
cdef uint64_t HIGH_BITS = 0x8080808080808080


cdef inline const uint8_t *fail(Failure *failure, Reason reason, const uint8_t *at, int detail=0) noexcept nogil:
    failure.reason = reason
    failure.at = at
    failure.detail = detail
    return NULL


cdef inline const uint8_t *after_space(const uint8_t *at) noexcept nogil:
    while at[0] == c" " or at[0] == c"\n" or at[0] == c"\r" or at[0] == c"\t":
        at += 1
    return at


cdef inline bint is_plain(uint64_t word) noexcept nogil:
    """Whether eight bytes are ASCII without controls, quote and backslash (Bit Twiddling Hacks: haszero, hasless)."""
    cdef uint64_t quote = word ^ (EVERY_BYTE * c'"')
    cdef uint64_t backslash = word ^ (EVERY_BYTE * c"\\")
    return not (
        (word | (word - EVERY_BYTE * 0x20) | (quote - EVERY_BYTE) | (backslash - EVERY_BYTE)) & HIGH_BITS
    )


cdef inline int hex4(const uint8_t *at) noexcept nogil:
    """Return the value of four hexadecimal digits, or -1."""
    cdef int value = 0, place
    cdef uint8_t digit
    for place in range(4):
        digit = at[place]
        if c"0" <= digit <= c"9":
            value = value * 16 + digit - c"0"
        elif c"a" <= digit | 0x20 <= c"f":
            value = value * 16 + (digit | 0x20) - c"a" + 10
        else:
            return -1
    return value


cdef inline bint is_tail(uint8_t byte) noexcept nogil:
    return byte & 0xC0 == 0x80


cdef inline int utf8_length(const uint8_t *at, const uint8_t *end) noexcept nogil:
    """Return how many bytes the character takes whose first byte is not ASCII, or 0 (Unicode 15, table 3-7)."""
    cdef uint8_t first = at[0]
    if first < 0xC2:
        return 0
    if first < 0xE0:
        return 2 if is_tail(at[1]) else 0
    if first < 0xF0:
        if end - at < 3 or ((at[1] ^ 0x80) | (at[2] ^ 0x80)) > 0x3F:
            return 0
        if (first == 0xE0 and at[1] < 0xA0) or (first == 0xED and at[1] > 0x9F):
            return 0
        return 3
    if first > 0xF4 or not is_tail(at[1]) or not is_tail(at[2]) or not is_tail(at[3]):
        return 0
    if (first == 0xF0 and at[1] < 0x90) or (first == 0xF4 and at[1] > 0x8F):
        return 0
    return 4


cdef const uint8_t *after_escape(const uint8_t *at, Failure *failure) noexcept nogil:
    cdef int unit
    cdef uint8_t letter = at[1]
    if letter != c"u":
        if (
            letter == c"n" or letter == c'"' or letter == c"\\" or letter == c"t" or letter == c"r"
            or letter == c"/" or letter == c"b" or letter == c"f"
        ):
            return at + 2
        return fail(failure, ESCAPE, at)
    unit = hex4(at + 2)
    if unit < 0:
        return fail(failure, ESCAPE, at)
    if unit < 0xD800 or unit > 0xDFFF:
        return at + 6
    if unit > 0xDBFF or at[6] != c"\\" or at[7] != c"u":
        return fail(failure, SURROGATE, at)
    unit = hex4(at + 8)
    if unit < 0xDC00 or unit > 0xDFFF:
        return fail(failure, SURROGATE, at)
    return at + 12


cdef const uint8_t *after_string(const uint8_t *at, const uint8_t *end, Failure *failure) noexcept nogil:
    """at: the opening quote."""
    cdef const uint8_t *opening = at
    cdef uint64_t word
    cdef int length
    at += 1
    while True:
        while end - at >= 8:
            memcpy(&word, at, 8)
            if not is_plain(word):
                break
            at += 8
        while 0x20 <= at[0] < 0x80 and at[0] != c'"' and at[0] != c"\\":
            at += 1
        while at[0] >= 0x80:
            length = utf8_length(at, end)
            if length == 0:
                return fail(failure, NOT_UTF_8, at)
            at += length
        if at[0] == c'"':
            return at + 1
        if at[0] == c"\\":
            at = after_escape(at, failure)
            if at == NULL:
                return NULL
        elif at[0] < 0x20:
            if at == end:
                return fail(failure, UNTERMINATED, opening)
            return fail(failure, CONTROL, at)


cdef inline bint is_digit(uint8_t byte) noexcept nogil:
    return c"0" <= byte <= c"9"


# 2**1024 - 2**970, half a step beyond the largest double: from here on rounding gives infinity. 309 digits.
cdef const char *INFINITE = (
    "1797693134862315807937289714053034150799341327100378269361737789804449682927647509466490179775872070963"
    "3028641669288791094655554785194040263065748867150582068190890200070838367627385484581771153176447573027"
    "0069855571366959622842914819860834936475292719074168444365510704342711559699508093042880177904174497792"
)


cdef int64_t HOPELESS = 10 ** 16  # an exponent that the digits of no file make up for


cdef bint is_infinite(const uint8_t *digit, const uint8_t *end, int64_t exponent) noexcept nogil:
    """Whether a number rounds to infinity, told by its digits: strtod() would ask the locale for the point.

    digit, end: the mantissa without its sign.
    """
    cdef int64_t magnitude = -1 + exponent  # the power of ten of the first digit that isn't 0
    cdef const uint8_t *point = digit
    cdef int place = 0
    while is_digit(point[0]) and point < end:
        point += 1
    magnitude += point - digit
    while digit < end and (digit[0] == c"0" or digit[0] == c"."):
        if digit[0] == c"0":
            magnitude -= 1
        digit += 1
    if digit == end or magnitude < 308:
        return False
    if magnitude > 308:
        return True
    while digit < end and place < 309:
        if digit[0] != c".":
            if digit[0] != <uint8_t> INFINITE[place]:
                return digit[0] > <uint8_t> INFINITE[place]
            place += 1
        digit += 1
    while place < 309:
        if INFINITE[place] != c"0":
            return False
        place += 1
    return True


cdef const uint8_t *after_number(const uint8_t *at, Failure *failure) noexcept nogil:
    cdef const uint8_t *start = at
    cdef const uint8_t *digits
    cdef const uint8_t *mantissa_end
    cdef int64_t exponent = 0
    cdef bint negative_exponent = False, is_integer = True
    cdef const char *largest
    if at[0] == c"-":
        at += 1
    digits = at
    if not is_digit(at[0]):
        return fail(failure, BAD_NUMBER, start)
    if at[0] == c"0":
        at += 1
    else:
        while is_digit(at[0]):
            at += 1
    if at[0] == c".":
        is_integer = False
        at += 1
        if not is_digit(at[0]):
            return fail(failure, BAD_NUMBER, start)
        while is_digit(at[0]):
            at += 1
    mantissa_end = at
    if at[0] == c"e" or at[0] == c"E":
        is_integer = False
        at += 1
        if at[0] == c"+" or at[0] == c"-":
            negative_exponent = at[0] == c"-"
            at += 1
        if not is_digit(at[0]):
            return fail(failure, BAD_NUMBER, start)
        while is_digit(at[0]):
            if exponent < HOPELESS:
                exponent = exponent * 10 + at[0] - c"0"
            at += 1
    if is_digit(at[0]) or at[0] == c"." or at[0] == c"-" or at[0] == c"+" or at[0] | 0x20 == c"e":
        return fail(failure, BAD_NUMBER, start)
    if is_integer:
        largest = "9223372036854775808" if digits > start else "18446744073709551615"
        if at - digits > <Py_ssize_t> strlen(largest):
            return fail(failure, HUGE_INTEGER, start)
        if at - digits == <Py_ssize_t> strlen(largest) and memcmp(digits, largest, at - digits) > 0:
            return fail(failure, HUGE_INTEGER, start)
    elif exponent > 0 or mantissa_end - digits > 308:
        if is_infinite(digits, mantissa_end, -exponent if negative_exponent else exponent):
            return fail(failure, HUGE_NUMBER, start)
    return at


cdef const uint8_t *after_literal(const uint8_t *at, Failure *failure) noexcept nogil:
    if at[0] == c"t" and at[1] == c"r" and at[2] == c"u" and at[3] == c"e":
        return at + 4
    if at[0] == c"n" and at[1] == c"u" and at[2] == c"l" and at[3] == c"l":
        return at + 4
    if at[0] == c"f" and at[1] == c"a" and at[2] == c"l" and at[3] == c"s" and at[4] == c"e":
        return at + 5
    if at[0] == c"N" or at[0] == c"I":
        return fail(failure, NOT_A_NUMBER, at)
    return fail(failure, NO_VALUE, at)


cdef const uint8_t *after_key(const uint8_t *at, const uint8_t *end, Failure *failure) noexcept nogil:
    """at: where a key should begin."""
    if at[0] != c'"':
        return fail(failure, NO_KEY, at)
    return after_string(at, end, failure)


cdef inline const uint8_t *after_colon(const uint8_t *at, Failure *failure) noexcept nogil:
    """at: the end of a key, or NULL. Returns where its value should begin."""
    if at == NULL:
        return NULL
    at = after_space(at)
    if at[0] != c":":
        return fail(failure, NO_COLON, at)
    return after_space(at + 1)


cdef const uint8_t *after_value(
    const uint8_t *at, const uint8_t *end, int outside, int max_depth, Failure *failure
) noexcept nogil:
    """at: where a value should begin. outside: how many containers it is in."""
    cdef uint8_t closing[DEEPEST]
    cdef uint8_t opening
    cdef int depth = outside
    while True:
        opening = at[0]
        if opening == c'"':
            at = after_string(at, end, failure)
        elif is_digit(opening) or opening == c"-":
            at = after_number(at, failure)
        elif opening == c"{" or opening == c"[":
            if depth == max_depth:
                return fail(failure, TOO_DEEP, at, max_depth)
            closing[depth] = opening + 2  # '}' and ']' in ASCII
            at = after_space(at + 1)
            if at[0] == closing[depth]:
                at += 1
            else:
                depth += 1
                if opening == c"{":
                    at = after_colon(after_key(at, end, failure), failure)
                    if at == NULL:
                        return NULL
                continue
        else:
            at = after_literal(at, failure)
        if at == NULL:
            return NULL
        while True:  # a value has ended, and with it perhaps its containers
            if depth == outside:
                return at
            at = after_space(at)
            if at[0] == closing[depth - 1]:
                at += 1
                depth -= 1
            elif at[0] != c",":
                return fail(
                    failure, NO_COMMA_IN_OBJECT if closing[depth - 1] == c"}" else NO_COMMA_IN_ARRAY, at
                )
            else:
                at = after_space(at + 1)
                if closing[depth - 1] == c"}":
                    at = after_colon(after_key(at, end, failure), failure)
                    if at == NULL:
                        return NULL
                break


cdef Py_ssize_t unescape(Span text, char *room, Py_ssize_t size) noexcept nogil:
    """Write the UTF-8 of a checked string's inside to room. Returns its length, or -1 where it is longer than size."""
    cdef const uint8_t *at = text.start
    cdef uint8_t piece[4]
    cdef int length, code
    cdef Py_ssize_t written = 0
    while at < text.end:
        length = 1
        if at[0] != c"\\":
            piece[0] = at[0]
            at += 1
        elif at[1] != c"u":
            piece[0] = at[1]
            if at[1] == c"n":
                piece[0] = c"\n"
            elif at[1] == c"t":
                piece[0] = c"\t"
            elif at[1] == c"r":
                piece[0] = c"\r"
            elif at[1] == c"b":
                piece[0] = c"\b"
            elif at[1] == c"f":
                piece[0] = c"\f"
            at += 2
        else:
            code = hex4(at + 2)
            at += 6
            if 0xD800 <= code <= 0xDBFF:
                code = 0x10000 + ((code - 0xD800) << 10) + hex4(at + 2) - 0xDC00
                at += 6
            if code < 0x80:
                piece[0] = code
            elif code < 0x800:
                length = 2
                piece[0] = 0xC0 | (code >> 6)
                piece[1] = 0x80 | (code & 0x3F)
            elif code < 0x10000:
                length = 3
                piece[0] = 0xE0 | (code >> 12)
                piece[1] = 0x80 | ((code >> 6) & 0x3F)
                piece[2] = 0x80 | (code & 0x3F)
            else:
                length = 4
                piece[0] = 0xF0 | (code >> 18)
                piece[1] = 0x80 | ((code >> 12) & 0x3F)
                piece[2] = 0x80 | ((code >> 6) & 0x3F)
                piece[3] = 0x80 | (code & 0x3F)
        if written + length > size:
            return -1
        memcpy(room + written, piece, length)
        written += length
    return written


cdef int known_key(Span text) noexcept nogil:
    """Return the key a checked string means, or UNKNOWN."""
    cdef char plain[LONGEST_SPELLING]
    cdef const char *name = <const char *> text.start
    cdef Py_ssize_t length = text.end - text.start
    cdef int spelling
    if memchr(name, c"\\", length) != NULL:
        length = unescape(text, plain, LONGEST_SPELLING)
        name = plain
    if length < 2 or length > LONGEST_SPELLING:
        return UNKNOWN
    for spelling in range(SPELLINGS):
        if SPELLING[spelling][0] == name[0] and <Py_ssize_t> strlen(SPELLING[spelling]) == length:
            if memcmp(SPELLING[spelling], name, length) == 0:
                return spelling if spelling < KEYS else spelling - KEYS
    return UNKNOWN


cdef bint keep_extra(Parts *parts, Span key, Span value) noexcept nogil:
    cdef Extra *grown
    if parts.extras_count == parts.extras_room:
        grown = <Extra *> realloc(parts.extras, (parts.extras_room + 16) * sizeof(Extra))
        if grown == NULL:
            return False
        parts.extras = grown
        parts.extras_room += 16
    parts.extras[parts.extras_count].key = key
    parts.extras[parts.extras_count].value = value
    parts.extras_count += 1
    return True


cdef const uint8_t *after_object(
    const uint8_t *at, const uint8_t *end, int max_depth, int max_extras, Parts *parts, Failure *failure
) noexcept nogil:
    """at: the opening brace of the whole file."""
    cdef Span key, value
    cdef int which
    at = after_space(at + 1)
    if at[0] == c"}":
        return at + 1
    while True:
        key.start = at + 1
        at = after_key(at, end, failure)
        value.start = after_colon(at, failure)
        if value.start == NULL:
            return NULL
        key.end = at - 1
        which = known_key(key)
        if which == UNKNOWN:
            if parts.extras_count == max_extras:
                return fail(failure, TOO_MANY, key.start - 1, max_extras)
        elif parts.known[which].start != NULL:
            return fail(failure, TWICE, key.start - 1, which)
        value.end = after_value(value.start, end, 1, max_depth, failure)
        if value.end == NULL:
            return NULL
        if which != UNKNOWN:
            parts.known[which] = value
        elif not keep_extra(parts, key, value):
            return fail(failure, NO_MEMORY, at)
        at = after_space(value.end)
        if at[0] == c"}":
            return at + 1
        if at[0] != c",":
            return fail(failure, NO_COMMA_IN_OBJECT, at)
        at = after_space(at + 1)


cdef void read(
    const uint8_t *data, Py_ssize_t size, int max_depth, int max_extras, Parts *parts, Failure *failure
) noexcept nogil:
    cdef const uint8_t *end = data + size
    cdef const uint8_t *at
    if size == 0:
        fail(failure, EMPTY, data)
        return
    if data[0] == 0xEF and data[1] == 0xBB and data[2] == 0xBF:
        fail(failure, BYTE_ORDER_MARK, data)
        return
    if (data[0] == 0xFF and data[1] == 0xFE) or (data[0] == 0xFE and data[1] == 0xFF) or (
        size > 1 and (data[0] == 0) != (data[1] == 0)
    ):
        fail(failure, UTF_16, data)
        return
    at = after_space(data)
    if at[0] != c"{":
        fail(failure, NO_OBJECT, at)
        return
    parts.whole.start = at
    parts.whole.end = after_object(at, end, max_depth, max_extras, parts, failure)
    if parts.whole.end == NULL:
        return
    at = after_space(parts.whole.end)
    if at != end:
        fail(failure, NO_END, at)


class EnvelopeError(ValueError):
    """The bytes are no envelope: ``reason`` says why, ``offset`` where, in bytes.

    line and column count from 1, the column in characters.
    """

    def __init__(self, reason, line, column, offset):
        super().__init__(reason, line, column, offset)
        self.reason = reason
        self.line = line
        self.column = column
        self.offset = offset

    def __str__(self):
        return f"line {self.line} column {self.column} (byte {self.offset}): {self.reason}"


@cython.final
@cython.auto_pickle(False)
cdef class Fields:
    """What scan() found; spans are (start, end) in bytes."""

    def __init__(self):
        raise TypeError("Fields are made by scan()")

    def __repr__(self):
        return (
            f"Fields(id={self.id!r}, task_class={self.task_class!r}, kind={self.kind!r}, priority={self.priority}, "
            f"payload={self.payload}, has_payload={self.has_payload})"
        )


cdef error(bytes data, Py_ssize_t offset, str reason):
    cdef const uint8_t *text = data
    cdef Py_ssize_t line = 1, column = 1, at
    for at in range(offset):
        if text[at] == c"\n":
            line += 1
            column = 1
        elif not is_tail(text[at]):
            column += 1
    return EnvelopeError(reason, line, column, offset)


cdef error_of(bytes data, Failure *failure):
    cdef Py_ssize_t offset = failure.at - <const uint8_t *> data
    cdef str reason
    if failure.reason == NO_MEMORY:
        return MemoryError()
    reason = _REASONS[failure.reason]
    if failure.reason == TWICE:
        reason = reason.format(SPELLING[failure.detail].decode())
    elif failure.detail:
        reason = reason.format(failure.detail)
    elif reason.startswith("expected"):
        if offset == len(data):
            reason += ", found the end of the file"
        elif 0x20 < failure.at[0] < 0x7F:
            reason += f", found {chr(failure.at[0])!r}"
        else:
            reason += f", found byte 0x{failure.at[0]:02X}"
    return error(data, offset, reason)


cdef unfit(bytes data, int key, Span value, str expected):
    cdef Py_ssize_t start = value.start - <const uint8_t *> data
    cdef bytes shown
    if value.start[0] == c"{":
        found = "an object"
    elif value.start[0] == c"[":
        found = "an array"
    else:  # as written, cut, and harmless in a log
        shown = data[start:value.end - <const uint8_t *> data]
        found = shown[:40].decode("ascii", "backslashreplace").replace("\x7f", "\\x7f")
        if len(shown) > 40:
            found += "..."
    return error(data, start, f"{SPELLING[key].decode()}={found}: expected {expected}")


cdef str text_of(Span inside):
    """Return the value of a checked string."""
    cdef Py_ssize_t length = inside.end - inside.start
    cdef char *room
    if memchr(inside.start, c"\\", length) == NULL:
        return PyUnicode_DecodeUTF8(<const char *> inside.start, length, NULL)
    room = <char *> malloc(length)
    if room == NULL:
        raise MemoryError
    try:
        return PyUnicode_DecodeUTF8(room, unescape(inside, room, length), NULL)
    finally:
        free(room)


cdef inline bint is_absent(Span value) noexcept nogil:
    return value.start == NULL or value.start[0] == c"n"


cdef str string(bytes data, Parts *parts, int key, int longest, bint may_be_empty=False):
    cdef Span value = parts.known[key]
    cdef Span inside
    cdef str text
    if is_absent(value):
        return None
    if value.start[0] == c'"':
        inside.start = value.start + 1
        inside.end = value.end - 1
        if inside.start == inside.end:
            if may_be_empty:
                return None
        # An escape takes at most six times the bytes of what it stands for.
        elif inside.end - inside.start <= 6 * longest:
            text = text_of(inside)
            if inside.end - inside.start <= longest or len(text.encode()) <= longest:
                return text
    raise unfit(data, key, value, f"a string of {0 if may_be_empty else 1} to {longest} bytes")


cdef object whole_number(bytes data, Parts *parts, int key, int least, int most):
    cdef Span value = parts.known[key]
    cdef const uint8_t *at = value.start
    cdef int number = 0, sign = 1
    if is_absent(value):
        return None
    if at[0] == c"-":
        sign = -1
        at += 1
    while at < value.end and is_digit(at[0]) and number < FAR_OUT:
        number = number * 10 + at[0] - c"0"
        at += 1
    if at == value.end and least <= sign * number <= most:
        return sign * number
    raise unfit(data, key, value, f"a whole number from {least} to {most}")


cdef object seconds(bytes data, Parts *parts, int key, double most, str expected):
    """most: the longest duration, which can't be 0; or -1 for a moment."""
    cdef Span value = parts.known[key]
    cdef const uint8_t *start = data
    cdef double number
    if is_absent(value):
        return None
    if value.start[0] == c"-" or is_digit(value.start[0]):
        number = float(data[value.start - start:value.end - start])
        if (0 < number <= most) if most > 0 else (0 <= number):
            return number
    raise unfit(data, key, value, expected)


cdef Fields fields_of(bytes data, Parts *parts):
    cdef Fields fields = Fields.__new__(Fields)
    cdef const uint8_t *start = data
    cdef Span part
    fields.id = string(data, parts, ID, 1024, True)  # a writer in Go sends "" for none
    fields.task_class = string(data, parts, CLASS, 100, True)
    fields.extras = ()
    fields.has_payload = parts.known[PAYLOAD].start != NULL
    if not fields.has_payload:
        fields.payload = (parts.whole.start - start, parts.whole.end - start)
        return fields
    part = parts.known[PAYLOAD]
    fields.payload = (part.start - start, part.end - start)
    fields.kind = string(data, parts, KIND, 100)
    fields.priority = whole_number(data, parts, PRIORITY, -100, 100) or 0
    fields.not_before = seconds(data, parts, NOT_BEFORE, -1, "seconds since 1970, 0 or more")
    fields.timeout_s = seconds(data, parts, TIMEOUT_S, 31622400, "seconds, more than 0 and at most 31622400")
    fields.max_attempts = whole_number(data, parts, MAX_ATTEMPTS, 1, 1000)
    fields.idempotency_key = string(data, parts, IDEMPOTENCY_KEY, 1024)
    fields.affinity = string(data, parts, AFFINITY, 1024)
    fields.traceparent = string(data, parts, TRACEPARENT, 1024)
    part = parts.known[RESOURCES]
    if not is_absent(part):
        if part.start[0] != c"{":
            raise unfit(data, RESOURCES, part, "an object")
        fields.resources = (part.start - start, part.end - start)
    if parts.extras_count:
        fields.extras = tuple([
            (
                text_of(parts.extras[place].key),
                parts.extras[place].value.start - start,
                parts.extras[place].value.end - start,
            )
            for place in range(parts.extras_count)
        ])
    return fields


cpdef Fields scan(bytes data, int max_depth=128, int max_extras=256):
    """Return what the envelope in data says, and where its payload lies.

    max_depth counts the envelope itself and is at most 1024; max_extras bounds the unknown keys, also where they are
    the payload because there is no payload key. Raises EnvelopeError for what is no envelope or breaks a bound.
    """
    cdef Parts parts
    cdef Failure failure
    cdef Py_ssize_t size
    cdef const uint8_t *start
    if data is None:
        raise TypeError("data must be bytes, not None")
    if not 1 <= max_depth <= DEEPEST:
        raise ValueError(f"max_depth={max_depth}: expected a number from 1 to {DEEPEST}")
    if max_extras < 0:
        raise ValueError(f"max_extras={max_extras}: expected 0 or more")
    memset(&parts, 0, sizeof(parts))
    failure.reason = FINE
    size = len(data)
    start = data
    try:
        if size < WORTH_A_RELEASE:
            read(start, size, max_depth, max_extras, &parts, &failure)
        else:
            with nogil:
                read(start, size, max_depth, max_extras, &parts, &failure)
        if failure.reason != FINE:
            raise error_of(data, &failure)
        return fields_of(data, &parts)
    finally:
        free(parts.extras)
