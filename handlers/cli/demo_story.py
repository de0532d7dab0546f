"""The messages of the demo: what the cameras, alerts, workers and services of a home security system report.

The seed determines everything but the times.
"""

import uuid
from collections.abc import Callable, Generator, Iterator
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final, NamedTuple

__all__ = ["Post", "stream"]

_CAMERAS: Final = ("front_door", "driveway", "back_garden", "garage", "side_gate")
_VISITS: Final = (
    ("critical", "A person in a hood tries the handle of the door twice", ("acknowledged", "resolved")),
    ("high", "A person stands at the door for two minutes without ringing", ("acknowledged", "dismissed")),
    ("medium", "A person leaves a parcel and looks through the window", ("dismissed", "deleted")),
)
_QUIET: Final = (
    ("cat", "A cat crosses the view"),
    ("car", "The neighbour's car turns"),
    ("person", "The postwoman puts letters into the box"),
    ("dog", "A dog on a leash passes by"),
)
_RISK: Final = {"low": (3, 29), "medium": (30, 59), "high": (60, 84), "critical": (85, 99)}
_ALERT_STATUS: Final = {"created": "pending", "updated": "delivered", "dismissed": "dismissed", "deleted": "dismissed"}


class Post(NamedTuple):
    """A message to publish: its wire type and its data."""

    kind: str
    data: dict[str, Any]


def stream(seed: int, now: Callable[[], datetime]) -> Iterator[Post]:
    """Yield messages without end; the same seed yields the same messages, with times from `now`.

    Messages come in rounds of fewer than 100; each round contains every wire type.
    """
    story = _Story(Random(seed), now)  # noqa: S311  # must be repeatable, not unpredictable
    while True:
        yield from story.round()


class _Story:
    """Scenarios as generators: each yields its next message when it is due, so that times are those of publishing."""

    def __init__(self, random: Random, now: Callable[[], datetime]) -> None:
        self._random = random
        self._now = now
        self._numbers: dict[str, int] = {}

    def round(self) -> Iterator[Post]:
        door, *others = _CAMERAS
        broken, *watching = self._random.sample(others, len(others))
        scenarios: list[Iterator[Post]] = [self._visit(door, *visit) for visit in _VISITS]
        for label, summary in self._random.sample(_QUIET, 2):
            scenarios.append(self._seen(self._random.choice(watching), label, 1, "low", summary))
        scenarios += [self._outage(broken), self._tampering(self._random.choice(watching))]
        scenarios += [self._worker(), self._service(), self._summary()]
        self._random.shuffle(scenarios)
        # Up to three scenarios run at the same time.
        while scenarios:
            scenario = scenarios[self._random.randrange(min(3, len(scenarios)))]
            post = next(scenario, None)
            if post is None:
                scenarios.remove(scenario)
            else:
                yield post

    def _number(self, kind: str) -> int:
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        return self._numbers[kind]

    def _time(self, seconds_ago: float = 0) -> str:
        return (self._now() - timedelta(seconds=seconds_ago)).isoformat(timespec="milliseconds")

    def _seen(self, camera: str, label: str, times: int, risk: str, summary: str) -> Generator[Post, None, int]:
        """Yield detections, their batch and the event about them; return the id of the event."""
        started, batch = self._time(), f"batch-{self._number('batch'):04d}"
        detections = []
        left = self._random.uniform(0.05, 0.4)
        for step in range(times):
            detections.append(self._number("detection"))
            box = {"x": round(left + 0.05 * step, 3), "y": 0.31, "width": 0.18, "height": 0.52}
            data = {"detection_id": detections[-1], "batch_id": batch, "camera_id": camera, "label": label}
            data |= {"confidence": round(self._random.uniform(0.6, 0.99), 2), "timestamp": self._time(), "bbox": box}
            yield Post("detection.new", data)
        data = {"batch_id": batch, "camera_id": camera, "detection_ids": detections, "detection_count": times}
        data |= {"started_at": started, "closed_at": self._time()}
        data |= {"close_reason": self._random.choice(("timeout", "idle", "max_size"))}
        yield Post("detection.batch", data)
        number = self._number("event")
        data = {"id": number, "event_id": number, "batch_id": batch, "camera_id": camera, "summary": summary}
        data |= {"risk_score": self._random.randint(*_RISK[risk]), "risk_level": risk, "started_at": started}
        yield Post("event", data | {"reasoning": f"{times} detections of a {label} in one visit, rated {risk}"})
        return number

    def _visit(self, camera: str, risk: str, summary: str, ending: tuple[str, ...]) -> Iterator[Post]:
        """Yield a sighting of a person and the whole life of its alert."""
        event = yield from self._seen(camera, "person", self._random.randint(2, 4), risk, summary)
        alert, created = str(uuid.UUID(int=self._random.getrandbits(128))), self._time()
        for kind in ("created", "updated", *ending):
            if kind == "deleted":
                yield Post("alert_deleted", {"id": alert, "reason": "false alarm"})
                continue
            data = {"id": alert, "event_id": event, "rule_id": f"person-{risk}", "severity": risk}
            data |= {"status": _ALERT_STATUS.get(kind, "acknowledged"), "dedup_key": f"{camera}:person"}
            yield Post(f"alert_{kind}", data | {"created_at": created, "updated_at": self._time()})

    def _outage(self, camera: str) -> Iterator[Post]:
        """Yield a camera's outage and return, and the alerts of the infrastructure monitoring about them."""
        firing = {"alertname": "CameraDown", "severity": "warning", "component": camera, "started_at": self._time()}
        firing |= {"fingerprint": f"{self._random.getrandbits(64):016x}", "receiver": "demo"}
        for status, before, alarm in (("offline", "online", "firing"), ("online", "offline", "resolved")):
            data = {"event_type": f"camera.{status}", "camera_id": camera, "camera_name": camera.replace("_", " ")}
            data |= {"status": status, "previous_status": before, "timestamp": self._time()}
            yield Post("camera_status", data | {"reason": "no picture for 30 s" if status == "offline" else None})
            text = f"{camera} {'sends no picture' if alarm == 'firing' else 'is back'}"
            yield Post("infrastructure_alert", firing | {"status": alarm, "summary": text, "description": ""})

    def _tampering(self, camera: str) -> Iterator[Post]:
        change = self._random.choice(("view_blocked", "angle_changed", "view_tampered"))
        data = {"id": self._number("scene"), "camera_id": camera, "detected_at": self._time(), "change_type": change}
        yield Post("scene_change", data | {"similarity_score": round(self._random.uniform(0.1, 0.6), 2)})

    def _worker(self) -> Iterator[Post]:
        """Yield a worker's failure, restart and recovery."""
        kind = self._random.choice(("detection", "analysis", "timeout", "metrics"))
        for step, more in (
            ("error", {"error": "model did not answer in 5 s", "error_type": "TimeoutError", "failure_count": 1}),
            ("restarting", {"attempt": 1, "max_attempts": 5, "previous_state": "error"}),
            ("recovered", {"items_processed": self._random.randint(100, 9999), "previous_state": "restarting"}),
        ):
            data = {"event_type": f"worker.{step}", "worker_name": f"{kind}-worker", "worker_type": kind}
            yield Post("worker_status", data | {"timestamp": self._time()} | more)

    def _service(self) -> Iterator[Post]:
        service = self._random.choice(("detector", "analyzer", "recorder"))
        for status, message in (("unhealthy", "health check failed"), ("restarting", None), ("healthy", None)):
            yield Post("service_status", {"service": service, "status": status, "message": message})

    def _summary(self) -> Iterator[Post]:
        count = self._numbers.get("event", 0)

        def over(hours: int) -> dict[str, Any]:
            return {
                "id": self._number("summary"),
                "content": f"{count} events in {hours} h, most of them harmless",
                "event_count": count,
                "window_start": self._time(3600 * hours),
                "window_end": self._time(),
                "generated_at": self._time(),
            }

        yield Post("summary_update", {"hourly": over(1), "daily": over(24)})
