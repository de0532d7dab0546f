/** The health of the replica, asked for once a second and shown as a list of facts. */

const INTERVAL = 1000;

/** Ask for `/health` again and again; `onReport(report)` gets each answer, and null when there is none. */
export async function watchReplica(base, list, note, onReport) {
  let report = null;
  try {
    const answer = await fetch(new URL("health", base), { cache: "no-store" });
    if (answer.status === 404) {
      note.textContent = "The health of this replica is served on another port (INTERNAL_PORT).";
      return;
    }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    report = await answer.json();
    note.textContent = "";
    show(list, facts(report));
  } catch (error) {
    note.textContent = `The health of the replica cannot be shown: ${error.message}.`;
  }
  onReport(report);
  setTimeout(() => watchReplica(base, list, note, onReport), INTERVAL);
}

function facts({ circuit, retry, ...replica }) {
  return {
    status: replica.status,
    connections: replica.connections,
    position: `${replica.sequence} in ${replica.epoch}`,
    Redis: replica.redis,
    listener: replica.listener_healthy ? "healthy" : "not healthy",
    circuit: `${circuit.state}, ${circuit.total_failures} failures, ${circuit.total_successes} successes`,
    publishes: `${retry.successful_broadcasts} accepted, ${retry.failed_broadcasts} failed`,
    retries: Object.entries(retry.retry_counts).reduce((sum, [retries, publishes]) => sum + retries * publishes, 0),
  };
}

function show(list, values) {
  const nodes = Object.entries(values).flatMap(([name, value]) => {
    const [term, definition] = ["dt", "dd"].map((tag) => document.createElement(tag));
    term.textContent = name;
    definition.textContent = value;
    return [term, definition];
  });
  list.replaceChildren(...nodes);
}
