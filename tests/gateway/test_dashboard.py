"""The dashboard in a real browser, fed by a real supervisor with real tasks: what a person sees, does, and can rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.conftest import Start, supervisors, until
from tests.nvml import GIB, RTX_4090, Script

from .api import PLAY, SETTINGS, Api
from .browser import Browser, browser
from .conftest import TOKEN

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Api]:
    """A supervisor with two places, a GPU, and a few tasks that ended: two done, three failed in two ways."""
    folder = tmp_path_factory.mktemp("dashboard")
    script = Script(folder / "nvml.script", nvml_library)
    script.gpu(0, uuid="GPU-5c2d1f0e", **(RTX_4090 | {"utilization": 91, "used": 21 * GIB}))
    with supervisors(folder) as start:
        chosen = {name: value for name, value in SETTINGS.items() if name != "metrics_port"}
        one = start(
            "--http",
            *("--workers", "cpu_short=2", "--workers", "gpu=1"),
            handlers={"cpu_short": PLAY, "gpu": PLAY},
            settings={"http_port": 0, "enable_gpu": "true", **chosen},
            environ=script.environ,
        )
        api = Api(one, folder)
        for number in range(2):
            api.put({"n": number}, id=f"good{number}")
        for number in range(2):
            api.put({"do": "raise", "message": f"shard {number} of corpus.txt is not UTF-8"}, id=f"bad{number}")
        api.put({"do": "refuse"}, id="bad2")
        for task_id in ("good0", "good1", "bad0", "bad1", "bad2"):
            api.result(task_id)
        yield api


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """One browser for all."""
    with browser() as one:
        yield one


@pytest.fixture
def show(api: Api, window: Browser) -> Iterator[Callable[..., Browser]]:
    """A function that shows the dashboard, when its first news are in; in the end nothing may have gone wrong in it."""
    window.complaints()

    def look(path: str = "", **options: object) -> Browser:
        return shown(window, api, path, **options)

    yield look
    assert window.complaints() == []


def shown(window: Browser, api: Api, path: str = "", **options: object) -> Browser:
    window.open(f"http://{api.host}:{api.port}/{path}", **options)  # type: ignore[arg-type]
    window.wait("the first news", "document.body.hasAttribute('data-ready')")
    return window


def test_it_tells_what_the_classes_the_gpu_and_the_processes_do(api: Api, show: Callable[..., Browser]):
    page = show()
    page.sees(".class", "cpu_short")
    page.sees("#headline", "Nothing waits, nothing runs.")
    task_id, gate = api.gate()
    page.sees("#headline", "1 task runs")
    page.sees(".class", "1 of 2 places")
    gate.touch()
    api.result(task_id)
    page.sees("#headline", "Nothing waits, nothing runs.")
    page.sees(".gpu", "NVIDIA GeForce RTX 4090")
    page.sees(".gpu", "91 %")
    page.sees(".gpu", "21.5 GiB of 24 GiB")
    page.sees("#services li", "telemetry")
    page.sees("#tasks td.id", task_id)
    assert page.run("return document.querySelectorAll('.plot canvas').length") == 4


def test_failures_are_grouped_by_what_went_wrong_with_the_traceback(show: Callable[..., Browser]):
    page = show()
    page.sees(".group summary", "2×")
    groups = page.texts(".group summary")
    assert len(groups) == 2
    place = next(place for place, text in enumerate(groups) if "ValueError in cpu_short" in text)
    page.run("document.querySelectorAll('.group summary')[arguments[0]].click()", place)
    page.sees(".group[open] .trace", "corpus.txt is not UTF-8")
    page.press("See the latest of them")
    page.sees("#task .story li", "submitted to class cpu_short")
    page.sees("#task .story li", "attempt 1 failed")
    page.sees("#task .story li", "Traceback")
    page.sees("#task .part", "Whole record")


def test_what_a_task_says_is_text_and_never_part_of_the_page(api: Api, show: Callable[..., Browser]):
    said = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script><b id=planted>b</b>"
    api.put({"do": "raise", "message": said, said: said}, id="markup")
    api.result("markup")
    page = show("#task=markup")
    page.sees("#task .story li", "<img src=x onerror=")
    page.sees("#task .part", "Whole record")
    assert page.run("return document.querySelectorAll('#planted, main script, #task script, img[onerror]').length") == 0
    assert page.run("return document.title") != "taken"


def test_a_task_is_found_by_words_and_read_by_keys_alone(show: Callable[..., Browser]):
    page = show()
    page.write("#search input", "corpus.txt")
    page.wait(
        "what fits",
        "[...document.querySelectorAll('#tasks td.id')].map((one) => one.innerText).sort().join() === 'bad0,bad1'",
    )
    page.keys(Keys.TAB, Keys.TAB)  # to the state, to the class
    page.keys(Keys.TAB)
    page.keys(Keys.ENTER)
    page.sees("#task-title", "bad")
    assert page.run("return location.hash").startswith("#task=bad")
    page.keys(Keys.ESCAPE)
    page.gone("#task")
    assert page.run("return location.hash") == ""
    page.write("#search input", "nothing like this")
    page.sees("#tasks .empty", "No task fits this search.")


def test_an_address_leads_to_a_task_and_one_that_is_gone_is_said_to_be(
    window: Browser, api: Api, show: Callable[..., Browser]
):
    page = show("#task=good1")
    page.sees("#task-title", "good1")
    page.sees("#task .part", '"n": 1')
    page.sees("#task .story li:last-child", "done in")
    shown(window, api, "#task=never")
    page.sees("#task .facts", "There is no such task")
    assert all("404" in line for line in window.complaints())


def test_a_running_task_is_cancelled_only_when_that_is_confirmed(api: Api, show: Callable[..., Browser]):
    task_id, _ = api.gate()
    page = show(f"#task={task_id}")
    page.sees("#task .explain", "It runs in worker")
    page.press("Cancel this task")
    page.sees("#question", "its processes are ended")
    page.press("Leave it", "#question")
    page.gone("#question")
    assert api.get(f"/v1/tasks/{task_id}").json["state"] == "claimed"
    page.press("Cancel this task")
    page.press("Cancel the task")
    page.sees("#notice", f"Cancelled: {task_id}.")
    page.sees("#task .story li", "failed (cancelled)")
    assert api.get(f"/v1/tasks/{task_id}").json["cause"] == "cancelled"


def test_a_failed_task_is_tried_again(api: Api, show: Callable[..., Browser]):
    task_id = api.put({"do": "raise"}, max_attempts=1)
    api.result(task_id)
    first = api.read(f"/v1/tasks/{task_id}")["completed_at"]
    page = show(f"#task={task_id}")
    page.sees("#task .state", "failed")
    page.press("Try it again", "#task")
    page.press("Try it again", "#question")
    page.sees("#notice", f"Back in the queue: {task_id}.")
    until(lambda: api.read(f"/v1/tasks/{task_id}")["completed_at"] not in (None, first), "it has run again")


def test_a_class_is_paused_with_a_reason_resumed_and_limited(api: Api, show: Callable[..., Browser]):
    page = show()
    page.press("Pause cpu_short")
    page.write("#question input", "the disk is being changed")
    page.press("Pause", "#question")
    page.sees("#headline", "cpu_short is paused")
    waits = api.put({"n": 7})
    assert "the disk is being changed" in api.get(f"/v1/tasks/{waits}/explain").json["explanation"]
    page.sees("#headline", "cpu_short is paused, 1 task waits")
    page.press("Resume cpu_short")
    page.press("Resume", "#question")
    assert api.result(waits)["status"] == "done"
    page.press("Limit of cpu_short")
    page.write("#question input", "1")
    page.press("Set the limit")
    page.sees(".class", "0 of 1 place · set by hand")
    page.sees("#changes", "2 → 1")
    api.ask("PUT", "/v1/classes/cpu_short/limit", {"limit": 2})


def test_a_chart_is_read_by_arrow_keys(show: Callable[..., Browser]):
    page = show()
    page.run("document.querySelector('.chart').focus()")
    page.wait("three moments", "uPlot.sync('moments').plots[0]?.data[0].length > 2")
    page.keys(Keys.ARROW_LEFT)
    page.wait("a moment, with its time", "/^[0-9][0-9]:/.test(document.querySelector('.chart .readout').innerText)")
    assert page.run("return document.querySelector('.chart .readout').getAttribute('aria-live')") == "polite"


@pytest.mark.parametrize(
    ("width", "colours", "path"),
    [(1280, "light", ""), (1280, "dark", "#task=bad0"), (390, "light", "#task=good0"), (390, "dark", "")],
)
def test_nothing_keeps_people_out(show: Callable[..., Browser], tmp_path: Path, width: int, colours: str, path: str):
    page = show(path, width=width, colours=colours)
    page.sees(".group summary", "×")
    page.sees("#tasks td.id", "bad0")
    if path:
        page.sees("#task .story", "submitted")
    else:
        page.run("document.querySelector('.group summary').click()")
    assert page.barriers() == []
    page.picture(tmp_path / "page.png")


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(show: Callable[..., Browser], width: int):
    page = show(width=width)
    page.sees("#tasks td.id", "bad0")
    assert page.run("return document.documentElement.scrollWidth") <= width
    cut = page.run("""return [...document.querySelectorAll('main button, main .value')].filter((one) =>
        one.checkVisibility() && (one.getBoundingClientRect().right > innerWidth || one.scrollWidth > one.clientWidth + 1)
        ).map((one) => one.outerHTML)""")
    assert cut == []


def test_without_the_token_it_only_shows_and_with_it_it_asks_before_it_acts(
    tmp_path: Path, supervisor: Start, window: Browser
):
    (tmp_path / "token").write_text(TOKEN + "\n")
    one = supervisor("--http", settings={"http_port": 0, "http_token_file": tmp_path / "token"})
    api = Api(one, tmp_path)
    page = shown(window, api)
    page.sees("#tasks .empty", "dspy-supervisor submit --queue-dir")
    assert not any(page.is_shown(f"[aria-label='{name}']") for name in ("Pause cpu_short", "Limit of cpu_short"))
    page.press("Read only")
    page.write("#question input", TOKEN)
    page.press("Use it", "#question")
    page.press("Pause cpu_short")
    page.press("Pause", "#question")
    page.sees("#headline", "cpu_short is paused")
    assert TOKEN not in page.run("return document.documentElement.outerHTML + location.href + document.cookie")
    assert page.barriers() == []


def test_a_lost_connection_is_said_with_its_age_and_found_again(tmp_path: Path, supervisor: Start, window: Browser):
    one = supervisor("--http", settings={"http_port": 0})
    api = Api(one, tmp_path)
    page = shown(window, api)
    assert page.text("#connection") == "Live"
    one.stop()
    page.sees("#connection", "Connection lost")
    page.sees("#lost", "What you see is of ")
    assert page.barriers() == []
    assert not page.is_shown("#classes-actions button"), "nothing is ordered where nobody listens"
    supervisor("--http", settings={"http_port": api.port})
    page.sees("#connection", "Live")
    page.gone("#lost")
    window.complaints()
