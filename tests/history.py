"""The history checker: compares what producers published with what clients received.

Producers log each publish in a `History`: its receipt, or that its outcome is unknown. Each client logs its
`Connection`s: the position it resumed from, and every frame in the order of arrival. `violations` lists every breach of
these guarantees:

- no accepted event that matches a client's patterns is missing, unless its loss was announced to that client;
- no event arrives twice, out of order, without having been published, or without matching the patterns;
- no position has two events, and within an epoch no event has two numbers (after a fork: at one replica);
- a heartbeat is neither ahead of nor behind the events written before it.

The checker does no I/O and shares no code with the service: the names that patterns match are repeated here. The
patterns of a client are those of its connections' query and do not change. It resumes by query, from the position that
`Reader` has.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

__all__ = ["NAMES", "ClientRecord", "Connection", "History", "Reader", "content_of", "matches", "violations"]

Frame = Mapping[str, Any]

NAMES: Final = {
    "event": ["event.created"],
    "service_status": ["service.status_changed"],
    "camera_status": ["camera.status_changed"],
    "scene_change": ["scene_change.detected", "scene.changed"],
    "worker_status": ["worker.status_changed"],
    "infrastructure_alert": ["infrastructure.alert"],
    "summary_update": ["summary.updated"],
    **{
        f"alert_{kind}": [f"alert.{kind}"]
        for kind in ("created", "updated", "acknowledged", "resolved", "dismissed", "deleted")
    },
}

# The text field of each type in which a producer puts the mark that makes a message unique.
MARKS: Final = {
    "event": "batch_id",
    "service_status": "service",
    "camera_status": "camera_name",
    "scene_change": "camera_id",
    "alert_deleted": "id",
    "worker_status": "worker_name",
    "detection.new": "batch_id",
    "detection.batch": "batch_id",
    "infrastructure_alert": "fingerprint",
    **{f"alert_{kind}": "dedup_key" for kind in ("created", "updated", "acknowledged", "resolved", "dismissed")},
}


def matches(patterns: Sequence[str] | None, kind: str, data: Frame) -> bool:
    """True if a client with these patterns (None: it never subscribed) gets such a message."""
    if patterns is None:
        return True
    names = [kind, *NAMES.get(kind, ())]
    if kind in ("camera_status", "worker_status"):
        names.append(data["event_type"].lower())
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in names)


def content_of(kind: str, data: Frame) -> str:
    """Return what identifies a message: its type and its mark."""
    if kind == "summary_update":
        return f"{kind} {(data['hourly'] or data['daily'])['content']}"
    return f"{kind} {data[MARKS[kind]]}"


class Place(NamedTuple):
    """A position: `sequence` in `epoch`."""

    epoch: str
    sequence: int


# -- published ------------------------------------------------------------------------------------------------------


class Accepted(NamedTuple):
    """A publish that got a receipt; `data` is None if only its type is known."""

    kind: str
    data: Frame | None


@dataclass
class History:
    """Every publish of a test; `marked` is true if each has a mark of its own, so that its content identifies it."""

    marked: bool = True
    accepted: dict[Place, Accepted] = field(default_factory=dict)
    uncertain: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    forks: dict[str, int] = field(default_factory=dict)

    def receipt(self, kind: str, data: Frame | None, receipt: Frame) -> None:
        """Log a publish that was accepted."""
        place = Place(receipt["epoch"], receipt["sequence"])
        if self.is_forked(place):
            assert data is not None
            self.unknown(kind, data)
            return
        if place in self.accepted:
            self.faults.append(f"two receipts for {place}: {self.accepted[place].kind} and {kind}")
        self.accepted[place] = Accepted(kind, data)

    def unknown(self, kind: str, data: Frame) -> None:
        """Log a publish that got no answer or a 503: it may have happened, or may still happen."""
        self.uncertain.add(content_of(kind, data))

    def fork(self, epoch: str, sequence: int) -> None:
        """Log that a copy of Redis which had only got as far as `sequence` took over.

        A later number may belong to different events at different replicas, and no client has to get it.
        """
        self.forks[epoch] = sequence
        for place in filter(self.is_forked, list(self.accepted)):
            kind, data = self.accepted.pop(place)
            assert data is not None
            self.unknown(kind, data)

    def is_forked(self, place: Place) -> bool:
        """True if a position is after a fork."""
        return place.sequence > self.forks.get(place.epoch, place.sequence)

    def last(self, epoch: str) -> int:
        """Return the highest number among the receipts of this epoch, 0 if there are none."""
        return max((place.sequence for place in self.accepted if place.epoch == epoch), default=0)


# -- received -------------------------------------------------------------------------------------------------------


@dataclass
class Connection:
    """One connection: the position it resumed from (`since` is None if none) and all frames of the server, in order."""

    where: str
    since: int | None
    epoch: str
    frames: Sequence[Frame]


@dataclass
class ClientRecord:
    """Everything that one client received, and the patterns that it asked for (None: everything)."""

    name: str
    patterns: Sequence[str] | None
    connections: list[Connection] = field(default_factory=list)


class Fact(NamedTuple):
    """The meaning of one frame, once its epoch is known.

    `kind` is begin (the client must get every event from here on), event, heartbeat, loss (of `first` to `place`),
    epoch (the numbering `place.epoch` starts at 0; the rest of the previous one may be lost), verdict or fault.
    """

    kind: str
    place: Place
    frame: Frame
    first: int = 0


class Reader:
    """Interprets the frames of one client: assigns each number its epoch, and tracks the position to resume from.

    `epoch` and `sequence` are the highest position seen, heartbeats included; `sequence` is None until one is known.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.sequence: int | None = None
        self._replaying = False
        self._certain = True
        self._hello = ""
        self._replica = 0
        self._unplaced: list[Frame] = []
        self._replayed = 0

    def connect(self, since: int | None) -> None:
        """Start a connection."""
        self._replaying = since is not None
        self._unplaced.clear()
        self._replayed = 0

    def take(self, frame: Frame) -> list[Fact]:
        """Read one frame."""
        kind = frame.get("type")
        if "sequence" in frame:
            return self._event(frame)
        read = {
            "connected": self._connected,
            "ping": self._heartbeat,
            "gap": self._gap,
            "epoch_changed": self._epoch_changed,
            "resync_ack": self._verdict,
        }.get(str(kind))
        return read(frame) if read is not None else []

    def _connected(self, frame: Frame) -> list[Fact]:
        self._hello = epoch = frame["epoch"]
        self._replica = frame["lastSeq"]
        if self._replaying:
            # The replica may be an epoch behind or ahead of the client; the verdict says which one was replayed.
            self._certain = epoch != "" and self.epoch in ("", epoch)
            self.epoch = self.epoch or epoch
            return []
        self._certain = True
        facts = []
        if epoch and self.epoch not in ("", epoch):
            facts += self._enter(epoch, frame)
        self.epoch = epoch
        self.sequence = self._replica if epoch else None
        if epoch:
            facts.append(Fact("begin", self.place, frame))
        return facts

    def _event(self, frame: Frame) -> list[Fact]:
        facts = []
        if frame.get("replay"):
            self._replayed += 1
            if not self._replaying:
                facts.append(Fact("fault", self.place, {"fault": "a replayed frame outside of a replay"}))
            if not self._certain:
                self._unplaced.append(frame)
                return facts
        elif self._replaying:
            facts.append(Fact("fault", self.place, {"fault": "a live frame within a replay"}))
        return [*facts, self._placed(frame)]

    def _placed(self, frame: Frame) -> Fact:
        fact = Fact("event", Place(self.epoch, frame["sequence"]), frame)
        self._pass(frame["sequence"])
        return fact

    def _heartbeat(self, frame: Frame) -> list[Fact]:
        facts = []
        epoch, sequence = frame["epoch"], frame["lastSeq"]
        if epoch != self.epoch:
            if self._replaying and epoch == self._hello and not self._replayed:
                return []  # the replica has not reached the client's position, and nothing was replayed so far
            if not self._replaying or not epoch:
                return [Fact("fault", self.place, {"fault": f"a heartbeat of epoch {epoch!r} within {self.epoch!r}"})]
            facts += self._settle(epoch, frame)
        if self.sequence is None:
            facts.append(Fact("begin", Place(epoch, sequence), frame))
        facts.append(Fact("heartbeat", Place(epoch, sequence), frame))
        self._pass(sequence)
        return facts

    def _gap(self, frame: Frame) -> list[Fact]:
        if not self._certain:
            self._unplaced.append(frame)
            return []
        fact = Fact("loss", Place(self.epoch, frame["to"]), frame, frame["from"])
        self._pass(frame["to"])
        return [fact]

    def _epoch_changed(self, frame: Frame) -> list[Fact]:
        epoch = frame["epoch"]
        if not self.epoch and self.sequence is None:
            # Redis was reached for the first time; the client must get every event from the next number on.
            self.epoch = epoch
            return []
        return self._settle(epoch, frame)

    def _verdict(self, frame: Frame) -> list[Fact]:
        facts = self._settle(frame["epoch"], frame)
        asked, count = frame["last_sequence"], self._replayed
        if frame["replayed_count"] != count:
            text = f"replayed_count {frame['replayed_count']}, but {count} frames came"
            facts.append(Fact("fault", self.place, {"fault": text}))
        if frame.get("epoch_changed"):
            pass
        elif frame.get("gap_too_old"):
            facts.append(Fact("loss", Place(self.epoch, frame["oldest_available"] - 1), frame, asked + 1))
        elif not frame["recovered"]:
            # The number asked for was beyond the newest and means nothing; the replica's own is the best known.
            self.sequence = self._replica
        self._replaying, self._certain, self._replayed = False, True, 0
        return [*facts, Fact("verdict", self.place, frame)]

    @property
    def replaying(self) -> bool:
        """True while the verdict on a resume is outstanding."""
        return self._replaying

    @property
    def place(self) -> Place:
        """The position of the client."""
        return Place(self.epoch, self.sequence or 0)

    def _settle(self, epoch: str, frame: Frame) -> list[Fact]:
        """Assign this epoch to the replayed frames seen so far."""
        facts = self._enter(epoch, frame) if epoch != self.epoch else []
        self._certain = True
        waiting, self._unplaced = self._unplaced, []
        for each in waiting:
            facts += self._gap(each) if each["type"] == "gap" else [self._placed(each)]
        return facts

    def _enter(self, epoch: str, frame: Frame) -> list[Fact]:
        first = not self.epoch
        self.epoch = epoch
        if first:
            return []
        self.sequence = 0
        return [Fact("epoch", self.place, frame)]

    def _pass(self, sequence: int) -> None:
        self.sequence = max(self.sequence or 0, sequence)


# -- the check ------------------------------------------------------------------------------------------------------

# The content seen at a position, by replica after a fork, else by "".
_Seen = dict[tuple[str, Place], str]


def violations(history: History, records: Iterable[ClientRecord]) -> list[str]:
    """Return every breach of the guarantees, one line each."""
    records = list(records)
    found = list(history.faults)
    bodies = _bodies(records)
    accepted = {
        # of some publishes only the type is known; their data is that which clients received
        place: each if each.data is not None else Accepted(each.kind, bodies.get(place))
        for place, each in history.accepted.items()
    }
    seen: _Seen = {}
    for record in records:
        found += _ClientCheck(history, accepted, record, seen).violations()
    for place, each in accepted.items():
        if each.data is not None:
            seen.setdefault(("", place), content_of(each.kind, each.data))
    numbers: dict[tuple[str, str, str], int] = {}
    for (where, place), content in sorted(seen.items()) if history.marked else ():
        first = numbers.setdefault((where, place.epoch, content), place.sequence)
        if first != place.sequence:
            found.append(f"{content} has two numbers in {place.epoch}: {first} and {place.sequence}")
    return found


def _bodies(records: Iterable[ClientRecord]) -> dict[Place, Frame]:
    """Return the data of every event that any client received."""
    bodies = {}
    for record in records:
        reader = Reader()
        for connection in record.connections:
            reader.connect(connection.since)
            facts = [fact for frame in connection.frames for fact in reader.take(frame)]
            bodies.update({fact.place: fact.frame["data"] for fact in facts if fact.kind == "event"})
    return bodies


class _ClientCheck:
    """The check of one client."""

    def __init__(self, history: History, accepted: dict[Place, Accepted], record: ClientRecord, seen: _Seen) -> None:
        self._history = history
        self._accepted = accepted
        self._record = record
        self._seen = seen
        self._found: list[str] = []
        # every matching number of an epoch after `_begins` must arrive, or be in `_excused`
        self._begins: dict[str, int] = {}
        self._had: dict[Place, int] = {}
        self._excused: list[tuple[str, int, float]] = []
        self._heartbeats: list[tuple[int, Place]] = []
        self._left: set[str] = set()
        self._asked: Place | None = None
        self._clock = 0
        self._waits = False
        self._replica = ""
        self._where = ""

    def violations(self) -> list[str]:
        reader = Reader()
        for number, connection in enumerate(self._record.connections, 1):
            self._replica = connection.where
            self._where = f"{self._record.name}, connection {number} to {connection.where}"
            if not connection.frames:
                continue
            if connection.frames[0].get("type") != "connected":
                self._report(f"the first frame is {connection.frames[0]}")
            reader.connect(connection.since)
            highest = None if connection.since is None else Place(connection.epoch, connection.since)
            self._asked = highest
            for frame in connection.frames:
                self._clock += 1
                before, self._waits = reader.place, reader.replaying
                for fact in reader.take(frame):
                    highest = self._check_fact(fact, highest, before)
        self._check_missing()
        self._check_heartbeats()
        return self._found

    def _check_fact(self, fact: Fact, highest: Place | None, before: Place) -> Place | None:
        """Check one fact; `highest` is the last position that this connection mentioned. Returns the new one."""
        place = fact.place
        within = highest is not None and highest.epoch == place.epoch
        match fact.kind:
            case "begin":
                self._begins[place.epoch] = place.sequence
            case "event":
                self._begins.setdefault(place.epoch, place.sequence - 1)
                self._check_event(fact)
                if highest is not None and within and place.sequence <= highest.sequence:
                    self._report(f"{place} came after {highest}")
                self._had.setdefault(place, self._clock)
            case "heartbeat":
                if highest is not None and within and place.sequence < highest.sequence:
                    if self._waits and highest == self._asked:
                        # a replica that has not reached the position of the client says so, and lets it wait
                        return highest
                    self._report(f"heartbeat {place} is behind {highest}")
                self._heartbeats.append((self._clock, place))
            case "loss":
                self._excused.append((place.epoch, fact.first, place.sequence))
                if fact.frame["type"] == "gap":
                    self._check_gap(fact)
                else:
                    return highest  # a verdict refers to positions before the replay
            case "epoch":
                if place.epoch in self._left:
                    self._report(f"epoch {place.epoch} came back")
                self._left.add(before.epoch)
                self._excused.append((before.epoch, before.sequence + 1, float("inf")))
                self._begins[place.epoch] = 0
            case "fault":
                self._report(f"at {place}: {fact.frame['fault']}")
            case "verdict" if not fact.frame["recovered"] and place.sequence < before.sequence:
                return None  # the number asked for was beyond the newest, and means nothing
        return highest if fact.kind in ("fault", "verdict") else place

    def _check_event(self, fact: Fact) -> None:
        place, frame = fact.place, fact.frame
        kind, data = frame["type"], frame["data"]
        content = content_of(kind, data)
        if place in self._had:
            self._report(f"{place} came twice")
        if not matches(self._record.patterns, kind, data):
            self._report(f"{place} is {kind}, which nobody asked for")
        key = (self._replica if self._history.is_forked(place) else "", place)
        if self._seen.setdefault(key, content) != content:
            self._report(f"{place} is {content}, but elsewhere it was {self._seen[key]}")
        accepted = self._accepted.get(place)
        if accepted is None:
            if content not in self._history.uncertain:
                self._report(f"{place}, {content}, was never published")
        elif accepted.kind != kind or (accepted.data is not None and content_of(kind, accepted.data) != content):
            self._report(f"{place} is {content}, but the receipt was for a {accepted.kind}")

    def _check_gap(self, fact: Fact) -> None:
        epoch, last = fact.place
        if not 1 <= fact.first <= last:
            self._report(f"a gap from {fact.first} to {last}")
        had = [place.sequence for place in self._had if place.epoch == epoch and fact.first <= place.sequence <= last]
        if had:
            self._report(f"gap {fact.first} to {last}, but {had} had come")

    def _check_missing(self) -> None:
        for place in self._wanted():
            if place not in self._had and not self._is_excused(place):
                self._found.append(f"{self._record.name}: {place} is missing, and no loss was announced")

    def _check_heartbeats(self) -> None:
        """Check that at each heartbeat everything up to its number had arrived."""
        wanted = self._wanted()
        passed: dict[str, int] = {}
        for clock, heartbeat in self._heartbeats:
            first = bisect_right(wanted, Place(heartbeat.epoch, passed.get(heartbeat.epoch, 0)))
            for place in wanted[first : bisect_right(wanted, heartbeat)]:
                if self._had.get(place, 0) > clock:
                    self._found.append(f"{self._record.name}: heartbeat {heartbeat} came before {place}")
            passed[heartbeat.epoch] = max(passed.get(heartbeat.epoch, 0), heartbeat.sequence)

    def _wanted(self) -> list[Place]:
        """Return the positions that this client must get, in order."""
        return sorted(
            place
            for place, (kind, data) in self._accepted.items()
            if place.sequence > self._begins.get(place.epoch, place.sequence)
            and matches(self._record.patterns, kind, data or {"event_type": ""})
        )

    def _is_excused(self, place: Place) -> bool:
        return any(epoch == place.epoch and low <= place.sequence <= high for epoch, low, high in self._excused)

    def _report(self, text: str) -> None:
        self._found.append(f"{self._where}: {text}")
