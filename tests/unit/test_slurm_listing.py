import pytest
from dspy_supervisor.services.slurm.listing import (
    Incomplete,
    chunks,
    parse_sacct,
    parse_scontrol,
    parse_squeue,
    sacct_argv,
    sacct_by_name_argv,
)
from dspy_supervisor.services.slurm.roster import by_name, choose, indices, latest
from dspy_supervisor.services.slurm.states import STATES, Fate, fate_of, is_hopeless, look_up
from dspy_supervisor.task import Cause

HEAD = "JOBID|JOBID|STATE|SUBMIT_TIME|START_TIME|TIME|NODELIST|NAME|REASON|.\n"
SQUEUE = HEAD + (
    "132_2|132|PENDING|1795455202|N/A|0:00||dspy.x|JobArrayTaskLimit|.\n"
    "132_0|138|RUNNING|1795455202|1795455210|0:05|n[1-2]|dspy.x|None|.\n"
    "140|140|PENDING|1795455203|N/A|0:00||odd|name|ReqNodeNotAvail, UnavailableNodes:n3|.\n"
)
SACCT = (
    "JobID|JobIDRaw|State|ExitCode|DerivedExitCode|Submit|Start|End|ElapsedRaw|MaxRSS|AllocTRES|NodeList|JobName|\n"
    "5_7|13|NODE_FAIL|0:0|0:0|100|101|130|29||billing=1,cpu=1,gres/gpu=2,mem=64M,node=1|n1|dspy.x|\n"
    "5_7|13|CANCELLED by 0|0:0|5:0|131|140|150|10||cpu=1,gres/gpu=2|n2|dspy.x|\n"
    "5_7.batch|13.batch|CANCELLED|0:15||140|140|151|11|1.50M||n2|batch|\n"
    "5_7.0|13.0|OUT_OF_MEMORY|0:125||140|141|149|8|2G||n2|python|\n"
    "5_[10,12%2]|5|PENDING|0:0|0:0|100|Unknown|Unknown|0|||None assigned|dspy.x|\n"
)


def test_a_listing_gives_each_element_of_an_array_its_own_row():
    rows = parse_squeue(SQUEUE)
    assert [(row.key, row.job_id, row.index, row.state) for row in rows[:2]] == [
        ("132_2", "132", 2, "PENDING"),
        ("132_0", "132", 0, "RUNNING"),
    ]
    assert rows[1].nodes == "n[1-2]" and rows[1].started == 1795455210.0 and rows[0].started is None


def test_an_empty_listing_with_its_header_says_that_there_are_no_jobs():
    assert parse_squeue(HEAD) == []


@pytest.mark.parametrize("cut", [0, 1, 20, len(HEAD) - 1, len(HEAD) + 5, len(SQUEUE) - 1, len(SQUEUE) - 3])
def test_a_listing_that_is_cut_off_is_refused(cut):
    with pytest.raises(Incomplete):
        parse_squeue(SQUEUE[:cut])


def test_a_strangers_name_with_a_line_break_costs_that_row_alone():
    assert [row.key for row in parse_squeue(HEAD + "7|7|RUNNING|1|1|1|n1|a\nb|None|.\n" + SQUEUE[len(HEAD) :])] == [
        "132_2",
        "132_0",
        "140",
    ]


def test_accounting_rows_are_incarnations_with_their_steps_taken_in():
    first, last, waiting = parse_sacct(SACCT)
    assert first.state == "NODE_FAIL" and first.gpus == 2
    assert (last.state, last.derived, last.nodes, last.elapsed_s) == ("CANCELLED by 0", 5, "n2", 10.0)
    assert last.max_rss_bytes == 2 << 30 and last.step_out_of_memory
    assert waiting.ended is None and waiting.nodes == ""


@pytest.mark.parametrize("cut", [0, 4, 100, len(SACCT) - 1, len(SACCT) - 2])
def test_an_accounting_answer_that_is_cut_off_is_refused(cut):
    with pytest.raises(Incomplete):
        parse_sacct(SACCT[:cut])


def test_the_latest_incarnation_under_our_name_counts():
    rows = parse_sacct(SACCT + "5_7|13|COMPLETED|0:0|0:0|999|1000|1001|1||cpu=1|n9|allocation|\n")
    found = latest(rows, "dspy.x")
    assert found[7].state == "CANCELLED by 0"  # the id was given to another job later
    assert found[10].state == found[12].state == "PENDING"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("5", [0]),
        ("5_3", [3]),
        ("5_[1-3,7%2]", [1, 2, 3, 7]),
        ("5_[0-8:4]", [0, 4, 8]),
        ("2_[12,17,46,...", [12, 17, 46]),
        ("5_[]", []),
    ],
)
def test_a_key_names_its_elements(key, expected):
    assert indices(key) == expected


def test_the_controllers_own_record_stands_in_where_there_is_no_accounting():
    text = (
        "JobId=8 ArrayJobId=7 ArrayTaskId=0 JobName=dspy.x JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0 "
        "SubmitTime=10 StartTime=11 EndTime=15 NodeList=n1 TRES=cpu=1,gres/gpu=1 \n"
        "JobId=7 ArrayJobId=7 ArrayTaskId=1-2,5%1 JobName=dspy.x JobState=PENDING ExitCode=0:0 EndTime=Unknown NodeList= \n"
    )
    first, second = parse_scontrol(text)
    assert (first.key, first.code, first.ended, first.elapsed_s, first.nodes, first.gpus) == (
        "7_0",
        3,
        15.0,
        4.0,
        "n1",
        1,
    )
    assert second.key == "7" and second.ended is None


def test_commands_are_bounded_in_length():
    some = chunks(str(number) for number in range(4500))
    assert [len(ids) for ids in some] == [2000, 2000, 500]
    assert sacct_argv(["1", "2_3"])[-2:] == ("-j", "1,2_3")
    assert "--name=a,b" in sacct_by_name_argv(["a", "b"], 0.0)


def test_the_job_whose_id_is_known_counts_and_live_copies_are_named():
    rows = parse_squeue(
        HEAD
        + "".join(
            f"{key}|{key}|{state}|1|1|1|n1|dspy.x|None|.\n" for key, state in [("9", "RUNNING"), ("8", "PENDING")]
        )
    )
    assert choose(rows, "8")[0].job_id == "8" and [row.key for row in choose(rows, "8")[1]] == ["9"]
    assert choose(rows, "")[0].job_id == "9"
    assert choose([], "8") == (None, [])
    assert by_name(rows, "other") == {}


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("RUNNING", "RUNNING"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLE+", "CANCELLED"),
        ("CD", "COMPLETED"),
        ("completed", "COMPLETED"),
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
    ],
)
def test_a_state_is_known_however_it_is_written(written, word):
    assert look_up(written).word == word


@pytest.mark.parametrize("written", ["", "BRAND_NEW", "RE+", "?"])
def test_an_unknown_state_is_never_an_end(written):
    assert look_up(written).fate is Fate.UNKNOWN


def test_every_state_that_ends_a_task_has_its_cause():
    ends = {word: state for word, state in STATES.items() if state.fate in (Fate.FAILURE, Fate.AGAIN)}
    assert all(state.cause is not None and state.text for state in ends.values())
    assert {word for word, state in STATES.items() if state.fate is Fate.SUCCESS} == {"COMPLETED"}
    assert STATES["TIMEOUT"].cause is Cause.TIMEOUT and STATES["NODE_FAIL"].cause is Cause.LOST
    base = "PENDING RUNNING SUSPENDED COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY"
    assert set(base.split()) <= STATES.keys()


def test_a_pending_job_is_hopeless_or_held_by_its_reason():
    assert is_hopeless("PartitionTimeLimit") and is_hopeless("(DependencyNeverSatisfied)")
    assert not is_hopeless("ReqNodeNotAvail, UnavailableNodes:n1") and not is_hopeless("Resources")
    assert fate_of("PENDING", "JobHeldUser") is Fate.HELD and fate_of("PENDING", "Priority") is Fate.QUEUED
