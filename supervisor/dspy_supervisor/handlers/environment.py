"""The environment handler: steps of environments that live in their worker from one task to the next.

The payload names the environment and what to do; the wire format is that of the RL runner of the earlier system::

    {"env_id": "e1", "action": "init", "env": "cartpole", "config": {"seed": 7, ...}}     makes it: the other keys of config
                                                                                         are its factory's arguments
    {"env_id": "e1", "action": "step", "action_data": 1}
    {"env_id": "e1", "action": "reset", "seed": 8, "options": {...}}                     both optional
    {"env_id": "e1", "action": "close"}
    {"episode_id": "p1", "env": "cartpole", "config": {"max_steps": 200}, "actions": [...]?}     a whole one, nothing is kept

An envelope's affinity, where there is one, is the key in place of env_id. ``env`` may be left out where only one is configured.
What a factory returns has reset, step and close as Gymnasium's (https://gymnasium.farama.org/api/env/) or, as Gym's were, with
four values from step and one from reset. Arrays and their scalars become JSON.

A result holds ``success``, ``env_id``, ``action``, ``state`` and ``info``, of a step ``reward``, ``done``, ``terminated`` and
``truncated`` too; of an episode ``success``, ``episode_id``, ``total_reward``, ``steps``, ``done`` and ``fps``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..parts import JSON, Handler, HandlerFailure, Task, load
from ..task import Cause

_SCALARS = frozenset({str, int, float, bool})
ACTIONS = ("init", "step", "reset", "close")
MAX_STEPS = 1_000_000  #: of an episode
#: in a config, what is said to the handler or was said to the earlier runner; the bounds of a class bound its tasks here
_NOT_ARGUMENTS = frozenset({"seed", "options", "max_steps", "memory_limit", "cpu_limit", "timeout"})


def make(*, environments: Mapping[str, str]) -> Handler:
    """Return the handler of these environments: NAME to module:Class. Raises ConfigError for what can't be imported."""
    factories: dict[str, Any] = {name: load(factory) for name, factory in environments.items()}

    def environment(task: Task) -> JSON:
        payload = task.payload
        if not isinstance(payload, Mapping):
            raise _refused(f"the payload of an environment's task is an object, not {type(payload).__name__}")
        if "action" not in payload and "episode_id" in payload:
            return _episode(factories, payload)
        action = payload.get("action")
        if action not in ACTIONS:
            raise _refused(f"action={action!r}: expected one of {', '.join(ACTIONS)}")
        key = key_of(task.fields.affinity, payload)
        done = _ACTIONS[action](task, key, payload, factories)
        return {"success": True, "env_id": payload.get("env_id", key), "action": action, **done}

    return environment


def key_of(affinity: str | None, payload: Mapping[str, Any]) -> str:
    """Return the key of an environment's task. Raises HandlerFailure where it has none."""
    env_id = payload.get("env_id")
    if env_id is not None and (not isinstance(env_id, str) or not env_id):
        raise _refused(f"env_id={env_id!r}: expected a text")
    if affinity is None and env_id is None:
        raise _refused("env_id is missing, and the envelope has no affinity")
    return affinity if affinity is not None else str(env_id)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: arrays and scalars of numpy, torch and their like become lists and numbers."""
    if value is None or type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return {str(plain(name)): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # also a float of numpy, which is one of Python's, too
        return plain(value.tolist())
    return value


def _init(task: Task, key: str, payload: Mapping[str, Any], factories: Mapping[str, Any]) -> dict[str, Any]:
    config = _config(payload)
    made = _new(factories, payload, config)
    try:
        state, info = _reset(made, config)
        task.keep(made, getattr(made, "close", None), key)
    except BaseException:
        _close(made)
        raise
    return {"state": state, "info": info}


def _step(task: Task, key: str, payload: Mapping[str, Any], _: Mapping[str, Any]) -> dict[str, Any]:
    return _stepped(_kept(task, key).step(payload.get("action_data")))


def _do_reset(task: Task, key: str, payload: Mapping[str, Any], _: Mapping[str, Any]) -> dict[str, Any]:
    state, info = _reset(_kept(task, key), payload)
    return {"state": state, "info": info}


def _do_close(task: Task, key: str, _: Mapping[str, Any], __: Mapping[str, Any]) -> dict[str, Any]:
    task.kept(key)  # tells of its loss
    return {"was_open": task.release(key)}


_ACTIONS = {"init": _init, "step": _step, "reset": _do_reset, "close": _do_close}


def _kept(task: Task, key: str) -> Any:
    made = task.kept(key)
    if made is None:
        raise _refused(
            f"there is no environment {key!r}: it was never made by 'init', was closed (one that is idle is, after "
            "env_idle_s), or was lost, which an earlier task was told"
        )
    return made


def _new(factories: Mapping[str, Any], payload: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    name = payload.get("env", config.get("env"))
    if name is None and len(factories) == 1:
        name = next(iter(factories))
    if name not in factories:
        known = ", ".join(sorted(factories)) or "none: set environments to NAME=module:Class"
        raise _refused(f"env={name!r}: expected one of the configured environments ({known})")
    arguments = {str(word): value for word, value in config.items() if word not in _NOT_ARGUMENTS and word != "env"}
    return factories[name](**arguments)


def _config(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    config = payload.get("config")
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise _refused(f"config is an object, not {type(config).__name__}")
    return config


def _reset(made: Any, how: Mapping[str, Any]) -> tuple[Any, Any]:
    said = {word: how[word] for word in ("seed", "options") if how.get(word) is not None}
    found = made.reset(**said)
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping):
        return plain(found[0]), plain(found[1])
    return plain(found), {}


def _stepped(found: Any) -> dict[str, Any]:
    if isinstance(found, tuple) and len(found) == 5:
        state, reward, terminated, truncated, info = found
    elif isinstance(found, tuple) and len(found) == 4:
        state, reward, terminated, info = found
        truncated = False
    else:
        raise TypeError(
            f"step() returned {type(found).__name__}: expected (state, reward, terminated, truncated, info)"
        )
    done = bool(terminated) or bool(truncated)
    values = {"state": state, "reward": reward, "done": done, "info": info}
    return {**plain(values), "terminated": bool(terminated), "truncated": bool(truncated)}


def _episode(factories: Mapping[str, Any], payload: Mapping[str, Any]) -> JSON:
    """Run a whole episode, by given actions, or else by those that the environment's action_space samples."""
    config, actions = _config(payload), payload.get("actions")
    longest = config.get("max_steps", MAX_STEPS)
    if isinstance(longest, bool) or not isinstance(longest, int) or not 0 < longest <= MAX_STEPS:
        raise _refused(f"max_steps={longest!r}: expected a whole number from 1 to {MAX_STEPS}")
    if actions is not None and not isinstance(actions, Sequence):
        raise _refused(f"actions is a list, not {type(actions).__name__}")
    made = _new(factories, payload, config)
    try:
        space: Any = getattr(made, "action_space", None)
        if actions is None and space is None:
            raise _refused("actions is missing, and the environment has no action_space to take any from")
        if actions is None and config.get("seed") is not None and hasattr(space, "seed"):
            space.seed(config["seed"])
        _reset(made, config)
        began, total, steps, done = time.monotonic(), 0.0, 0, False
        while not done and steps < (longest if actions is None else min(longest, len(actions))):
            chosen = space.sample() if actions is None else actions[steps]
            stepped = _stepped(made.step(chosen))
            total, steps, done = total + float(stepped["reward"]), steps + 1, stepped["done"]
        elapsed_s = max(time.monotonic() - began, 1e-9)
    finally:
        _close(made)
    found = {"total_reward": total, "steps": steps, "done": done, "fps": round(steps / elapsed_s, 3)}
    return {"success": True, "episode_id": payload["episode_id"], **found}


def _close(made: Any) -> None:
    if (close := getattr(made, "close", None)) is not None:
        close()


def _refused(message: str) -> HandlerFailure:
    return HandlerFailure(Cause.REFUSED, message)
