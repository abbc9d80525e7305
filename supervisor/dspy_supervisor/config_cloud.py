"""The settings of rented machines: who rents them out, what they may cost, and how tasks reach them."""
# ruff: noqa: RUF009 (setting() returns dataclasses.field(), which that rule can't see)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config_embed import key
from .setting import choice, number, optional, path, seconds, setting, text, truth, whole, words

_LOOPBACK = r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?(/\S*)?"
_HOST = r"([A-Za-z0-9_][\w.-]{0,63}@)?[A-Za-z0-9][\w.-]{0,253}(:\d{1,5})?"
_MONEY = 1e6
PRICELESS = 0.0  #: of a bound on money that nobody set


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config has these
class CloudSettings:
    """The part of Config that is about rented machines. Money is in US dollars."""

    cloud_provider: str | None = setting(
        optional(choice("prime", "ssh")),
        "who has the machines that take the tasks of cloud_class: prime, Prime Intellect, which rents them out; ssh, the "
        "cloud_hosts; none: no task leaves this host for one",
        None,
    )
    cloud_class: str = setting(
        choice("gpu", "cpu_long", "cpu_short"),
        "class whose tasks run on these machines; it has no workers here unless their number is set",
        "gpu",
    )
    cloud_api: str = setting(
        text(rf"https://[^\s@]+|{_LOOPBACK}", "an https address: a key is sent there"),
        "where Prime Intellect's API is",
        "https://api.primeintellect.ai",
    )
    cloud_api_key: str | None = setting(
        optional(key()),
        "key of that API, with the rights Availability: read, and Instances: read and write",
        None,
        also=("PRIME_API_KEY",),
        secret=True,
    )
    cloud_team: str | None = setting(
        optional(text(r"[\w-]{1,100}", "the id of a team")), "team that pays; none: the key's owner", None
    )
    cloud_max_price: float = setting(
        number(0, _MONEY), "most that one machine may cost in an hour; prime needs it, and is sent it with each order", PRICELESS
    )  # fmt: skip
    cloud_spend_cap: float = setting(
        number(0, _MONEY),
        "most that all machines of this queue may cost together, ever; prime needs it. Before it is reached what runs is "
        "brought to an end, and at the cap all machines are deleted",
        PRICELESS,
        live=True,
    )
    cloud_pods: int = setting(whole(1, 64), "machines at once", 1, live=True)
    cloud_workers: int = setting(whole(1, 1024), "tasks at once on one machine", 1)
    cloud_idle_s: float = setting(seconds(0, 86400), "a machine without work for so long is deleted", 300.0, live=True)
    cloud_boot_s: float = setting(
        seconds(1, 86400), "a machine that takes no tasks so long after its order is deleted", 1800.0, live=True
    )
    cloud_lost_s: float = setting(
        seconds(1, 3600),
        "a machine that can't be reached for so long is taken for dead: it is deleted, and its tasks run again",
        180.0,
        live=True,
    )
    cloud_gpu: str = setting(
        text(r"[A-Za-z0-9_]{1,64}", "a type of GPU as the provider names it, as RTX4090_24GB or H100_80GB"),
        "type of GPU",
        "RTX4090_24GB",
    )
    cloud_gpus: int = setting(whole(1, 16), "GPUs of one machine", 1)
    cloud_regions: tuple[str, ...] = setting(
        words(r"[a-z_]{1,40}", "regions, as united_states"), "where machines may stand; empty: anywhere", ()
    )
    cloud_security: str | None = setting(
        optional(choice("secure_cloud", "community_cloud")), "whose machines; none: anybody's", "secure_cloud"
    )
    cloud_spot: bool = setting(truth(), "take machines that may be taken away at any moment, too", False)
    cloud_image: str = setting(text(r"[\w.-]{1,100}", "the name of an image"), "what they boot", "ubuntu_22_cuda_12")
    cloud_template: str | None = setting(
        optional(text(r"[\w-]{1,100}", "the id of a template")), "template of your own, in place of the image", None
    )
    cloud_disk_gb: int = setting(whole(0, 100_000, "what the offer comes with"), "disk", 0)
    cloud_hosts: tuple[str, ...] = setting(
        words(_HOST, "machines as user@host:port"), "machines of provider ssh, that are yours already", ()
    )
    cloud_ssh_key: Path | None = setting(
        optional(path()), "file of the private key for these machines; none: as ssh(1) finds it", None
    )
    cloud_ssh_options: tuple[str, ...] = setting(
        words(r"[A-Za-z]{1,40}=[^\x00-\x1f\x7f]{1,500}", "options as ssh_config(5) has them, NAME=VALUE"),
        "more options of ssh; they come before ours",
        (),
    )
    cloud_files: tuple[str, ...] = setting(
        words(r"[^\x00-\x1f\x7f]{1,4096}", "paths"),
        "files and folders that are copied to each machine, into the folder that its handlers are imported from",
        (),
    )
    cloud_setup: str = setting(
        text(r"[^\x00]{0,10000}", "a script"),
        "what sh runs once on each machine before it takes tasks, as: pip install dspy-supervisor",
        "",
    )
    cloud_program: str = setting(
        text(r"[^\x00-\x1f\x7f]{1,500}", "a command"), "how this program is called there", "dspy-supervisor"
    )
    cloud_start: tuple[str, ...] = setting(
        words(r"[^\x00-\x1f\x7f]{1,500}", "options of start"),
        "more options of the start there; the handlers and kinds of this host are given anyway",
        (),
    )
    cloud_folder: str = setting(
        text(r"[A-Za-z0-9_./~-]{1,200}", "a path"), "folder that holds all of it there", "dspy-cloud"
    )


def lacking(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return which setting the chosen provider can't do without, and what is expected; None where it has all."""
    provider = values["cloud_provider"]
    if provider == "ssh" and not values["cloud_hosts"]:
        return "cloud_hosts", "at least one machine, as user@host, with cloud_provider=ssh"
    if provider != "prime":
        return None
    if not values["cloud_api_key"]:
        return (
            "cloud_api_key",
            "a key of Prime Intellect's API, in PRIME_API_KEY or a file that PRIME_API_KEY_FILE names",
        )
    for name in ("cloud_max_price", "cloud_spend_cap"):
        if values[name] <= PRICELESS:
            return name, "more than 0 dollars: nothing is rented without this bound"
    return None
