"""The history checker: compares what producers published with what clients received.

Producers log each publish in a `History`: its receipt, or that its outcome is unknown. Each client logs its
`Connection`s: the position it resumed from, and every frame in the order of arrival. `violations` lists every breach of
these guarantees:

- no accepted event that matches a client's patterns is missing, unless its loss was announced to that client;
- no event arrives twice, out of order, without having been published, or without matching the patterns;
- no position has two events, and within an epoch no event has two numbers (after a fork: at one replica);
- a heartbeat is neither ahead of nor behind the events written before it.

The checker does no I/O and shares no code with the service: the names that patterns match are repeated here.

A client connects with patterns and may resume by query, from the position that `Reader` has. On an open connection it
may change its patterns and ask for replays (resync), also while a replay is under way; `Connection` holds both, in
order. No frame says at which event a change took effect. An event must therefore arrive if it matches all patterns
that the client had between the last frame before the event and the first one after it that names a position. After a
resync, events that had arrived come again, and each that is missing from the replay is a breach.
"""

import sys
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
    """Every publish of a test.

    `marked` is true if each has a mark of its own, so that its content identifies it. `complete` is true if no event
    ever left Redis, so that no client may be told of a loss.
    """

    marked: bool = True
    complete: bool = False
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

        A later number may belong to different events at different replicas, and no client has to get it. The same is
        true if Redis goes back in place, or to a dump of an epoch that it has left.
        """
        self.forks[epoch] = min(sequence, self.forks.get(epoch, sequence))
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
    """One connection: the position it resumed from (`since` is None if none) and all frames of the server, in order.

    `resyncs` are the positions after which the client asked for a replay on this connection (their epoch is "" if it
    named none), and `changes` its patterns after each accepted subscribe or unsubscribe. `open` is true if the
    connection was open at the end of the test, so that every replay must have been answered.
    """

    where: str
    since: int | None
    epoch: str
    frames: Sequence[Frame]
    resyncs: list[Place] = field(default_factory=list)
    changes: list[Sequence[str] | None] = field(default_factory=list)
    open: bool = False


@dataclass
class ClientRecord:
    """Everything that one client received, and the patterns that it connected with first (None: everything).

    Each later connection starts with the last patterns of the one before.
    """

    name: str
    patterns: Sequence[str] | None
    connections: list[Connection] = field(default_factory=list)


class Fact(NamedTuple):
    """The meaning of one frame, once its epoch is known.

    `kind` is one of these:

    - begin: the client must get every event from here on;
    - event, heartbeat;
    - loss: of `first` to `place`;
    - epoch: the numbering `place.epoch` starts at 0; the rest of the previous one may be lost;
    - replay: a resync is being answered; every event after `place` comes again;
    - verdict: the replay is over;
    - lost place: the client's position is unknown until the next frame that names one;
    - patterns: the reply to a change of the patterns;
    - fault.
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
        self._asked: int | None = None
        self._resyncs: Sequence[Place] = ()
        self._begun = 0  # the number of resyncs whose replay has begun

    def connect(self, since: int | None, resyncs: Sequence[Place] = ()) -> None:
        """Start a connection; the client may add to `resyncs` while it lasts."""
        self._replaying = since is not None
        if self.sequence is None:
            self.sequence = since
        self._asked = since
        self._resyncs = resyncs
        self._begun = 0
        self._unplaced.clear()
        self._replayed = 0

    def take(self, frame: Frame) -> list[Fact]:
        """Read one frame."""
        kind = frame.get("type")
        if "sequence" in frame:
            return self._event(frame)
        if frame.get("action") in ("subscribed", "unsubscribed"):
            return self._patterns(frame)
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
            if self._may_begin:
                facts.append(self._begin_replay(frame))
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
        if self._may_begin and epoch == self.epoch:
            if sequence >= (self.sequence or 0):
                # A replay that had nothing to send so far may have begun: what this includes is not known.
                self._pass(sequence)
                return []
            facts.append(self._begin_replay(frame))
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
        facts = [self._begin_replay(frame)] if self._may_begin and frame["from"] <= (self.sequence or 0) else []
        fact = Fact("loss", Place(self.epoch, frame["to"]), frame, frame["from"])
        self._pass(frame["to"])
        return [*facts, fact]

    def _patterns(self, frame: Frame) -> list[Fact]:
        if not self._certain:
            self._unplaced.append(frame)
            return []
        return [Fact("patterns", self.place, frame)]

    def _epoch_changed(self, frame: Frame) -> list[Fact]:
        epoch = frame["epoch"]
        if not self.epoch and self.sequence is None:
            # Redis was reached for the first time; the client must get every event from the next number on.
            self.epoch = epoch
            return []
        return self._settle(epoch, frame)

    def _verdict(self, frame: Frame) -> list[Fact]:
        facts = [self._begin_replay(frame)] if self._may_begin else []
        facts += self._settle(frame["epoch"], frame)
        asked, count = frame["last_sequence"], self._replayed
        if not self._replaying:
            facts.append(Fact("fault", self.place, {"fault": "a verdict without a replay"}))
        elif asked != self._asked:
            facts.append(Fact("fault", self.place, {"fault": f"a verdict on {asked}, but {self._asked} was asked for"}))
        if frame["replayed_count"] != count:
            text = f"replayed_count {frame['replayed_count']}, but {count} frames came"
            facts.append(Fact("fault", self.place, {"fault": text}))
        if frame.get("epoch_changed"):
            pass
        elif frame.get("gap_too_old"):
            facts.append(Fact("loss", Place(self.epoch, frame["oldest_available"] - 1), frame, asked + 1))
        elif not frame["recovered"] and self._begun:
            self.sequence = None
            facts.append(Fact("lost place", self.place, frame))
        elif not frame["recovered"]:
            # The number asked for was beyond the newest and means nothing; the replica's own is the best known.
            self.sequence = self._replica
        self._replaying, self._certain, self._replayed = False, True, 0
        return [*facts, Fact("verdict", self.place, frame)]

    @property
    def replaying(self) -> bool:
        """True while a replay is under way."""
        return self._replaying

    @property
    def unanswered(self) -> bool:
        """True while the verdict on a resume or a resync is outstanding."""
        return self._replaying or self._begun < len(self._resyncs)

    @property
    def place(self) -> Place:
        """The position of the client."""
        return Place(self.epoch, self.sequence or 0)

    @property
    def _may_begin(self) -> bool:
        """True if a resync is outstanding and no replay is under way."""
        return not self._replaying and self._begun < len(self._resyncs)

    def _begin_replay(self, frame: Frame) -> Fact:
        """Start the replay that the next resync asked for, with the first frame that shows it."""
        epoch, asked = self._resyncs[self._begun]
        self._begun += 1
        self._replaying, self._replayed, self._asked = True, 0, asked
        # a number of another epoch means nothing, and everything is replayed
        since = asked if epoch in ("", self.epoch) else 0
        self._pass(since)
        return Fact("replay", Place(self.epoch, since), frame)

    def _settle(self, epoch: str, frame: Frame) -> list[Fact]:
        """Assign this epoch to the replayed frames seen so far."""
        facts = self._enter(epoch, frame) if epoch != self.epoch else []
        self._certain = True
        waiting, self._unplaced = self._unplaced, []
        for each in waiting:
            if "sequence" in each:
                facts.append(self._placed(each))
            else:
                facts += self._gap(each) if each.get("type") == "gap" else self._patterns(each)
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
            reader.connect(connection.since, connection.resyncs)
            facts = [fact for frame in connection.frames for fact in reader.take(frame)]
            bodies.update({fact.place: fact.frame["data"] for fact in facts if fact.kind == "event"})
    return bodies


class _ClientCheck:
    """The check of one client."""

    def __init__(self, history: History, accepted: dict[Place, Accepted], record: ClientRecord, seen: _Seen) -> None:
        self._history = history
        self._accepted = accepted
        self._places = sorted(accepted)
        self._record = record
        self._seen = seen
        self._found: list[str] = []
        # The number in each epoch up to which it is decided what has arrived and what is missing.
        self._passed: dict[str, int] = {}
        # What has arrived and must not arrive again.
        self._had: set[Place] = set()
        # What is missing, with the complaint, unless its loss is announced.
        self._missing: dict[Place, str] = {}
        self._excused: list[tuple[str, int, float]] = []
        self._left: set[str] = set()
        self._asked: Place | None = None
        self._waits = False
        self._replica = ""
        self._where = ""
        # The current patterns, those that are to come, and all that were current since the last known position.
        self._patterns = record.patterns
        self._changes: list[Sequence[str] | None] = []
        self._recent = [self._patterns]

    def violations(self) -> list[str]:
        reader = Reader()
        for number, connection in enumerate(self._record.connections, 1):
            self._replica = connection.where
            self._where = f"{self._record.name}, connection {number} to {connection.where}"
            if not connection.frames:
                continue
            if connection.frames[0].get("type") != "connected":
                self._report(f"the first frame is {connection.frames[0]}")
            reader.connect(connection.since, connection.resyncs)
            self._patterns = [self._patterns, *self._changes][-1]
            self._changes = list(connection.changes)
            self._recent = [self._patterns]
            highest = None
            if connection.since is not None:
                highest = Place(connection.epoch, connection.since)
                self._passed.setdefault(connection.epoch, connection.since)
            self._asked = highest
            for frame in connection.frames:
                before, self._waits = reader.place, reader.replaying
                for fact in reader.take(frame):
                    highest = self._check_fact(fact, highest, before)
            if reader.unanswered:
                if connection.open:
                    self._report("a resync was not answered")
                # what did not come again had come before
                self._passed[reader.epoch] = max(self._passed.get(reader.epoch, 0), reader.place.sequence)
        self._pass(Place(reader.epoch, sys.maxsize))
        self._found += [text for place, text in self._missing.items() if not self._is_excused(place)]
        return self._found

    def _check_fact(self, fact: Fact, highest: Place | None, before: Place) -> Place | None:
        """Check one fact; `highest` is the last position that this connection mentioned. Returns the new one."""
        place = fact.place
        within = highest is not None and highest.epoch == place.epoch
        match fact.kind:
            case "begin":
                self._passed[place.epoch] = place.sequence
            case "event":
                self._check_event(fact)
                if highest is not None and within and place.sequence <= highest.sequence:
                    self._report(f"{place} came after {highest}")
                self._had.add(place)
                self._pass(place)
            case "heartbeat":
                if highest is not None and within and place.sequence < highest.sequence:
                    if self._waits and highest == self._asked:
                        # a replica that has not reached the position of the client says so, and lets it wait
                        return highest
                    self._report(f"heartbeat {place} is behind {highest}")
                self._pass(place, f"had not come before heartbeat {place}")
            case "loss":
                self._excused.append((place.epoch, fact.first, place.sequence))
                if self._history.complete:
                    self._report(f"the loss of {fact.first} to {place} was announced, but Redis has kept everything")
                if fact.frame["type"] != "gap":
                    return highest  # a verdict refers to positions before the replay
                self._check_gap(fact)
                self._pass(place)
            case "epoch":
                if place.epoch in self._left:
                    self._report(f"epoch {place.epoch} came back")
                self._left.add(before.epoch)
                self._excused.append((before.epoch, before.sequence + 1, float("inf")))
                self._passed[place.epoch] = 0
            case "replay":
                self._passed[place.epoch] = place.sequence
                self._had = {each for each in self._had if each.epoch != place.epoch or each <= place}
                self._asked = None
            case "lost place":
                self._passed.pop(place.epoch, None)
                return None
            case "patterns":
                self._change_patterns()
            case "fault":
                self._report(f"at {place}: {fact.frame['fault']}")
            case "verdict":
                if self._history.complete and not fact.frame["recovered"]:
                    self._report(f"at {place}: a verdict of a loss, but Redis has kept everything")
                if not fact.frame["recovered"] and place.sequence < before.sequence:
                    return None  # the number asked for was beyond the newest, and means nothing
        return highest if fact.kind in ("fault", "verdict", "patterns") else place

    def _change_patterns(self) -> None:
        if not self._changes:
            self._report("a reply to a change of patterns that was not asked for")
            return
        self._patterns = self._changes.pop(0)
        self._recent.append(self._patterns)

    def _pass(self, place: Place, complaint: str = "is missing, and no loss was announced") -> None:
        """Decide that everything up to `place` has arrived or is missing."""
        passed = self._passed.setdefault(place.epoch, place.sequence)
        if place.sequence < passed:
            return
        between = slice(bisect_right(self._places, Place(place.epoch, passed)), bisect_right(self._places, place))
        for each in self._places[between]:
            if each not in self._had and self._must_arrive(each):
                self._missing.setdefault(each, f"{self._where}: {each} {complaint}")
        self._passed[place.epoch] = place.sequence
        self._recent = [self._patterns]

    def _must_arrive(self, place: Place) -> bool:
        kind, data = self._accepted[place]
        return all(matches(patterns, kind, data or {"event_type": ""}) for patterns in self._recent)

    def _check_event(self, fact: Fact) -> None:
        place, frame = fact.place, fact.frame
        kind, data = frame["type"], frame["data"]
        content = content_of(kind, data)
        if place in self._had:
            self._report(f"{place} came twice")
        if not matches(self._patterns, kind, data):
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

    def _is_excused(self, place: Place) -> bool:
        return any(epoch == place.epoch and low <= place.sequence <= high for epoch, low, high in self._excused)

    def _report(self, text: str) -> None:
        self._found.append(f"{self._where}: {text}")
