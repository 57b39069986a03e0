"""An admin API in memory: a state machine with the gateway's rules, and drivers that can stop a flow anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import msgspec

from nemo_agents.admin.calls import Call, Flow, encode_body
from nemo_agents.errors import AdminError
from nemo_agents.policy.keys import parse_public_id
from nemo_agents.provision.stored import StoredKey
from nemo_agents.secret import Secret

GATEWAY = "http://127.0.0.1:4141"
LIMITS = ("max_budget", "budget_duration", "rpm_limit", "tpm_limit", "max_parallel_requests")


class Killed(BaseException):
    """The process ends here."""


class Fault(Exception):  # noqa: N818 - answered, never raised to a caller
    """The machine's refusal."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass
class Key:
    """A grant: its row and its secrets, oldest first; `grace` of those that a rotation left behind."""

    row: dict[str, Any]
    secrets: list[str]
    graces: list[str] = field(default_factory=list)
    revoked: bool = False

    @property
    def token(self) -> str:
        return parse_public_id(self.secrets[-1])

    def shown(self) -> dict[str, Any]:
        return {**self.row, "token": self.token, "key_name": f"sk-nemo-{self.token}-…"}


class AdminMachine:
    """Keys, teams and deployments as the gateway's admin API keeps them."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.teams: dict[str, dict[str, Any]] = {}
        self.deployments: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.page_size = 100

    def live(self) -> list[Key]:
        return [key for key in self.keys if not key.revoked]

    def live_of(self, alias: str) -> Key:
        (key,) = [key for key in self.live() if key.row.get("key_alias") == alias]
        return key

    def answer(self, call: Call[Any]) -> Any:
        body = msgspec.json.decode(encode_body(call.body)) if call.body is not None else {}
        status, content = self.handle(call.method, call.path, dict(call.query), body)
        if status >= 400:
            raise AdminError(str(content), status=status)
        return call.decode(msgspec.json.encode(content))

    def handle(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        self.calls.append(f"{method} {path}")
        try:
            return 200, self._route(method, path, query, body)
        except Fault as fault:
            error = {"message": str(fault), "type": "bad_request_error", "param": None, "code": str(fault.status)}
            return fault.status, {"error": error}

    def _route(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        match (method, path.strip("/").split("/")):
            case "POST", ["key", "generate"]:
                return self._generate(body)
            case "POST", ["key", "update"]:
                self._key(body.pop("key")).row.update(body)
                return {}
            case "GET", ["key", "info"]:
                key = self._key(query["key"])
                return {"key": key.token, "info": key.shown()}
            case "GET", ["key", "list"]:
                return self._list(query)
            case "POST", ["key", "delete"]:
                return self._delete(body["keys"])
            case "POST", ["key", ("block" | "unblock") as verb]:
                self._key(body["key"]).row["blocked"] = verb == "block"
                return {}
            case "POST", ["key", name, "regenerate"]:
                return self._regenerate(unquote(name), body)
            case _, ["team", verb]:
                return self._team(verb, query, body)
            case _, ["model", verb]:
                return self._model(verb, body)
        raise Fault(404, "Not Found")

    def _generate(self, body: dict[str, Any]) -> Any:
        secret = body.pop("key")
        public_id = parse_public_id(secret)
        if public_id is None:
            raise Fault(400, "not a key")
        for key in self.keys:
            if secret in key.secrets and not key.revoked and key.row["key_alias"] == body["key_alias"]:
                return {**key.shown(), "key": secret}
            if public_id in map(parse_public_id, key.secrets):
                raise Fault(400, "this id is used")
        if any(key.row["key_alias"] == body["key_alias"] for key in self.live()):
            raise Fault(400, "this alias is used")
        self.keys.append(Key(row=body, secrets=[secret]))
        return {**self.keys[-1].shown(), "key": secret}

    def _regenerate(self, name: str, body: dict[str, Any]) -> Any:
        key, secret = self._key(name), body["new_key"]
        if secret not in key.secrets:
            if any(parse_public_id(secret) in map(parse_public_id, other.secrets) for other in self.keys):
                raise Fault(400, "this id is used")
            key.secrets.append(secret)
            key.graces.append(body["grace_period"])
        return {**key.shown(), "key": secret}

    def _list(self, query: dict[str, str]) -> Any:
        rows = [key.shown() for key in self.live()]
        for name in ("team_id", "key_alias"):
            rows = [row for row in rows if name not in query or row.get(name) == query[name]]
        number, size = int(query["page"]), self.page_size
        return {
            "keys": rows[(number - 1) * size : number * size],
            "total_count": len(rows),
            "current_page": number,
            "total_pages": -(-len(rows) // size),
        }

    def _delete(self, names: list[str]) -> Any:
        found = [key for key in self.live() if {key.token, *map(parse_public_id, key.secrets)} & set(names)]
        if not found:
            raise Fault(404, "Key not found")
        for key in found:
            key.revoked = True
        return {"deleted_keys": names}

    def _key(self, name: str) -> Key:
        for key in self.live():
            if name in map(parse_public_id, key.secrets):
                return key
        raise Fault(404, "Key not found")

    def _team(self, verb: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        match verb:
            case "new":
                if body["team_id"] in self.teams:
                    raise Fault(400, "this team exists")
                self.teams[body["team_id"]] = body
                return body
            case "update" if body["team_id"] in self.teams:
                self.teams[body["team_id"]].update(body)
                return {"team_id": body["team_id"], "data": self.teams[body["team_id"]]}
            case "info" if query["team_id"] in self.teams:
                return {"team_id": query["team_id"], "team_info": self.teams[query["team_id"]], "keys": []}
            case "list":
                return list(self.teams.values())
            case "delete" if set(body["team_ids"]) & set(self.teams):
                for name in body["team_ids"]:
                    self.teams.pop(name, None)
                return {"deleted_teams": body["team_ids"]}
        raise Fault(404, "Team not found")

    def _model(self, verb: str, body: dict[str, Any]) -> Any:
        match verb:
            case "new":
                self.deployments[body["model_info"]["id"]] = body
                return body
            case "info":
                return {"data": list(self.deployments.values())}
            case "delete" if self.deployments.pop(body["id"], None):
                return {"message": "deleted"}
        raise Fault(404, "Model not found")


class MemoryStore:
    """A key store whose process can end before or after its n-th change, counted from 1."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], StoredKey] = {}
        self.changes = 0
        self.kill: tuple[int, bool] | None = None  # which change, and whether it still happens

    def entries(self, gateway_url: str, fleet: str) -> tuple[StoredKey, ...]:
        return tuple(row for at, row in sorted(self.rows.items()) if at[:2] == (gateway_url, fleet))

    def get(self, gateway_url: str, fleet: str, role: str) -> StoredKey | None:
        return self.rows.get((gateway_url, fleet, role))

    def put(self, gateway_url: str, fleet: str, entry: StoredKey) -> None:
        self._change(lambda: self.rows.__setitem__((gateway_url, fleet, entry.role), entry))

    def forget(self, gateway_url: str, fleet: str, role: str) -> None:
        self._change(lambda: self.rows.pop((gateway_url, fleet, role), None))

    def secret(self, gateway_url: str, fleet: str, role: str) -> Secret | None:
        entry = self.get(gateway_url, fleet, role)
        return entry.usable_secret if entry else None

    def _change(self, do) -> None:
        self.changes += 1
        if self.kill and self.changes == self.kill[0] and not self.kill[1]:
            raise Killed
        do()
        if self.kill and self.changes == self.kill[0]:
            raise Killed


def drive(flow: Flow[Any], machine: AdminMachine, *, kill: tuple[int, bool] | None = None) -> Any:
    """Run a flow to its end, or abandon it at its n-th call, before it is sent or after it was answered."""
    sent = 0
    try:
        call = next(flow)
        while True:
            sent += 1
            if kill == (sent, False):
                raise Killed
            try:
                answer = machine.answer(call)
            except AdminError as error:
                if kill == (sent, True):
                    raise Killed from None
                call = flow.throw(error)
            else:
                if kill == (sent, True):
                    raise Killed
                call = flow.send(answer)
    except StopIteration as done:
        return done.value
    finally:
        flow.close()
