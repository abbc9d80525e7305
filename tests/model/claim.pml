/* One task on its way through the queue: put, claim, finish, retry, recovery; deaths, false suspicion, lost replies.

   A file is a bit for each name it may have; a rename clears one bit and sets another in one step. What a process does
   between two system calls is no step of its own. A lost reply is a rename that was done and says ENOENT; a failed one was
   not done and says EIO: the process sees the same in both, "unknown", and must settle it by what only it can have made.

   process        mirrors
   producer       Producer.put: temporary file, rename without replacing, settled by its own source
   worker         TaskQueue.claim, finish, retry: claim, record, commit, publish, forget
   supervisor     recovery.take_from_dead, recovery.settle_commits, and the sweep that makes delayed tasks due

   A planted bug is a name given by -D; each must be found. */

#define WORKERS 3   /* incarnations; the last one never dies, so that what is left can drain */
#define ATTEMPTS 6  /* more than deaths, suspicions and retries can use up */

bool tmp, pending[ATTEMPTS], delayed[ATTEMPTS], won[ATTEMPTS], record[ATTEMPTS], done;
bool claimed[18];                       /* [worker * ATTEMPTS + attempt] */
bool alive[WORKERS] = true;
bool acked, putter_over;
byte commits, owner[ATTEMPTS];
byte deaths = 2, suspicions = 1, unknowns = 2, retries = 1;   /* how many of each may still happen */

#define CLAIM(w, a) claimed[(w) * ATTEMPTS + (a)]
#define any6(x) (x[0] + x[1] + x[2] + x[3] + x[4] + x[5])
#define claims(w) (CLAIM(w, 0) + CLAIM(w, 1) + CLAIM(w, 2) + CLAIM(w, 3) + CLAIM(w, 4) + CLAIM(w, 5))
#define ended (done || any6(won) > 0)
#define places (any6(pending) + any6(delayed) + claims(0) + claims(1) + claims(2) + (ended -> 1 : 0))

/* After each step: an accepted task is under exactly one name, and was completed at most once. */
inline check() {
    assert(!acked || places == 1);
    assert(commits <= 1)
}

/* `moved` tells what the rename said: 1 done, 0 no such source, 2 unknown. */
inline rename(source, target) {
    if
    :: source -> source = false; target = true; moved = 1
    :: source && unknowns > 0 -> unknowns--; source = false; target = true; moved = 2  /* done, its reply lost */
    :: unknowns > 0 -> unknowns--; moved = 2                                           /* not done */
    :: !source -> moved = 0
    fi
}

#define MAY_DIE if :: atomic { deaths > 0 && me < WORKERS - 1 -> deaths--; goto dead } :: skip fi

active proctype producer() {
    byte moved;
    tmp = true;
    #ifdef BUG_ACKNOWLEDGED_EARLY
    atomic { acked = true; check() }
    #endif
again:
    if :: atomic { deaths > 0 -> deaths--; goto over } :: skip fi;
    atomic { rename(tmp, pending[0]); check() };
    if
    :: moved == 1 -> skip
    #ifdef BUG_PUT_AGAIN_WHEN_UNKNOWN
    :: moved != 1 -> tmp = true; goto again              /* written anew, as if nothing had happened */
    #else
    :: moved != 1 && tmp -> goto again                   /* our own source is still there: it was not done */
    :: moved != 1 && !tmp -> skip                        /* gone: nobody else could have moved it */
    #endif
    fi;
    atomic { acked = true; check() };
over:
    atomic { tmp = false; putter_over = true }
}

proctype worker(byte me) {
    byte a, moved;
claim:
    if
    :: atomic { pending[0] -> a = 0 }
    :: atomic { pending[1] -> a = 1 }
    :: atomic { pending[2] -> a = 2 }
    :: atomic { pending[3] -> a = 3 }
    :: atomic { pending[4] -> a = 4 }
    :: atomic { pending[5] -> a = 5 }
    :: atomic { ended -> goto rest }
    :: atomic { putter_over && places == 0 -> goto rest }
    fi;
    MAY_DIE;
    atomic { rename(pending[a], CLAIM(me, a)); check() };
    #ifdef BUG_CLAIM_NOT_SETTLED
    if :: moved == 1 -> skip :: else -> goto claim fi;
    #else
    if :: CLAIM(me, a) -> skip :: else -> goto claim fi; /* only we can have made that name */
    #endif
    MAY_DIE;                                             /* the handler runs here */
    if
    :: atomic { retries > 0 -> retries-- };
        MAY_DIE;
retry:
        atomic { rename(CLAIM(me, a), delayed[a + 1]); check() };
        if
        :: moved == 2 && CLAIM(me, a) -> goto retry
        :: else -> goto claim
        fi
    :: skip
    fi;
    #ifndef BUG_RECORD_AFTER_COMMIT
    record[a] = true;
    #endif
    MAY_DIE;
    #ifdef BUG_DONE_THEN_UNLINK
    atomic { done = true; commits++; check() };
    MAY_DIE;
    atomic { CLAIM(me, a) = false; check() };
    goto rest;
    #endif
commit:
    atomic {
        rename(CLAIM(me, a), won[a]);
        if :: moved == 1 || (moved == 2 && !CLAIM(me, a) && won[a] && owner[a] == 0) -> commits++; owner[a] = me + 1
           :: else -> skip
        fi;
        check()
    };
    if
    #ifdef BUG_ENOENT_IS_A_FACT
    :: moved != 1 -> record[a] = false; goto claim       /* takes the lost reply for a fence, and drops the record */
    #else
    :: moved != 1 && CLAIM(me, a) -> goto commit         /* it was not done */
    :: moved != 1 && !CLAIM(me, a) && won[a] -> assert(owner[a] == me + 1) /* ours: nobody else can make that name */
    :: moved != 1 && !CLAIM(me, a) && !won[a] ->         /* fenced, or published and forgotten for us */
        record[a] = false;
        goto claim
    #endif
    :: moved == 1 -> skip
    fi;
    MAY_DIE;
    #ifdef BUG_RECORD_AFTER_COMMIT
    record[a] = true;
    #endif
    #ifdef BUG_FORGOTTEN_BEFORE_PUBLISHED
    atomic { won[a] = false; check() };
    MAY_DIE;
    #endif
publish:
    atomic { rename(record[a], done); check() };
    if :: record[a] -> goto publish :: else -> skip fi;
    MAY_DIE;
    atomic { won[a] = false; check() };
    goto claim;
dead:
    alive[me] = false;
rest:
    skip
}

/* An owner that is dead, or is taken for dead: by its own rename, so that exactly one of the two wins. */
#define MAY_TAKE(w, a) (CLAIM(w, a) && (!alive[w] || suspicions > 0))
inline take(w, a) {
    if :: alive[w] -> suspicions-- :: else -> skip fi;
    #ifndef BUG_TAKEN_BY_A_COPY
    CLAIM(w, a) = false;
    #endif
    #ifdef BUG_NAME_USED_AGAIN
    pending[a] = true;
    #else
    pending[a + 1] = true;
    #endif
    check()
}
#define TAKE(w, a) :: atomic { MAY_TAKE(w, a) -> take(w, a) }
#define TAKES(w) TAKE(w, 0) TAKE(w, 1) TAKE(w, 2) TAKE(w, 3) TAKE(w, 4)
#define DUE(a) :: atomic { delayed[a] -> delayed[a] = false; pending[a] = true; check() }
/* A commit whose owner may be dead: publish, and only then forget. The owner may be doing the same. */
#define PUBLISH(a) :: atomic { won[a] && record[a] -> record[a] = false; done = true; check() }
#define FORGET(a) :: atomic { won[a] && !record[a] && done -> won[a] = false; check() }

active proctype supervisor() {
    do
    TAKES(0) TAKES(1) TAKES(2)
    DUE(1) DUE(2) DUE(3) DUE(4) DUE(5)
    #ifndef BUG_COMMITS_OF_THE_DEAD_LEFT
    PUBLISH(0) PUBLISH(1) PUBLISH(2) PUBLISH(3) PUBLISH(4) PUBLISH(5)
    FORGET(0) FORGET(1) FORGET(2) FORGET(3) FORGET(4) FORGET(5)
    #endif
    :: timeout -> break
    od;
    /* Nothing more can happen: what was accepted has ended, and has its record. */
    assert(!acked || done)
}

init {
    atomic { run worker(0); run worker(1); run worker(2) }
}
