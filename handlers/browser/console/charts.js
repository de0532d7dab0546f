/** What the page draws: the strip of the newest numbers, and small charts over time. */

import { EXCLUDED, MISSING, NAMES } from "./ledger.js";

/** Values that a chart has room for, one a second. */
export const POINTS = 120;

/** Draw the newest numbers, one cell each, the newest at the right. Returns the first and the last number, or null. */
export function drawStrip(canvas, ledger, colours) {
  const { context, scale, width, height } = prepare(canvas);
  if (ledger.first === null || ledger.newest < ledger.first) return null;
  const cell = Math.round(5 * scale);
  const from = Math.max(ledger.first, ledger.newest - Math.floor(width / cell) + 1);
  for (let number = from; number <= ledger.newest; number += 1) {
    const state = ledger.at(number);
    if (!state) continue;
    context.fillStyle = colours[NAMES[state]];
    const tall = height * (state === EXCLUDED ? 0.3 : state === MISSING ? 0.6 : 0.86);
    context.fillRect(width - (ledger.newest - number + 1) * cell, (height - tall) / 2, cell - Math.max(1, scale), tall);
  }
  return [from, ledger.newest];
}

/** Draw values as a small area chart, the newest at the right; null is a value that is not known. */
export function drawChart(canvas, values, colour) {
  const { context, scale, width, height } = prepare(canvas);
  const top = Math.max(1, ...values);
  const floor = height - 1.5 * scale;
  const x = (index) => width - ((values.length - 1 - index) * width) / (POINTS - 1);
  const y = (value) => floor - (floor - 2 * scale) * (value / top);
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = scale;
  context.globalAlpha = 0.3;
  context.fillRect(0, floor, width, scale);
  context.lineWidth = 1.5 * scale;
  let start = null;
  values.forEach((value, index) => {
    if (value === null) return;
    if (start === null) {
      start = index;
      context.beginPath();
      context.moveTo(x(index), y(value));
    } else context.lineTo(x(index), y(value));
    if (index + 1 < values.length && values[index + 1] !== null) return;
    context.globalAlpha = 1;
    context.stroke();
    context.lineTo(x(index), floor);
    context.lineTo(x(start), floor);
    context.globalAlpha = 0.15;
    context.fill();
    start = null;
  });
  context.globalAlpha = 1;
}

function prepare(canvas) {
  const scale = globalThis.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  return { context, scale, width, height };
}
