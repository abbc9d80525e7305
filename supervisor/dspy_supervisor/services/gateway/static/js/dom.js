// Elements: made, and changed only where something changed, so that focus, selection and what a screen reader is at stay.

/** Return a new element: h("p", {class: "note", onclick: f}, "text", other). Attributes of null are left out. */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else attribute(node, name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return a new element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) attribute(node, name, value);
  node.append(...children);
  return node;
}

/** Return the element with this id, which is in index.html. */
export function byId(id) {
  return document.getElementById(id);
}

/** Set the text of an element. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute; null, undefined and false remove it, true sets it empty. */
export function attribute(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

/** Let a container hold one element for each item, in order; elements of items that stay, stay. */
export function keyed(container, items, key, make, update) {
  const known = (container.keyed ??= new Map());
  const wanted = new Set();
  let place = container.firstElementChild;
  for (const item of items) {
    const name = key(item);
    wanted.add(name);
    let node = known.get(name);
    if (!node) known.set(name, (node = make(item)));
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else container.insertBefore(node, place);
  }
  for (const [name, node] of known) {
    if (!wanted.has(name)) {
      node.remove();
      known.delete(name);
    }
  }
}

/** Return a group of buttons of which one is pressed: choice("Range", [["1 h", 3600]], 3600, (value) => ...). */
export function choice(label, options, chosen, onchoose) {
  const group = h("div", { class: "choice", role: "group", "aria-label": label });
  for (const [text, value] of options) {
    const button = h("button", { type: "button", "aria-pressed": String(value === chosen) }, text);
    button.addEventListener("click", () => {
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
      onchoose(value);
    });
    group.append(button);
  }
  return group;
}
