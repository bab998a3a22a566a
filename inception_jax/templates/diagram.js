// Opens and folds the modules of a network's drawing. The rows below move; the widths have room for all modules open.
const svg = document.currentScript.ownerSVGElement;

// Places the rows of a graph, one below the other, and returns their height.
function place(graph) {
  const gap = +svg.dataset.gap;
  let y = 0;
  for (const row of graph.querySelectorAll(':scope > .row')) {
    const items = [...row.querySelectorAll(':scope > .item')];
    const heights = items.map(heightOf);
    const highest = Math.max(...heights);
    items.forEach((item, i) => {
      const tail = item.querySelector(':scope > .tail');
      if (tail) {
        tail.setAttribute('y1', heights[i]);
        tail.setAttribute('y2', highest);
      }
    });
    row.setAttribute('transform', `translate(0 ${y})`);
    row.querySelector(':scope > .lines').setAttribute('transform', `translate(0 ${highest})`);
    y += highest + gap;
  }
  return y - gap;
}

function heightOf(item) {
  const inside = item.querySelector(':scope > .inside');
  let height = +item.dataset.height;
  if (!inside) return height;
  const open = item.classList.contains('open');
  inside.style.display = open ? '' : 'none';
  item.querySelector(':scope > [role]').setAttribute('aria-expanded', open);
  if (open) {
    height += place(inside.querySelector(':scope > .graph'));
    inside.querySelector(':scope > .frame').setAttribute('height', height);
  }
  return height;
}

for (const head of svg.querySelectorAll('[role=button]')) {
  const toggle = () => {
    head.parentNode.classList.toggle('open');
    const height = place(svg.querySelector(':scope > .graph')) + +svg.dataset.around;
    svg.setAttribute('height', height);
    svg.setAttribute('viewBox', `0 0 ${svg.getAttribute('width')} ${height}`);
  };
  head.addEventListener('click', toggle);
  head.addEventListener('keydown', event => {
    if (event.key !== 'Enter' && event.key !== ' ') return;
    event.preventDefault();
    toggle();
  });
}
