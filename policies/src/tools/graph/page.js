'use strict';
const graph = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const boxes = [...document.querySelectorAll('.filter input')];
const words = Object.fromEntries(boxes.map(b => [b.value, b.parentElement.textContent.trim().replace(/\s\d+$/, '')]));
const nodes = new Map([...document.querySelectorAll('[data-node]')].map(e => [+e.dataset.node, e]));
const edges = new Map([...document.querySelectorAll('[data-edge]')].map(e => [+e.dataset.edge, e]));
const nodeText = graph.nodes.map(n => [n.name, n.spiffe_id, n.namespace, ...n.labels].join(' ').toLowerCase());
const edgeText = graph.edges.map(e => [...e.traffic, ...e.rules, e.reason].join(' ').toLowerCase());
let chosen = null;

for (const name of [...new Set(graph.nodes.map(n => n.namespace).filter(Boolean))].sort()) {
  $('namespace').append(new Option(name, name));
}

function matches() {
  const states = new Set(boxes.filter(b => b.checked).map(b => b.value));
  const parts = $('search').value.toLowerCase().split(/\s+/).filter(Boolean);
  const namespace = $('namespace').value;
  return graph.edges.map((edge, i) => {
    const text = `${nodeText[edge.from]} ${nodeText[edge.to]} ${edgeText[i]}`;
    return states.has(edge.state)
      && parts.every(part => text.includes(part))
      && (!namespace || [edge.from, edge.to].some(n => graph.nodes[n].namespace === namespace))
      && (chosen === null || edge.from === chosen || edge.to === chosen);
  });
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function seen(edge) {
  return Object.entries(edge.seen).map(([what, count]) => `${count} ${what}`).join(', ') || (graph.has_observed ? 'never' : '');
}

function swatch(state) {
  const made = document.querySelector(`.filter input[value="${state}"]`).parentElement.querySelector('svg').cloneNode(true);
  return made;
}

function row(edge) {
  const made = element('tr');
  made.append(element('td', graph.nodes[edge.from].name), element('td', graph.nodes[edge.to].name),
    element('td', edge.traffic.join(', ')));
  const state = element('td');
  state.append(swatch(edge.state), ' ' + words[edge.state]);
  made.append(state, element('td', seen(edge) + (edge.reason ? ` (${edge.reason})` : '')),
    element('td', edge.rules.join('\n'), 'rule'));
  made.lastChild.style.whiteSpace = 'pre-line';
  return made;
}

function list(title, items) {
  const made = document.createDocumentFragment();
  if (items.length) {
    made.append(element('h3', title));
    const items_ = element('ul');
    for (const item of items) items_.append(element('li', item));
    made.append(items_);
  }
  return made;
}

function details() {
  const pane = $('details');
  pane.hidden = chosen === null;
  if (chosen === null) return;
  const node = graph.nodes[chosen];
  const end = (edge, other) => `${graph.nodes[other].name}: ${edge.traffic.join(', ')} (${words[edge.state]})`;
  pane.replaceChildren(element('h2', node.name));
  if (node.spiffe_id) pane.append(element('div', node.spiffe_id));
  if (node.alike) pane.append(element('div', `and ${node.alike} more that no policy tells from it`));
  pane.append(list('Labels', node.labels),
    list('Called by', graph.edges.filter(e => e.to === chosen).map(e => end(e, e.from))),
    list('Calls', graph.edges.filter(e => e.from === chosen).map(e => end(e, e.to))));
}

function show() {
  const shown = matches();
  const used = new Set();
  const rows = [];
  graph.edges.forEach((edge, i) => {
    edges.get(i).classList.toggle('hidden', !shown[i]);
    if (shown[i]) { used.add(edge.from).add(edge.to); rows.push(row(edge)); }
  });
  const narrowed = shown.includes(false);
  nodes.forEach((e, i) => {
    e.classList.toggle('faded', narrowed && !used.has(i));
    e.classList.toggle('chosen', i === chosen);
  });
  if (!rows.length) {
    const empty = element('tr');
    empty.append(element('td', 'Nothing matches.', 'empty'));
    empty.firstChild.colSpan = 6;
    rows.push(empty);
  }
  $('rows').replaceChildren(...rows);
  const count = shown.filter(Boolean).length;
  $('count').textContent = `${count} of ${graph.edges.length} edges`;
  details();
}

function choose(node) {
  chosen = chosen === node ? null : node;
  show();
  nodes.get(node).scrollIntoView({block: 'nearest', inline: 'nearest'});
}

nodes.forEach((e, i) => {
  e.addEventListener('click', () => choose(i));
  e.addEventListener('keydown', k => { if (k.key === 'Enter' || k.key === ' ') { k.preventDefault(); choose(i); } });
});
document.addEventListener('keydown', k => { if (k.key === 'Escape') { chosen = null; show(); } });
for (const control of [$('search'), $('namespace'), ...boxes]) control.addEventListener('input', show);
show();
