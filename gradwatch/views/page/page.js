// Shows the figure under the pointer; the page is whole without it. Its hash is in the page's content security policy.
'use strict';

const runs = JSON.parse(document.getElementById('figures').textContent);
const tip = document.getElementById('tip');

function stepAt(svg, event, {left, right, first, end}) {
  const box = svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  const share = (x - left) / (right - left);
  return share >= 0 && share < 1 ? {share, step: Math.floor(first + share * (end - first))} : null;
}

function words(value) {
  return value === null ? 'not measured' : typeof value === 'string' ? value : String(value);
}

function ofMap(svg, event, run) {
  const at = stepAt(svg, event, run.axis);
  const picture = svg.querySelector('image').getBoundingClientRect();
  const row = Math.floor(((event.clientY - picture.top) / picture.height) * run.rows.length);
  if (!at || row < 0 || row >= run.rows.length) return null;
  const figures = run.norms[row];
  const value = figures[Math.floor(at.share * figures.length)];
  return [run.rows[row], `step ${at.step}`, `gradient norm ${words(value)}`];
}

function ofCurve(svg, event, run) {
  const at = stepAt(svg, event, run.axis);
  if (!at) return null;
  const lines = [`step ${at.step}`];
  for (const [title, {steps, values}] of Object.entries(run.curves)) {
    const next = steps.findIndex((step) => step >= at.step);
    if (next >= 0) lines.push(`${title} ${words(values[next])}`);
  }
  return lines;
}

function show(lines, event) {
  tip.hidden = !lines;
  if (!lines) return;
  tip.textContent = lines.join('\n');
  const width = tip.offsetWidth;
  const beside = event.clientX + 14 + width < innerWidth ? event.clientX + 14 : event.clientX - 14 - width;
  tip.style.left = `${Math.max(4, beside)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4)}px`;
}

for (const section of document.querySelectorAll('section[data-run]')) {
  const run = runs[Number(section.dataset.run)];
  for (const svg of section.querySelectorAll('svg.map, svg.chart')) {
    const of = svg.classList.contains('map') ? ofMap : ofCurve;
    svg.addEventListener('pointermove', (event) => show(of(svg, event, run), event));
    svg.addEventListener('pointerleave', () => show(null));
  }
}
