/** What a row of the list says of a message. */

const SEVERITIES = {
  low: ["running", "healthy", "online", "info", "low"],
  medium: ["warning", "medium", "degraded", "restarting", "unknown"],
  high: ["high", "offline", "stopped", "unhealthy", "failed", "restart_failed"],
  critical: ["critical", "crashed", "error"],
};
const LEVELS = new Map(Object.entries(SEVERITIES).flatMap(([level, names]) => names.map((name) => [name, level])));

/** The texts of a row; `item` is a message with its number, or a note. */
export function describe(item) {
  const time = new Date(item.at).toTimeString().slice(0, 8);
  if (!item.message) return { time, number: "", type: "", text: item.note, mark: item.mark };
  const { message, number } = item;
  return {
    time,
    number,
    type: message.type + (message.replay ? " ↺" : ""),
    text: textOf(message),
    severity: severityOf(message),
    replay: message.replay ? "true" : "",
  };
}

/** A function that is true for the items in which a text occurs, or for `field=value` that value in that field. */
export function matching(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return () => true;
  const [, field, value] = /^(\w+)\s*=\s*(.+)$/.exec(wanted) ?? [];
  if (field) return ({ message }) => textIn(message?.data?.[field]).includes(value);
  return (item) => textIn(item.message ?? item.note).includes(wanted);
}

function textIn(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value ?? "");
  return text.toLowerCase();
}

function severityOf({ type, data }) {
  if (type === "worker_status") return /error|failed/.test(data.event_type) ? "high" : "low";
  const name = data.severity ?? data.risk_level ?? (type.startsWith("alert") ? "" : data.status);
  return LEVELS.get(name) ?? "low";
}

function textOf({ type, data }) {
  const who = data.camera_name ?? data.camera_id ?? data.service ?? data.worker_name ?? data.alertname ?? data.id;
  const kind = type === "worker_status" ? data.event_type : undefined;
  const what = kind ?? data.status ?? data.change_type ?? data.label ?? data.severity;
  const told = data.summary ?? data.message ?? data.reason ?? data.description ?? data.hourly?.content ?? data.daily?.content;
  const parts = [who, what, told].filter((part) => part !== undefined && part !== null && part !== "");
  return parts.join(" · ") || JSON.stringify(data);
}
