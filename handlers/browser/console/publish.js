/**
 * The form that publishes: it is made from the service's OpenAPI document, so it has every message type with its fields.
 */

export class PublishForm {
  #base;
  #headers;
  #onRefused;
  #form;
  #types = [];
  #loaded = false;

  /** `headers()` returns the credentials as headers; `onRefused(reason)` is called if the service wants others. */
  constructor(base, form, { headers, onRefused }) {
    this.#base = base;
    this.#form = form;
    this.#headers = headers;
    this.#onRefused = onRefused;
    this.#part("type").addEventListener("change", () => this.#show());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#publish();
    });
  }

  async load() {
    if (this.#loaded) return;
    this.#loaded = true;
    try {
      const answer = await fetch(new URL("schema/openapi.json", this.#base));
      if (!answer.ok) throw new Error(`the document could not be read (${answer.status})`);
      this.#types = typesOf(await answer.json());
    } catch (error) {
      this.#loaded = false;
      this.#say(`The form needs /schema: ${error.message}.`);
      return;
    }
    const options = this.#types.map(({ path }, index) => new Option(path.replace("/broadcast/", ""), index));
    this.#part("type").replaceChildren(...options);
    this.#part("submit").disabled = false;
    this.#show();
  }

  #part(name) {
    return this.#form.querySelector(`#publish-${name}`);
  }

  #say(text) {
    this.#part("answer").textContent = text;
  }

  #show() {
    const { summary, fields } = this.#types[this.#part("type").value];
    this.#part("about").textContent = summary;
    this.#part("fields").replaceChildren(...fields.map(inputFor));
    this.#say("");
  }

  async #publish() {
    const { path, fields } = this.#types[this.#part("type").value];
    const data = {};
    for (const field of fields) {
      const input = this.#form.querySelector(`#field-${CSS.escape(field.name)}`);
      input.removeAttribute("aria-invalid");
      input.parentElement.querySelector(".error").textContent = "";
      try {
        const value = valueOf(field, input);
        if (value !== undefined) data[field.name] = value;
      } catch {
        this.#say("Not published.");
        this.#blame([{ field: field.name, message: "is not valid JSON" }]);
        return;
      }
    }
    this.#say("Publishing …");
    let answer;
    try {
      answer = await fetch(new URL(path.slice(1), this.#base), {
        method: "POST",
        headers: { "Content-Type": "application/json", ...this.#headers() },
        body: JSON.stringify(data),
      });
    } catch (error) {
      this.#say(`Not published: ${error.message}.`);
      return;
    }
    const body = await answer.json().catch(() => ({}));
    if (answer.status === 202) {
      const replicas = body.subscribers === 1 ? "1 replica" : `${body.subscribers} replicas`;
      this.#say(`Published with number ${body.sequence}; ${replicas} got it.`);
      return;
    }
    this.#say(`Not published: ${answer.status} ${body.detail ?? ""}`);
    this.#blame(body.errors ?? []);
    if (answer.status === 401) this.#onRefused(body.detail);
  }

  /** Show each message beside the input of its field, and those of other fields below the form. */
  #blame(errors) {
    let first = null;
    for (const { field, message } of errors) {
      const name = field.replace(/^data\./, "").replace(/[.[].*$/, "");
      const input = this.#form.querySelector(`#field-${CSS.escape(name)}`);
      if (!input) {
        this.#say(`${this.#part("answer").textContent} ${field} ${message}`);
        continue;
      }
      input.setAttribute("aria-invalid", "true");
      input.parentElement.querySelector(".error").textContent = `${field.replace(/^data\./, "")} ${message}`;
      first ??= input;
    }
    first?.focus();
  }
}

/** The message types of the document: the route, the summary, and the fields of the data with an example. */
function typesOf(document) {
  const resolve = (node) => {
    if (!node?.$ref) return node;
    const path = node.$ref.slice(2).split("/");
    return resolve(path.reduce((place, name) => place[name], document));
  };
  const found = [];
  for (const [path, { post }] of Object.entries(document.paths)) {
    if (!post || !path.startsWith("/broadcast/") || path === "/broadcast/batch") continue;
    const content = post.requestBody.content["application/json"];
    const data = resolve((resolve(content.schema).oneOf ?? [content.schema])[0]);
    const example = content.examples?.bare?.value ?? {};
    const fields = Object.entries(data.properties ?? {}).map(([name, schema]) => ({
      ...fieldOf(schema, resolve),
      name,
      required: (data.required ?? []).includes(name),
      example: example[name],
    }));
    found.push({ path, summary: post.summary ?? "", fields });
  }
  return found;
}

function fieldOf(given, resolve) {
  const schema = resolve(given);
  const choices = (schema.anyOf ?? schema.oneOf ?? [schema]).map(resolve);
  const types = choices.flatMap((choice) => choice.type ?? []);
  const kind = ["boolean", "integer", "number", "string"].find((type) => types.includes(type)) ?? "json";
  const values = choices.find((choice) => choice.enum)?.enum ?? (kind === "boolean" ? ["true", "false"] : null);
  return { kind, values, description: given.description ?? schema.description ?? "" };
}

function inputFor({ name, kind, values, required, description, example }) {
  const box = document.createElement("div");
  box.className = "field";
  const label = document.createElement("label");
  label.htmlFor = `field-${name}`;
  label.textContent = required ? name : `${name} (optional)`;
  let input;
  if (values) {
    input = document.createElement("select");
    input.append(...(required ? [] : [new Option("–", "")]), ...values.map((value) => new Option(value, value)));
    input.value = example ?? (required ? values[0] : "");
  } else if (kind === "json") {
    input = document.createElement("textarea");
    input.value = example === undefined || example === null ? "" : JSON.stringify(example);
  } else {
    input = document.createElement("input");
    input.type = kind === "string" ? "text" : "number";
    if (kind === "number") input.step = "any";
    const moment = example && /_at$|^timestamp$/.test(name);
    input.value = moment ? new Date().toISOString() : (example ?? "");
    input.autocomplete = "off";
  }
  input.id = label.htmlFor;
  const about = document.createElement("small");
  about.id = `about-${name}`;
  about.textContent = description;
  const error = document.createElement("span");
  error.className = "error";
  error.id = `error-${name}`;
  error.setAttribute("role", "alert");
  input.setAttribute("aria-describedby", `${about.id} ${error.id}`);
  box.append(label, input, about, error);
  return box;
}

/** The value of an input; undefined if it is empty, except for a required text. */
function valueOf({ kind, required }, input) {
  const text = input.value;
  if (text === "" && !(required && kind === "string")) return undefined;
  if (kind === "integer" || kind === "number") return Number(text);
  if (kind === "boolean") return text === "true";
  return kind === "json" ? JSON.parse(text) : text;
}
