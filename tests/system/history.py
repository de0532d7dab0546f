"""The history checker: what producers were promised, held against what clients saw.

Producers log each publish in a `History`: receipts, and publishes whose fate they do not know. Each client logs its
`Connection`s: what it asked for, and every frame in the order of arrival. `complaints` decides whether the service
kept its word:

- nothing that was accepted and matches a client's patterns is missing, unless its loss was announced to that client;
- nothing comes twice, nothing out of order, nothing that was not published or not asked for;
- one position never bears two events, and within one epoch no event bears two numbers (behind a fork: at one replica);
- a heartbeat is never ahead of what was written before it, and never behind it.

Pure, and blind to how the service works: the names that patterns see are written down here once more. A client's
patterns are those of its connections' query and do not change; it resumes by query, from where `Reader` says it stands.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

__all__ = ["NAMES", "Connection", "History", "Reader", "Witnessed", "complaints", "content_of", "matches"]

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

# Where a test's producer puts what tells one message from all others: a text field of each family.
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
    """Whether a client with these patterns (None: it never subscribed) gets such a message."""
    if patterns is None:
        return True
    names = [kind, *NAMES.get(kind, ())]
    if kind in ("camera_status", "worker_status"):
        names.append(data["event_type"].lower())
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in names)


def content_of(kind: str, data: Frame) -> str:
    """What tells a message from others: its type and its mark."""
    if kind == "summary_update":
        return f"{kind} {(data['hourly'] or data['daily'])['content']}"
    return f"{kind} {data[MARKS[kind]]}"


class Place(NamedTuple):
    """A position: `sequence` in `epoch`."""

    epoch: str
    sequence: int


# -- what producers know --------------------------------------------------------------------------------------------


class Accepted(NamedTuple):
    """A publish that got a receipt; `data` None if only its type is known."""

    kind: str
    data: Frame | None


@dataclass
class History:
    """Every publish of a test; `marked` says that each has a mark of its own, so that its content tells it."""

    marked: bool = True
    accepted: dict[Place, Accepted] = field(default_factory=dict)
    uncertain: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    forks: dict[str, int] = field(default_factory=dict)

    def receipt(self, kind: str, data: Frame | None, receipt: Frame) -> None:
        """A publish was accepted."""
        place = Place(receipt["epoch"], receipt["sequence"])
        if self.is_forked(place):
            assert data is not None
            self.unknown(kind, data)
            return
        if place in self.accepted:
            self.faults.append(f"two receipts for {place}: {self.accepted[place].kind} and {kind}")
        self.accepted[place] = Accepted(kind, data)

    def unknown(self, kind: str, data: Frame) -> None:
        """A publish got no answer or a 503: it may have happened, or may still."""
        self.uncertain.add(content_of(kind, data))

    def fork(self, epoch: str, sequence: int) -> None:
        """A copy of Redis that had got no farther took over: what is numbered behind that has two pasts.

        It may be one thing here and another there, and is owed to nobody.
        """
        self.forks[epoch] = sequence
        for place in filter(self.is_forked, list(self.accepted)):
            kind, data = self.accepted.pop(place)
            assert data is not None
            self.unknown(kind, data)

    def is_forked(self, place: Place) -> bool:
        """Whether a number is behind a fork."""
        return place.sequence > self.forks.get(place.epoch, place.sequence)

    def last(self, epoch: str) -> int:
        """The highest number that a receipt of this epoch bears, 0 if none."""
        return max((place.sequence for place in self.accepted if place.epoch == epoch), default=0)


# -- what clients saw -----------------------------------------------------------------------------------------------


@dataclass
class Connection:
    """One connection: the resume it asked for (`since` None: none) and all frames of the server, in order."""

    where: str
    since: int | None
    epoch: str
    frames: Sequence[Frame]


@dataclass
class Witnessed:
    """Everything that one client saw, with the patterns that it asked for (None: everything)."""

    name: str
    patterns: Sequence[str] | None
    connections: list[Connection] = field(default_factory=list)


class Fact(NamedTuple):
    """What one frame says, once its epoch is known.

    `kind` is begin (from here on the client is owed events), event, heartbeat, loss (of `first` to `place`),
    epoch (the numbering `place.epoch` goes on from 0; the rest of the one before may be lost), verdict or fault.
    """

    kind: str
    place: Place
    frame: Frame
    first: int = 0


class Reader:
    """One client's reading of its frames: gives every number its epoch, and knows from where to resume.

    `epoch` and `sequence` are the highest place seen, heartbeats included; `sequence` None until anything is known.
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
        """A connection begins."""
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
            # A replica may be an epoch behind or ahead of us: which one is replayed, its verdict says.
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
                return []  # the replica is not where we have been, and so far nothing has come of it
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
            # Redis was reached for the first time; the next number says from where on we are owed events.
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
            # Beyond the newest: our number means nothing here. The replica's own is the best known.
            self.sequence = self._replica
        self._replaying, self._certain, self._replayed = False, True, 0
        return [*facts, Fact("verdict", self.place, frame)]

    @property
    def replaying(self) -> bool:
        """Whether the verdict on a resume is still to come."""
        return self._replaying

    @property
    def place(self) -> Place:
        """Where the client stands."""
        return Place(self.epoch, self.sequence or 0)

    def _settle(self, epoch: str, frame: Frame) -> list[Fact]:
        """Now it is known that what is replayed is of this epoch."""
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


# -- the verdict ----------------------------------------------------------------------------------------------------

# What was seen under a number; behind a fork, where it was seen, else "".
_Seen = dict[tuple[str, Place], str]


def complaints(history: History, witnesses: Iterable[Witnessed]) -> list[str]:
    """Everything in which the service broke its word, one line each; empty if it kept it."""
    witnesses = list(witnesses)
    found = list(history.faults)
    bodies = _bodies(witnesses)
    accepted = {
        # of some publishes only the type is known: what was published, whoever saw it can tell
        place: each if each.data is not None else Accepted(each.kind, bodies.get(place))
        for place, each in history.accepted.items()
    }
    seen: _Seen = {}
    for witness in witnesses:
        found += _Judge(history, accepted, witness, seen).complaints()
    for place, each in accepted.items():
        if each.data is not None:
            seen.setdefault(("", place), content_of(each.kind, each.data))
    numbers: dict[tuple[str, str, str], int] = {}
    for (where, place), content in sorted(seen.items()) if history.marked else ():
        first = numbers.setdefault((where, place.epoch, content), place.sequence)
        if first != place.sequence:
            found.append(f"{content} has two numbers in {place.epoch}: {first} and {place.sequence}")
    return found


def _bodies(witnesses: Iterable[Witnessed]) -> dict[Place, Frame]:
    """The data of every event that anyone saw."""
    bodies = {}
    for witness in witnesses:
        reader = Reader()
        for connection in witness.connections:
            reader.connect(connection.since)
            facts = [fact for frame in connection.frames for fact in reader.take(frame)]
            bodies.update({fact.place: fact.frame["data"] for fact in facts if fact.kind == "event"})
    return bodies


class _Judge:
    """One client's case."""

    def __init__(self, history: History, accepted: dict[Place, Accepted], witness: Witnessed, seen: _Seen) -> None:
        self._history = history
        self._accepted = accepted
        self._witness = witness
        self._seen = seen
        self._found: list[str] = []
        # every number of an epoch after `_owed` that matches must come, or be among the `_excused`
        self._owed: dict[str, int] = {}
        self._had: dict[Place, int] = {}
        self._excused: list[tuple[str, int, float]] = []
        self._heartbeats: list[tuple[int, Place]] = []
        self._left: set[str] = set()
        self._asked: Place | None = None
        self._clock = 0
        self._waits = False
        self._replica = ""
        self._where = ""

    def complaints(self) -> list[str]:
        reader = Reader()
        for number, connection in enumerate(self._witness.connections, 1):
            self._replica = connection.where
            self._where = f"{self._witness.name}, connection {number} to {connection.where}"
            if not connection.frames:
                continue
            if connection.frames[0].get("type") != "connected":
                self._complain(f"the first frame is {connection.frames[0]}")
            reader.connect(connection.since)
            highest = None if connection.since is None else Place(connection.epoch, connection.since)
            self._asked = highest
            for frame in connection.frames:
                self._clock += 1
                before, self._waits = reader.place, reader.replaying
                for fact in reader.take(frame):
                    highest = self._weigh(fact, highest, before)
        self._check_missing()
        self._check_heartbeats()
        return self._found

    def _weigh(self, fact: Fact, highest: Place | None, before: Place) -> Place | None:
        """Judge one fact, `highest` being the last place that this connection has spoken of."""
        place = fact.place
        within = highest is not None and highest.epoch == place.epoch
        match fact.kind:
            case "begin":
                self._owed[place.epoch] = place.sequence
            case "event":
                self._owed.setdefault(place.epoch, place.sequence - 1)
                self._weigh_event(fact)
                if highest is not None and within and place.sequence <= highest.sequence:
                    self._complain(f"{place} came after {highest}")
                self._had.setdefault(place, self._clock)
            case "heartbeat":
                if highest is not None and within and place.sequence < highest.sequence:
                    if self._waits and highest == self._asked:
                        # a replica that is not yet where the client has been says so, and makes it wait
                        return highest
                    self._complain(f"heartbeat {place} is behind {highest}")
                self._heartbeats.append((self._clock, place))
            case "loss":
                self._excused.append((place.epoch, fact.first, place.sequence))
                if fact.frame["type"] == "gap":
                    self._weigh_gap(fact)
                else:
                    return highest  # a verdict speaks of what was before the replay
            case "epoch":
                if place.epoch in self._left:
                    self._complain(f"epoch {place.epoch} came back")
                self._left.add(before.epoch)
                self._excused.append((before.epoch, before.sequence + 1, float("inf")))
                self._owed[place.epoch] = 0
            case "fault":
                self._complain(f"at {place}: {fact.frame['fault']}")
            case "verdict" if not fact.frame["recovered"] and place.sequence < before.sequence:
                return None  # its number was beyond the newest, and means nothing any more
        return highest if fact.kind in ("fault", "verdict") else place

    def _weigh_event(self, fact: Fact) -> None:
        place, frame = fact.place, fact.frame
        kind, data = frame["type"], frame["data"]
        content = content_of(kind, data)
        if place in self._had:
            self._complain(f"{place} came twice")
        if not matches(self._witness.patterns, kind, data):
            self._complain(f"{place} is {kind}, which nobody asked for")
        key = (self._replica if self._history.is_forked(place) else "", place)
        if self._seen.setdefault(key, content) != content:
            self._complain(f"{place} is {content}, but elsewhere it was {self._seen[key]}")
        accepted = self._accepted.get(place)
        if accepted is None:
            if content not in self._history.uncertain:
                self._complain(f"{place}, {content}, was never published")
        elif accepted.kind != kind or (accepted.data is not None and content_of(kind, accepted.data) != content):
            self._complain(f"{place} is {content}, but the receipt was for a {accepted.kind}")

    def _weigh_gap(self, fact: Fact) -> None:
        epoch, last = fact.place
        if not 1 <= fact.first <= last:
            self._complain(f"a gap from {fact.first} to {last}")
        had = [place.sequence for place in self._had if place.epoch == epoch and fact.first <= place.sequence <= last]
        if had:
            self._complain(f"gap {fact.first} to {last}, but {had} had come")

    def _check_missing(self) -> None:
        for place in self._wanted():
            if place not in self._had and not self._is_excused(place):
                self._found.append(f"{self._witness.name}: {place} is missing, and no loss was announced")

    def _check_heartbeats(self) -> None:
        """At a heartbeat everything up to its number had come."""
        wanted = self._wanted()
        passed: dict[str, int] = {}
        for clock, heartbeat in self._heartbeats:
            first = bisect_right(wanted, Place(heartbeat.epoch, passed.get(heartbeat.epoch, 0)))
            for place in wanted[first : bisect_right(wanted, heartbeat)]:
                if self._had.get(place, 0) > clock:
                    self._found.append(f"{self._witness.name}: heartbeat {heartbeat} came before {place}")
            passed[heartbeat.epoch] = max(passed.get(heartbeat.epoch, 0), heartbeat.sequence)

    def _wanted(self) -> list[Place]:
        """What this client is owed, in order."""
        return sorted(
            place
            for place, (kind, data) in self._accepted.items()
            if place.sequence > self._owed.get(place.epoch, place.sequence)
            and matches(self._witness.patterns, kind, data or {"event_type": ""})
        )

    def _is_excused(self, place: Place) -> bool:
        return any(epoch == place.epoch and low <= place.sequence <= high for epoch, low, high in self._excused)

    def _complain(self, text: str) -> None:
        self._found.append(f"{self._where}: {text}")
