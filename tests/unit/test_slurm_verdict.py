from dataclasses import replace

import pytest
from dspy_supervisor.jobfolder import Sentinel
from dspy_supervisor.services.slurm.listing import AccountRow, JobRow
from dspy_supervisor.services.slurm.states import LIVE, STATES
from dspy_supervisor.services.slurm.verdict import (
    Accounting,
    Do,
    Evidence,
    Lost,
    Settle,
    judge,
    reconcile,
)
from dspy_supervisor.task import Cause

NAME = "dspy.x"
BEGAN = Sentinel(0, {"host": "n1", "at": 1.0})
OK = Sentinel(0, {"host": "n1"}, {"ok": True, "exit_code": 0, "max_rss_bytes": 7})
BAD = Sentinel(0, {"host": "n1"}, {"ok": False, "exit_code": 3, "cause": "exit", "message": "ended with 3"})


def row(state: str, reason: str = "None") -> JobRow:
    return JobRow("7", "7", None, state, NAME, reason, "n1", 1.0, 2.0)


def account(state: str, **more) -> AccountRow:
    return AccountRow("7", NAME, state, **{"submitted": 1.0, "started": 2.0, "ended": 5.0, "elapsed_s": 3.0, **more})


def evidence(**known) -> Evidence:
    usual = {
        "row": None,
        "listings": 0,
        "missing_s": 0.0,
        "account": None,
        "accounting": Accounting.ON,
        "over_s": 0.0,
        "sentinel": Sentinel(),
    }
    return Evidence(**(usual | known))


def gone(**known) -> Evidence:
    """Missing from every listing for long."""
    return evidence(**({"listings": 20, "missing_s": 500.0, "over_s": 500.0} | known))


@pytest.mark.parametrize("word", [word for word, state in STATES.items() if state.fate in LIVE])
def test_a_live_job_is_waited_for_whatever_the_accounting_says(word):
    assert judge(evidence(row=row(word), account=account("FAILED", code=1))).do is Do.WAIT


@pytest.mark.parametrize("word", ["BRAND_NEW", ""])
def test_a_state_nobody_knows_is_waited_for(word):
    assert judge(evidence(row=row(word), over_s=1e9)).do is Do.WAIT


def test_success_needs_the_jobs_own_word():
    assert judge(evidence(row=row("COMPLETED"), account=account("COMPLETED"), sentinel=OK)).do is Do.SUCCEED
    without = evidence(row=row("COMPLETED"), account=account("COMPLETED"), sentinel=BEGAN)
    assert judge(without).do is Do.WAIT  # the file may be seen late
    late = judge(replace(without, over_s=6.0))
    assert (late.do, late.cause) == (Do.FAIL, Cause.EXIT) and "no word" in late.message


def test_a_job_that_was_launched_twice_and_lost_its_first_copy_is_nobodys_fault():
    twice = evidence(
        row=row("COMPLETED"), account=account("COMPLETED"), sentinel=replace(BEGAN, twice=True), over_s=6.0
    )
    assert (judge(twice).do, judge(twice).cause) == (Do.AGAIN, Cause.LOST)


def test_a_job_cancelled_for_an_id_that_a_forgotten_one_has_is_nobodys_fault():
    known = {"row": row("CANCELLED"), "account": account("CANCELLED"), "over_s": 99.0}
    assert judge(evidence(**known, shares_id=True)).do is Do.AGAIN
    assert judge(evidence(**known)).cause is Cause.CANCELLED
    assert judge(evidence(**known, shares_id=True, sentinel=BEGAN)).cause is Cause.CANCELLED


def test_what_is_missing_is_neither_done_nor_lost_before_long():
    assert judge(evidence()).do is Do.WAIT
    assert judge(evidence(listings=1, missing_s=1.0, over_s=1.0)).do is Do.WAIT
    assert judge(evidence(listings=2, missing_s=300.0, over_s=300.0)).do is Do.WAIT
    assert judge(evidence(listings=20, missing_s=59.0, over_s=59.0)).do is Do.WAIT


def test_what_no_source_knows_for_long_is_lost_and_tried_again():
    verdict = judge(gone())
    assert (verdict.do, verdict.cause) == (Do.AGAIN, Cause.LOST)
    assert judge(gone(accounting=Accounting.OFF)).do is Do.AGAIN


def test_a_job_that_beats_is_not_lost_nor_one_whose_accounting_is_silent():
    assert judge(gone(sentinel=BEGAN, beats=True)).do is Do.WAIT
    assert judge(gone(accounting=Accounting.FAILING)).do is Do.WAIT


def test_a_forgotten_job_is_judged_by_its_own_word():
    assert judge(gone(sentinel=OK)).do is Do.SUCCEED
    assert judge(gone(sentinel=OK, accounting=Accounting.FAILING)).do is Do.SUCCEED
    verdict = judge(gone(sentinel=BAD))
    assert (verdict.do, verdict.cause, verdict.used["exit_code"]) == (Do.FAIL, Cause.EXIT, 3)


def test_a_forgotten_job_is_judged_by_the_accounting_once_it_tells_an_end():
    assert judge(gone(account=account("CANCELLED by 0"))).cause is Cause.CANCELLED
    open_end = judge(evidence(listings=3, missing_s=9.0, over_s=9.0, account=account("CANCELLED", ended=None)))
    assert open_end.do is Do.WAIT
    assert judge(evidence(listings=3, missing_s=9.0, over_s=9.0, account=account("PENDING"))).do is Do.WAIT


@pytest.mark.parametrize(
    ("state", "do", "cause"),
    [
        ("TIMEOUT", Do.FAIL, Cause.TIMEOUT),
        ("DEADLINE", Do.FAIL, Cause.TIMEOUT),
        ("OUT_OF_MEMORY", Do.FAIL, Cause.OUT_OF_MEMORY),
        ("CANCELLED by 0", Do.FAIL, Cause.CANCELLED),
        ("NODE_FAIL", Do.AGAIN, Cause.LOST),
        ("BOOT_FAIL", Do.AGAIN, Cause.LOST),
        ("PREEMPTED", Do.AGAIN, Cause.LOST),
    ],
)
@pytest.mark.parametrize("sentinel", [BEGAN, Sentinel(0, {}, {"ok": False, "stopped": True, "signal": "SIGTERM"})])
def test_the_clusters_word_counts_where_it_ended_the_job(state, do, cause, sentinel):
    verdict = judge(gone(account=account(state), sentinel=sentinel))
    assert (verdict.do, verdict.cause) == (do, cause)
    assert verdict.used["slurm_state"] == state.split()[0] and verdict.used["elapsed_s"] == 3.0


def test_what_was_done_before_the_end_came_is_done():
    assert judge(gone(account=account("NODE_FAIL"), sentinel=OK)).do is Do.SUCCEED
    assert judge(gone(account=account("TIMEOUT"), sentinel=OK)).do is Do.SUCCEED
    assert judge(evidence(row=row("PENDING", "BeginTime"), sentinel=OK)).do is Do.SUCCEED  # requeued for its node


def test_the_controllers_word_on_a_job_it_remembers_beats_the_accounting():
    seen = evidence(row=row("CANCELLED"), account=account("FAILED", code=0), over_s=30.0)
    assert judge(seen).cause is Cause.CANCELLED


def test_the_accounting_gets_its_time_to_tell_what_was_used():
    young = evidence(row=row("COMPLETED"), sentinel=OK, over_s=2.0)
    assert judge(young).do is Do.WAIT
    assert judge(replace(young, over_s=20.0)).do is Do.SUCCEED
    assert judge(replace(young, accounting=Accounting.OFF)).do is Do.SUCCEED
    assert judge(replace(young, accounting=Accounting.FAILING)).do is Do.SUCCEED
    told = judge(replace(young, account=account("COMPLETED", max_rss_bytes=99, nodes="n[1-2]")))
    assert told.used["max_rss_bytes"] == 99 and told.used["nodes"] == "n[1-2]"


@pytest.mark.parametrize(
    ("facts", "do", "cause"),
    [
        ({"code": 4}, Do.FAIL, Cause.EXIT),
        ({"signal": 11}, Do.FAIL, Cause.SIGNAL),
        ({"signal": 53}, Do.AGAIN, Cause.LOST),
        ({"code": 1, "step_out_of_memory": True}, Do.FAIL, Cause.OUT_OF_MEMORY),
    ],
)
def test_a_failure_without_a_witness_is_judged_by_slurms_code(facts, do, cause):
    verdict = judge(gone(account=account("FAILED", **facts)))
    assert (verdict.do, verdict.cause) == (do, cause)


def test_a_checkpoint_goes_on_in_the_next_job_and_a_stop_is_no_fault():
    saved = Sentinel(0, {}, {"ok": False, "exit_code": 85, "requeue": True})
    assert judge(gone(account=account("FAILED", code=85), sentinel=saved)).do is Do.AGAIN
    assert judge(gone(account=account("TIMEOUT"), sentinel=saved)).do is Do.AGAIN
    stopped = Sentinel(0, {}, {"ok": False, "exit_code": 143, "stopped": True})
    assert judge(gone(account=account("FAILED", code=143), sentinel=stopped)).do is Do.AGAIN


def test_the_result_of_an_older_copy_is_refused():
    """A node that was cut off goes on with restart 0, while restart 1 runs elsewhere: the exit of 0 is not read at all."""
    assert judge(evidence(row=row("RUNNING"), sentinel=Sentinel(1, {"host": "n2"}, None))).do is Do.WAIT


def test_a_job_that_would_never_start_is_ended_and_its_task_refused():
    verdict = judge(evidence(row=row("PENDING", "PartitionTimeLimit")))
    assert (verdict.do, verdict.cause) == (Do.KILL, Cause.REFUSED) and "PartitionTimeLimit" in verdict.message
    ended = judge(gone(account=account("CANCELLED by 0"), ended=(Cause.REFUSED, "never")))
    assert (ended.do, ended.cause) == (Do.FAIL, Cause.REFUSED)
    assert judge(evidence(row=row("PENDING", "Resources"))).do is Do.WAIT
    assert judge(evidence(row=row("PENDING", "JobHeldAdmin"))).do is Do.WAIT


def test_a_job_that_gives_no_sign_of_life_is_ended_and_its_task_tried_again():
    assert judge(evidence(row=row("RUNNING"), sentinel=BEGAN, silent=True)).do is Do.KILL
    assert judge(evidence(row=row("SUSPENDED"), sentinel=BEGAN, silent=True)).do is Do.WAIT
    ended = judge(gone(account=account("CANCELLED by 0"), sentinel=BEGAN, ended=(Cause.LOST, "silent")))
    assert (ended.do, ended.cause) == (Do.AGAIN, Cause.LOST)


def test_a_cancel_is_repeated_until_the_job_is_over_and_too_late_for_one_that_is_done():
    asked = (Cause.CANCELLED, "cancelled")
    assert judge(evidence(row=row("RUNNING"), ended=asked)).do is Do.KILL
    assert judge(gone(account=account("COMPLETED"), sentinel=OK, ended=asked)).do is Do.SUCCEED
    stopped = Sentinel(0, {}, {"ok": False, "stopped": True})
    assert judge(gone(account=account("CANCELLED by 0"), sentinel=stopped, ended=asked)).cause is Cause.CANCELLED


def test_an_element_that_is_missing_from_its_array_was_cancelled_while_it_waited():
    missing = evidence(listings=3, missing_s=6.0, over_s=6.0, siblings=True)
    assert (judge(missing).do, judge(missing).cause) == (Do.FAIL, Cause.CANCELLED)
    assert judge(replace(missing, siblings=False)).do is Do.WAIT
    assert judge(replace(missing, listings=2)).do is Do.WAIT
    assert judge(replace(missing, sentinel=BEGAN)).do is Do.WAIT


LOST = Lost(ids=(), absences=2, absent_s=31.0, apart_s=30.0, accounting=Accounting.ON, asked=True)


def test_a_submission_is_made_again_only_when_nobody_knows_of_it():
    assert reconcile(LOST) is Settle.AGAIN
    assert reconcile(replace(LOST, accounting=Accounting.OFF, asked=False)) is Settle.AGAIN


@pytest.mark.parametrize(
    "less",
    [{"absences": 1}, {"absent_s": 29.0}, {"asked": False}, {"accounting": Accounting.FAILING}],
)
def test_one_doubt_is_enough_to_wait(less):
    assert reconcile(replace(LOST, **less)) is Settle.WAIT


def test_a_job_found_by_any_source_is_adopted():
    assert reconcile(replace(LOST, ids=("7",))) is Settle.ADOPT
