# cython: autotestdict=False
"""Budgets that processes share: places of the page, each with a name and eight numbers that change atomically.

What the numbers mean is up to those who use them. A place is taken by one compare-and-swap of the hash of its name
(FNV-1a, 64 bits), so that nobody can die half way: the name itself is for people, and every taker writes the same.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from dspy_fastpath.counters cimport BUDGET_NAME, BUDGET_VALUES, BUDGETS, BudgetBlock, Page

cdef extern from * nogil:
    """
    #include <stdint.h>
    #define budget_load(cell) __atomic_load_n((cell), __ATOMIC_ACQUIRE)
    #define budget_add(cell, n) __atomic_add_fetch((cell), (n), __ATOMIC_ACQ_REL)
    static inline int budget_swap(int64_t *cell, int64_t expected, int64_t desired) {
        return __atomic_compare_exchange_n(cell, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    static inline uint64_t budget_owner(uint64_t *cell) { return __atomic_load_n(cell, __ATOMIC_ACQUIRE); }
    static inline int budget_take(uint64_t *cell, uint64_t key) {
        uint64_t nobody = 0;
        return __atomic_compare_exchange_n(cell, &nobody, key, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) || nobody == key;
    }
    """
    int64_t budget_load(int64_t *cell)
    int64_t budget_add(int64_t *cell, int64_t n)
    bint budget_swap(int64_t *cell, int64_t expected, int64_t desired)
    uint64_t budget_owner(uint64_t *cell)
    bint budget_take(uint64_t *cell, uint64_t key)


cdef uint64_t hash_of(bytes name) noexcept:
    cdef uint64_t found = <uint64_t>0xcbf29ce484222325
    cdef const unsigned char *text = name
    cdef Py_ssize_t i
    for i in range(len(name)):
        found = (found ^ text[i]) * <uint64_t>0x100000001b3
    return found or 1  # 0 is nobody


cdef int64_t *cell_of(Page page, int place, int number, bint writing) except NULL:
    cdef BudgetBlock *block = page.budget_block(place, writing)
    if not 0 <= number < BUDGET_VALUES:
        raise IndexError(f"number {number}: a budget has {BUDGET_VALUES}")
    return &block.values[number]


def place_of(Page page not None, bytes name not None, bint make=True):
    """Return the place of the budget of this name, a free one where it had none; -1 where there is none to be had.

    The page shows names up to 55 bytes, longer ones by their beginning.
    """
    cdef uint64_t key = hash_of(name)
    cdef BudgetBlock *block
    cdef int place
    if not name or b"\0" in name:
        raise ValueError(f"name={name!r}: expected text without NUL")
    for place in range(BUDGETS):  # taken from the front and never given back: the first free one ends the search
        block = page.budget_block(place, make)
        if budget_owner(&block.owner) == key:
            return place
        if budget_owner(&block.owner) == 0:
            if not make:
                return -1
            if budget_take(&block.owner, key):
                memcpy(block.name, <const char *>name, min(len(name), <Py_ssize_t>BUDGET_NAME - 1))
                return place
    return -1


def names(Page page not None):
    """Return the names of all budgets, by their places."""
    cdef BudgetBlock *block
    cdef int place
    found = []
    for place in range(BUDGETS):
        block = page.budget_block(place, False)
        if budget_owner(&block.owner) == 0:
            break
        found.append(PyBytes_FromStringAndSize(block.name, BUDGET_NAME).rstrip(b"\0"))
    return found


def load(Page page not None, int place, int number):
    """Return a number of a budget."""
    return budget_load(cell_of(page, place, number, False))


def swap(Page page not None, int place, int number, long long expected, long long desired):
    """Change a number of a budget if it is what is expected; whether it was."""
    return bool(budget_swap(cell_of(page, place, number, True), expected, desired))


def add(Page page not None, int place, int number, long long n):
    """Add to a number of a budget, and return what it is then."""
    return budget_add(cell_of(page, place, number, True), n)
