"""Prime Intellect's machines, by its REST API (docs.primeintellect.ai/api-reference).

An order is never sent twice for one machine: where its answer is lost, the listing tells whether it was carried out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx2
import stamina

from ... import __version__
from ...config import Config
from .provider import Address, CloudError, Machine, Offer, Stage

_TIMEOUT_S, _ORDER_S = 20.0, 60.0
_TRIES, _LONGEST_WAIT_S = 4, 20.0
_PAGE = 100
_MOST_PAGES = 50
_STAGES = {"ACTIVE": Stage.READY, "TERMINATED": Stage.GONE, "STOPPED": Stage.BROKEN, "ERROR": Stage.BROKEN}
_RETRY_S = {402: 600.0, 401: 300.0, 403: 300.0, 422: 60.0}
_SAID = 300  # characters of an answer that a message repeats


class Prime:
    """An account at Prime Intellect."""

    def __init__(self, config: Config) -> None:
        stamina.instrumentation.set_on_retry_hooks(())  # they log on their own; what fails in the end is told by us
        self._config = config
        self._client = httpx2.Client(
            base_url=config.cloud_api.rstrip("/"),
            headers={
                "Authorization": f"Bearer {config.cloud_api_key}",
                "User-Agent": f"dspy-supervisor/{__version__}",
            },
            timeout=_TIMEOUT_S,
            follow_redirects=False,  # the key goes to this address and no other
        )

    def offers(self) -> Sequence[Offer]:
        """Return what is in stock, fits the settings, and costs no more than they allow; cheapest first."""
        config = self._config
        asked = {
            "gpu_type": config.cloud_gpu,
            "gpu_count": config.cloud_gpus,
            **({"regions": list(config.cloud_regions)} if config.cloud_regions else {}),
            **({"security": config.cloud_security} if config.cloud_security else {}),
        }
        rows = self._pages("/api/v1/availability/gpus", asked, "items", "totalCount", by_page=True)
        found = [offer for row in rows if (offer := self._offer(row)) is not None]
        return sorted(found, key=lambda offer: offer.price_hr)

    def create(self, name: str, offer: Offer) -> Machine:
        """Order a machine; the price bound of the settings goes with it."""
        config, facts = self._config, offer.facts
        pod: dict[str, Any] = {
            "name": name,
            "cloudId": facts["cloudId"],
            "gpuType": facts["gpuType"],
            "socket": facts["socket"],
            "gpuCount": config.cloud_gpus,
            "maxPrice": config.cloud_max_price,
            "autoRestart": False,
        }
        pod |= {"customTemplateId": config.cloud_template} if config.cloud_template else {"image": config.cloud_image}
        pod |= {key: facts[name] for key, name in _ECHOED.items() if facts.get(name) is not None}
        if config.cloud_disk_gb:
            pod["diskSize"] = config.cloud_disk_gb
        order: dict[str, Any] = {"pod": pod, "provider": {"type": facts["provider"]}}
        if config.cloud_team:
            order["team"] = {"teamId": config.cloud_team}
        row = self._call("POST", "/api/v1/pods/", json=order, timeout=_ORDER_S)
        machine = _machine(row)
        if machine is None:
            raise CloudError(f"the answer to an order names no machine: {str(row)[:_SAID]}", definite=False)
        return machine

    def machines(self) -> Sequence[Machine]:
        """Return the machines of the account; where they are reached comes from a second question."""
        rows = {str(row.get("id")): row for row in self._pages("/api/v1/pods/", {}, "data", "total_count")}
        asked = [pod_id for pod_id, row in rows.items() if row.get("status") != "TERMINATED"]
        for start in range(0, len(asked), _PAGE):
            answer = self._ask("/api/v1/pods/status", {"pod_ids": asked[start : start + _PAGE]})
            for told in _rows(answer, "data"):
                if (row := rows.get(str(told.get("podId")))) is not None:
                    row.update({key: value for key, value in told.items() if value is not None})
        found = (_machine(row) for row in rows.values())
        return [machine for machine in found if machine is not None]

    def delete(self, machine_id: str) -> None:
        """Delete a machine."""
        for attempt in self._again():
            with attempt:
                self._call("DELETE", f"/api/v1/pods/{machine_id}", missing=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _offer(self, row: Mapping[str, Any]) -> Offer | None:
        config = self._config
        price = _price(row, config.cloud_disk_gb)
        if (
            price is None
            or price > config.cloud_max_price
            or row.get("gpuCount") != config.cloud_gpus
            or str(row.get("stockStatus", "")).lower() in ("unavailable", "")
            or (row.get("isSpot") and not config.cloud_spot)
            or row.get("prepaidTime")
            or (config.cloud_security and row.get("security") not in (config.cloud_security, None))
            or not (row.get("cloudId") and row.get("provider") and row.get("socket"))
        ):
            return None
        images = row.get("images")
        if isinstance(images, list) and images and not config.cloud_template and config.cloud_image not in images:
            return None
        where = ", ".join(str(row[key]) for key in ("provider", "dataCenter", "country") if row.get(key))
        return Offer(where, str(row.get("gpuType")), config.cloud_gpus, price, str(row["stockStatus"]), dict(row))

    def _pages(
        self, path: str, asked: Mapping[str, Any], rows: str, total: str, *, by_page: bool = False
    ) -> Iterator[dict[str, Any]]:
        seen = 0
        for page in range(_MOST_PAGES):
            place = {"page": page + 1, "page_size": _PAGE} if by_page else {"offset": seen, "limit": _PAGE}
            answer = self._ask(path, {**asked, **place})
            found = _rows(answer, rows)
            yield from found
            seen += len(found)
            if not found or seen >= int(answer.get(total) or 0):
                return
        raise CloudError(f"{path}: more than {seen} rows, which can't be looked through")

    def _ask(self, path: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        for attempt in self._again():
            with attempt:
                answer = self._call("GET", path, params=params)
        if not isinstance(answer, Mapping):
            raise CloudError(f"{path}: an answer that is no object: {str(answer)[:_SAID]}")
        return answer

    def _again(self) -> Iterator[stamina.Attempt]:
        """Yield the tries of a question that may be asked more than once."""

        def wait(error: Exception) -> bool | float:
            if not isinstance(error, CloudError) or not error.passing:
                return False
            return min(error.retry_s, _LONGEST_WAIT_S) or True

        yield from stamina.retry_context(on=wait, attempts=_TRIES, timeout=60.0, wait_initial=0.3, wait_max=5.0)

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        timeout: float = _TIMEOUT_S,
        missing: bool = False,  # 404 is no error
    ) -> Any:
        try:
            answer = self._client.request(method, path, params=params, json=json, timeout=timeout)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise CloudError(f"{self._config.cloud_api} can't be reached: {error}", passing=True, retry_s=0) from None
        except httpx2.HTTPError as error:
            why = f"{method} {path} was not answered: {error or type(error).__name__}"
            raise CloudError(why, definite=False, passing=True, retry_s=0) from None
        status = answer.status_code
        if status == 404 and missing:
            return None
        if status >= 300:
            raise CloudError(
                f"{method} {path}: {_SAYS.get(status, 'refused')} ({status}): {_said(answer)}",
                definite=status < 500,  # an order that met an error halfway may have been carried out
                passing=status == 429 or status >= 500,
                retry_s=_retry_after(answer),
            )
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise CloudError(f"{method} {path}: an answer that is no JSON", definite=False) from None


_ECHOED = {"dataCenterId": "dataCenter", "country": "country", "security": "security"}
_SAYS = {
    401: "the key is not valid",
    402: "no funds: add some to the account",
    403: "the key has no right to do this",
    404: "there is no such thing",
    409: "in conflict with what is there",
    422: "not accepted as it is",
    429: "too many requests",
}


def _price(row: Mapping[str, Any], disk_gb: int) -> float | None:
    """Return what an offer costs in an hour with its disk, in US dollars; None where that is not known."""
    prices = row.get("prices")
    if not isinstance(prices, Mapping) or prices.get("currency") not in ("USD", None):
        return None
    base = prices.get("communityPrice") if row.get("security") == "community_cloud" else None
    base = prices.get("onDemand") if base is None else base
    if not isinstance(base, int | float) or base < 0:
        return None
    disk = row.get("disk")
    if isinstance(disk, Mapping) and not disk.get("defaultIncludedInPrice"):
        base += (disk.get("pricePerUnit") or 0.0) * (disk_gb or disk.get("defaultCount") or 0)
    return float(base)


def _machine(row: object) -> Machine | None:
    if not isinstance(row, Mapping) or not row.get("id"):
        return None
    status = str(row.get("status"))
    stage = _STAGES.get(status, Stage.STARTING)
    price = row.get("priceHr")
    ssh = row.get("sshConnection")
    ssh = next((one for one in ssh if one), None) if isinstance(ssh, list) else ssh
    address = Address.parse(ssh) if isinstance(ssh, str) and ssh else None
    if stage is Stage.READY and address is None:
        stage = Stage.STARTING
    failure = row.get("installationFailure")
    why = str(failure) if failure else status.lower()
    if failure and stage is not Stage.GONE:
        stage = Stage.BROKEN
    if status == "ERROR" or failure:
        why = f"the provider failed to make it: {why}"
    elif status == "STOPPED":
        why = "the provider stopped it"
    price = float(price) if isinstance(price, int | float) else None
    return Machine(str(row["id"]), str(row.get("name") or ""), stage, price, address, why)


def _rows(answer: object, key: str) -> list[dict[str, Any]]:
    rows = answer.get(key) if isinstance(answer, Mapping) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _said(answer: httpx2.Response) -> str:
    try:
        document = answer.json()
    except ValueError:
        return answer.text[:_SAID]
    detail = document.get("detail", document) if isinstance(document, Mapping) else document
    return str(detail)[:_SAID]


def _retry_after(answer: httpx2.Response) -> float:
    written = answer.headers.get("Retry-After", "")
    if written.isdecimal():
        return float(written)
    return _RETRY_S.get(answer.status_code, 5.0)
