/** Draws one frame of a chart on a canvas: axes with a few round numbers, curves, marks, the cursor. */

import { formatCount, formatNumber, themed } from "./dom.js";
import { ticks } from "./series.js";

const FONT = "10px Inter, Arial, sans-serif";
const LINE = 14; // pixels for a line of labels

/**
 * Draw `frame` on `canvas`, sharp at any zoom and density; gives the plot's {left, right, top, bottom} in pixels.
 *
 * frame: x [low, high]; left {range, name} and right (the same, with colour) or null; curves [{points [[x, y]], axis,
 * range, colour, width, alpha, dash, mark}], where `range` stands in for an axis; drops [x]; cursor x or null.
 * Colours are names: "loss" is the CSS variable --tl-loss.
 */
export function drawChart(canvas, frame) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const scale = densityOf(canvas);
  resize(canvas, Math.round(width * scale), Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = FONT;
  const colour = (name) => themed(canvas, `--tl-${name}`, "#888");
  const marks = { left: axisTicks(frame.left, height), right: axisTicks(frame.right, height) };
  const box = boxOf(pen, width, height, frame, marks);
  const toX = (x) => box.left + ((x - frame.x[0]) / (frame.x[1] - frame.x[0] || 1)) * (box.right - box.left);
  const toY = (y, [low, high]) => box.bottom - ((y - low) / (high - low || 1)) * (box.bottom - box.top);
  drawAxes(pen, frame, marks, box, toX, toY, colour);
  pen.save();
  pen.beginPath();
  pen.rect(box.left - 4, box.top - 3, box.right - box.left + 8, box.bottom - box.top + 7);
  pen.clip();
  for (const curve of frame.curves) drawCurve(pen, curve, curve.range ?? frame[curve.axis].range, toX, toY, colour);
  drawDrops(pen, frame.drops ?? [], box, toX, colour);
  pen.restore();
  if (frame.cursor !== null && frame.cursor !== undefined) drawCursor(pen, frame, box, toX, toY, colour);
  return box;
}

/** How many pixels of the screen a pixel of the canvas is: the screen's density times the zoom of the graph. */
export function densityOf(canvas) {
  const zoom = canvas.clientWidth ? canvas.getBoundingClientRect().width / canvas.clientWidth : 1;
  return Math.min(6, Math.max(1, (window.devicePixelRatio || 1) * Math.max(zoom, 0.5)));
}

function resize(canvas, width, height) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

function axisTicks(axis, height) {
  return axis ? ticks(axis.range[0], axis.range[1], Math.max(2, Math.round(height / 32))) : [];
}

function boxOf(pen, width, height, frame, marks) {
  const widest = (numbers) => Math.max(0, ...numbers.map((number) => pen.measureText(formatNumber(number)).width));
  return {
    width,
    left: Math.ceil(widest(marks.left)) + 7,
    right: width - (frame.right ? Math.ceil(widest(marks.right)) + 7 : 7),
    top: LINE,
    bottom: height - LINE - 1,
  };
}

function drawAxes(pen, frame, marks, box, toX, toY, colour) {
  pen.lineWidth = 1;
  pen.strokeStyle = colour("grid");
  pen.fillStyle = colour("dim");
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const number of marks.left) {
    const y = Math.round(toY(number, frame.left.range)) + 0.5;
    pen.beginPath();
    pen.moveTo(box.left, y);
    pen.lineTo(box.right, y);
    pen.stroke();
    pen.fillText(formatNumber(number), box.left - 4, y);
  }
  drawSteps(pen, frame, box, toX);
  pen.textBaseline = "top";
  pen.textAlign = "left";
  pen.fillText(frame.left.name, 1, 0);
  if (!frame.right) return;
  pen.fillStyle = colour(frame.right.colour);
  pen.textAlign = "right";
  pen.fillText(frame.right.name, box.width - 1, 0);
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  for (const number of marks.right) pen.fillText(formatNumber(number), box.right + 5, toY(number, frame.right.range));
}

function drawSteps(pen, frame, box, toX) {
  pen.textBaseline = "bottom";
  const named = ticks(frame.x[0], frame.x[1], Math.max(2, (box.right - box.left) / 55)).filter(Number.isInteger);
  let free = -Infinity;
  for (const step of named) {
    const text = formatCount(step);
    const half = pen.measureText(text).width / 2;
    const x = Math.min(Math.max(toX(step), box.left + half), box.right - half + 5);
    if (x - half < free) continue;
    free = x + half + 6;
    pen.textAlign = "center";
    pen.fillText(text, x, box.bottom + LINE + 1);
  }
}

function drawCurve(pen, curve, range, toX, toY, colour) {
  pen.globalAlpha = curve.alpha ?? 1;
  pen.strokeStyle = pen.fillStyle = colour(curve.colour);
  pen.lineWidth = curve.width ?? 1.5;
  pen.lineJoin = "round";
  pen.setLineDash(curve.dash ?? []);
  pen.beginPath();
  let down = false;
  for (const [x, y] of curve.points) {
    if (y === null || y === undefined || !Number.isFinite(y)) down = false;
    else {
      if (down) pen.lineTo(toX(x), toY(y, range));
      else pen.moveTo(toX(x), toY(y, range));
      down = true;
    }
  }
  pen.stroke();
  pen.setLineDash([]);
  if (curve.mark) drawMarks(pen, curve, range, toX, toY);
  pen.globalAlpha = 1;
}

function drawMarks(pen, curve, range, toX, toY) {
  let free = -Infinity;
  curve.points.forEach(([x, y], index) => {
    const at = toX(x);
    // marks in a heap say nothing: one every ten pixels, and the last
    if (!Number.isFinite(y) || (at < free && index < curve.points.length - 1)) return;
    free = at + 10;
    drawMark(pen, curve.mark, at, toY(y, range), 3);
  });
}

function drawMark(pen, mark, x, y, size) {
  pen.beginPath();
  if (mark === "diamond") {
    pen.moveTo(x, y - size * 1.3);
    pen.lineTo(x + size * 1.3, y);
    pen.lineTo(x, y + size * 1.3);
    pen.lineTo(x - size * 1.3, y);
  } else if (mark === "square") pen.rect(x - size, y - size, 2 * size, 2 * size);
  else pen.arc(x, y, size, 0, 2 * Math.PI);
  pen.closePath();
  pen.fill();
}

/** Steps that were left out because their loss was no number: a small cross at the foot. */
function drawDrops(pen, steps, box, toX, colour) {
  pen.strokeStyle = colour("bad");
  pen.lineWidth = 1.5;
  let free = -Infinity;
  for (const step of steps) {
    if (toX(step) < free) continue; // a heap of them looks like one
    free = toX(step) + 8;
    const [x, y] = [toX(step), box.bottom - 5];
    pen.beginPath();
    pen.moveTo(x - 3, y - 3);
    pen.lineTo(x + 3, y + 3);
    pen.moveTo(x + 3, y - 3);
    pen.lineTo(x - 3, y + 3);
    pen.stroke();
  }
}

function drawCursor(pen, frame, box, toX, toY, colour) {
  const x = Math.round(toX(frame.cursor)) + 0.5;
  pen.strokeStyle = colour("text");
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(x, box.top);
  pen.lineTo(x, box.bottom);
  pen.stroke();
  for (const { y, axis, range, colour: name, mark } of frame.dots ?? []) {
    pen.fillStyle = colour(name);
    drawMark(pen, mark ?? "circle", x, toY(y, range ?? frame[axis].range), 3.5);
  }
}
