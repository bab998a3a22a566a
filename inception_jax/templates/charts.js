"use strict";
// Values of charts: under the pointer, or by the keyboard with a slider; and a switch between linear and log scale.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const {log, xs, places, lines} = JSON.parse(figure.dataset.chart);
  const make = (name, properties) => Object.assign(document.createElement(name), properties);
  const caption = figure.querySelector("figcaption"), image = figure.querySelector("img");
  const sources = [image.src, image.dataset.other];
  const plot = make("div", {className: "plot"}), cursor = make("div", {className: "cursor", hidden: true});
  const slider = make("input", {type: "range", min: 0, max: xs.length - 1, value: xs.length - 1});
  const values = make("output", {className: "readout"});
  let drawing = 0;

  function alignSlider() {  // its thumb, of .9rem, is below the value's point
    const [first, last] = [places[drawing][0], places[drawing].at(-1)];
    slider.style.marginLeft = `calc(${100 * first}% - .45rem)`;
    slider.style.width = `calc(${100 * (last - first)}% + .9rem)`;
  }

  function show(place, pointed) {
    slider.value = place;
    cursor.style.left = 100 * places[drawing][place] + "%";
    cursor.hidden = !pointed;
    values.replaceChildren(make("span", {textContent: xs[place]}));
    for (const {name, hue, values: own} of lines) {
      if (own[place] === null) continue;
      const entry = make("span", {textContent: name ? `${name} ` : ""});
      entry.append(make("strong", {textContent: own[place]}));
      entry.style.setProperty("--hue", `var(--${hue})`);
      entry.className = "entry";
      values.append(entry);
    }
    slider.setAttribute("aria-valuetext", [...values.children].map(entry => entry.textContent).join(", "));
  }

  function follow(event) {
    const box = image.getBoundingClientRect(), x = (event.clientX - box.left) / box.width;
    const far = place => Math.abs(places[drawing][place] - x);
    show(xs.reduce((nearest, _, place) => far(place) < far(nearest) ? place : nearest, 0), true);
  }

  slider.setAttribute("aria-label", `${caption.textContent}: values`);
  slider.addEventListener("input", () => show(+slider.value, true));
  slider.addEventListener("focus", () => show(+slider.value, true));
  slider.addEventListener("blur", () => { cursor.hidden = true; });
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerleave", () => { cursor.hidden = document.activeElement !== slider; });
  image.replaceWith(plot);
  plot.append(image, cursor);
  figure.append(slider, values);
  slider.hidden = xs.length === 1;
  alignSlider();
  show(xs.length - 1, false);

  if (sources[1]) {
    const button = make("button", {type: "button", textContent: "log scale"});
    const press = () => button.setAttribute("aria-pressed", log === (drawing === 0));
    button.addEventListener("click", () => {
      drawing = 1 - drawing;
      image.src = sources[drawing];
      press();
      alignSlider();
      show(+slider.value, !cursor.hidden);
    });
    press();
    caption.append(button);
  }
}
