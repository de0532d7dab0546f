/** Types of client.js, the client of an Event Broadcaster for browsers and Node.js. */

/** A place in the numbering of events. */
export interface Position {
  epoch: string;
  sequence: number;
}

/** An event, as it was published; `data` depends on `type`. */
export interface EventMessage {
  type: string;
  data: Record<string, unknown>;
  /** Its number; `seq` where the server is set to that name. */
  sequence: number;
  requires_ack: boolean;
  /** True for an event that was missed and is sent again. */
  replay?: true;
  timestamp?: string | null;
  traceparent?: string;
}

/** Events `from` to `to` are lost. */
export interface GapMessage {
  type: "gap";
  from: number;
  to: number;
}

/** The numbering has restarted; events of the epoch before may be lost. */
export interface EpochChangedMessage {
  type: "epoch_changed";
  epoch: string;
}

/** The end of a replay: whether all missed events have come. */
export interface ResyncAckMessage {
  type: "resync_ack";
  channel: string;
  epoch: string;
  last_sequence: number;
  replayed_count: number;
  /** True if nothing is missing. If no other field says why it is false, what is missing cannot be told. */
  recovered: boolean;
  gap_too_old?: true;
  oldest_available?: number;
  epoch_changed?: true;
}

/** The server has lost, or has found again, its connection to Redis; it has no number. */
export interface ServiceNotice {
  type: "service_status";
  data: { service: "event_broadcaster"; status: "degraded" | "healthy"; message: string; circuit_state: string };
  timestamp: string;
  sequence?: undefined;
}

export type Message = EventMessage | GapMessage | EpochChangedMessage | ResyncAckMessage | ServiceNotice;

/** An error that the server has answered, to a pattern for example. */
export interface ServerError {
  type: "error";
  error: string;
  message: string;
  details: Record<string, unknown>;
}

export interface Status {
  state: "connecting" | "replaying" | "live" | "waiting" | "closed";
  /** Why, for `waiting` and `closed`; otherwise empty. */
  reason: string;
  /** For `waiting`: the milliseconds until the next connection. Absent while the reader catches up. */
  delay?: number;
}

export interface Options {
  /** Patterns such as `alert.*`, at most 100; without any, those in the URL's `events`, else all events. */
  events?: string[];
  /** The token of the server, or a function that returns one for each connection. */
  token?: string | (() => string | Promise<string>);
  /** An API key. A WebSocket sends it as a subprotocol, a stream as a header. */
  apiKey?: string;
  /**
   * Where to start: "memory" (default) with the next event; "session" with the position that an earlier page of this tab
   * has stored for this URL and these patterns, if any; a position after that one. By default the `since` and `epoch` of
   * the URL count, if it has them.
   */
  resume?: "memory" | "session" | Position;
  /** "auto" (default) takes server-sent events if two WebSockets in a row could not be opened. */
  transport?: "auto" | "websocket" | "sse";
}

/** The events that a stream dispatches; `detail` is what each name says. */
export interface StreamEvents {
  status: CustomEvent<Status>;
  message: CustomEvent<EventMessage>;
  gap: CustomEvent<GapMessage>;
  epoch_changed: CustomEvent<EpochChangedMessage>;
  resync_ack: CustomEvent<ResyncAckMessage>;
  service_status: CustomEvent<ServiceNotice>;
  error: CustomEvent<ServerError>;
}

/**
 * All messages in order: iterate with `for await`, or add a listener for `message` and the other names. Messages are kept
 * for the loop, up to 10,000, unless there is a listener for `message` and no loop.
 */
export interface Stream extends EventTarget, AsyncIterable<Message> {
  readonly status: Status;
  /** The position of the last message that was read. */
  readonly position: Position | null;
  /** Receive the events that match these patterns too. Throws a RangeError if a pattern is invalid. */
  subscribe(events: string[]): void;
  /** Receive those of these patterns no longer; without patterns, receive everything. */
  unsubscribe(events?: string[]): void;
  /** Acknowledge an event and all before it. */
  ack(message: EventMessage): void;
  /** Close for good; loops end, and messages that they have not taken are dropped. */
  close(): void;
  addEventListener<K extends keyof StreamEvents>(
    type: K,
    listener: (event: StreamEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof StreamEvents>(
    type: K,
    listener: (event: StreamEvents[K]) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** Connect; `url` is that of `/ws/events` or `/events`, or of the service. Throws if it or a pattern is invalid. */
export function connect(url: string | URL, options?: Options): Stream;
