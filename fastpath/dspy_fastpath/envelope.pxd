"""What other modules of this package may call without a detour through Python."""


cdef class Fields:
    cdef readonly object id, task_class, kind
    cdef readonly int priority
    cdef readonly object not_before, timeout_s, max_attempts
    cdef readonly object idempotency_key, affinity, traceparent
    cdef readonly object resources
    cdef readonly tuple payload, extras
    cdef readonly bint has_payload


cpdef Fields scan(bytes data, int max_depth=*, int max_extras=*)
