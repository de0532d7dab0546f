/**
 * Runs streams of client.js on commands, and reports everything that they receive, in Node.js and in a page.
 *
 * In Node.js the commands come as lines of JSON on standard input, and the reports go to standard output. A page imports
 * this module and calls `streams`.
 */

const MESSAGES = ["message", "gap", "epoch_changed", "resync_ack", "service_status"];

export function streams(connect, report) {
  const running = new Map();

  /** A function for `token` that returns the next of these tokens at each call, and throws in place of a null. */
  function tokenFunction(name, tokens) {
    return async () => {
      const token = tokens.length > 1 ? tokens.shift() : tokens[0];
      report({ name, token });
      if (token === null) throw new Error("none left");
      return token;
    };
  }

  async function read(name, one) {
    for await (const message of one.stream) {
      report({ name, message, position: one.stream.position });
      if (one.leaves) break;
      await one.gate;
    }
    report({ name, ended: true });
  }

  const commands = {
    connect({ name, url, options = {}, tokens, reads = "loop", closesAt }) {
      if (tokens) options.token = tokenFunction(name, tokens);
      const stream = connect(url, options);
      const one = { stream, gate: null, open: null };
      running.set(name, one);
      stream.addEventListener("status", ({ detail }) => {
        report({ name, status: detail, position: stream.position });
        if (detail.state === closesAt) stream.close();
      });
      stream.addEventListener("error", ({ detail }) => report({ name, error: detail }));
      if (reads === "loop") read(name, one);
      for (const type of reads === "listener" ? MESSAGES : []) {
        stream.addEventListener(type, ({ detail }) => report({ name, message: detail, position: stream.position }));
      }
    },
    call({ name, method, values }) {
      running.get(name).stream[method](...values);
    },
    /** Let the loop stop after the next message, or go on. */
    pause({ name }) {
      const one = running.get(name);
      one.gate = new Promise((resolve) => (one.open = resolve));
    },
    proceed({ name }) {
      const one = running.get(name);
      one.gate = null;
      one.open();
    },
    read({ name }) {
      read(name, running.get(name));
    },
    place({ name }) {
      report({ name, position: running.get(name).stream.position });
    },
    random({ value }) {
      Math.random = () => value;
    },
    store({ key, value }) {
      globalThis.sessionStorage.setItem(key, value);
    },
    stored({ name }) {
      report({ name, stored: Object.fromEntries(Object.entries(globalThis.sessionStorage)) });
    },
  };

  return (command) => {
    try {
      commands[command.do](command);
    } catch (error) {
      report({ name: command.name, threw: `${error.name}: ${error.message}` });
    }
  };
}

/** The sessionStorage of a page, as far as client.js uses it. */
class Storage {
  getItem(key) {
    return Object.hasOwn(this, key) ? this[key] : null;
  }

  setItem(key, value) {
    this[key] = String(value);
  }
}

if (globalThis.process?.argv[2]) {
  const { createInterface } = await import("node:readline");
  const { connect } = await import(process.argv[2]);
  Object.defineProperty(globalThis, "sessionStorage", { value: new Storage(), configurable: true });
  const run = streams(connect, (report) => process.stdout.write(`${JSON.stringify(report)}\n`));
  createInterface({ input: process.stdin })
    .on("line", (line) => {
      run(JSON.parse(line));
      process.stdout.write('{"done":true}\n');
    })
    .on("close", () => process.exit());
}
