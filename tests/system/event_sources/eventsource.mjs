// Listens with npm's eventsource, and prints each message as a line of JSON: node eventsource.mjs URL NAME...
import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const source = new EventSource(url);
for (const name of ["message", ...names]) {
  source.addEventListener(name, ({ type, data, lastEventId }) => {
    console.log(JSON.stringify({ event: type, data, id: lastEventId }));
  });
}
setInterval(() => {}, 60_000); // while it waits to reconnect, an EventSource does not keep the process running
