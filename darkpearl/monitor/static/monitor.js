// The page's own script: signs in, opens screens, keeps times and charts, listens to the keyboard.
// What a screen shows comes as HTML from the server, by a stream that htmx swaps in; see page.py.
"use strict";
(() => {
  const TOKEN = "darkpearl token";
  const byId = (id) => document.getElementById(id);
  const token = () => sessionStorage.getItem(TOKEN);
  const isPage = (url) =>
    url.origin === location.origin && /^\/monitor(\/(?!live|act|static)|$)/.test(url.pathname);

  // Signing in. The token stays in this tab; it goes nowhere but into a header.

  function signOut(why) {
    sessionStorage.removeItem(TOKEN);
    close();
    byId("app").hidden = true;
    byId("sign-in").hidden = false;
    if (why) {
      byId("sign-in-why").textContent = why;
      byId("sign-in-why").classList.add("error");
    }
    document.title = "Sign in · DarkPearl";
    byId("token").focus();
  }

  function signIn(given) {
    sessionStorage.setItem(TOKEN, given.replace(/^Bearer\s+/i, "").trim());
    byId("token").value = "";
    byId("sign-in").hidden = true;
    byId("app").hidden = false;
    open();
  }

  document.addEventListener("htmx:config:request", (event) => {
    event.detail.ctx.request.headers["Authorization"] = `Bearer ${token()}`;
  });
  document.addEventListener("htmx:response:error", (event) => {
    const { response, text } = event.detail.ctx;
    if (response.status === 401) signOut(said(text) || "That token isn't valid any more.");
  });

  const said = (html) =>
    new DOMParser().parseFromString(html, "text/html").querySelector(".detail")?.textContent;

  // Screens. Each is a new <main> that streams itself; the one before closes its stream.

  function screen() {
    const main = document.createElement("main");
    main.id = "screen";
    main.tabIndex = -1;
    if (token() && !byId("app").hidden) {
      const path = location.pathname.replace(/^\/monitor/, "/monitor/live").replace(/\/$/, "");
      main.setAttribute("hx-sse:connect", path + location.search);
      main.setAttribute("hx-swap", "innerMorph");
      main.append(byId("loading").content.cloneNode(true));
    }
    return main;
  }

  const close = () => replace(document.createElement("main"));

  function replace(main) {
    main.id = "screen";
    return htmx.swap({ target: byId("screen"), swap: "outerHTML", text: main.outerHTML });
  }

  async function open(focus) {
    const section = location.pathname.split("/")[2] ?? "";
    for (const link of document.querySelectorAll("nav [data-section]")) {
      if (link.dataset.section === section) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    for (const link of document.querySelectorAll("nav [data-section], .brand")) {
      const cell = new URLSearchParams(location.search).get("cell");
      link.href = link.pathname + (cell ? `?${new URLSearchParams({ cell })}` : "");
    }
    document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
    await replace(screen());
    waiting = focus;
    scrollTo(0, 0);
  }

  let waiting; // what gets the focus once the screen is there
  document.addEventListener("htmx:after:swap", () => {
    tellChosen();
    if (waiting && byId(waiting)) {
      const field = byId(waiting);
      field.focus();
      field.setSelectionRange?.(field.value.length, field.value.length);
      waiting = undefined;
    }
  });

  function go(url, focus) {
    history.pushState(null, "", url);
    open(focus);
  }

  addEventListener("popstate", () => open());
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (!isPage(new URL(link.href))) return;
    event.preventDefault();
    go(link.href);
  });

  // Filters are in the address, so that a screen can be sent to somebody.

  function filter(form, focus) {
    const filters = [...new FormData(form)].filter(([, value]) => value.trim());
    const url = new URL(form.getAttribute("action"), location.origin); // which has the cell, where there are several
    for (const [name, value] of filters) url.searchParams.set(name, value);
    go(url.pathname + url.search, focus);
  }
  document.addEventListener("submit", (event) => {
    if (event.target.matches("[data-filters]")) {
      event.preventDefault();
      filter(event.target, "search");
    } else if (event.target.id === "token-form") {
      event.preventDefault();
      signIn(byId("token").value);
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-filters] select")) filter(event.target.form);
    if (event.target.name === "chosen") tellChosen();
  });

  // Rows that are chosen, for an action on all of them.

  const chosen = () => [...document.querySelectorAll("[name=chosen]:checked")].map((box) => box.value);

  function tellChosen() {
    const bar = document.querySelector("[data-chosen]");
    if (!bar) return;
    const count = chosen().length;
    bar.hidden = !count;
    bar.querySelector("[data-count]").textContent = `${count} chosen`;
  }

  // Dialogs. The server draws them; they stand outside of the screen, so no update touches them.

  document.addEventListener("htmx:after:swap", (event) => {
    if (event.detail.ctx.target?.id !== "dialog-body" || byId("dialog").open) return;
    byId("dialog").showModal();
    byId("dialog").querySelector("textarea")?.focus();
  });
  document.addEventListener("acted", () => byId("dialog").close());
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) byId("dialog").close();
    const bulk = event.target.closest("[data-bulk]");
    if (bulk) {
      const query = new URLSearchParams({ filter: JSON.stringify({ ids: chosen() }) });
      const cell = new URLSearchParams(location.search).get("cell");
      if (cell) query.set("cell", cell);
      htmx.ajax("GET", `/monitor/act/${bulk.dataset.bulk}?${query}`, { target: "#dialog-body", swap: "innerHTML" });
    }
  });

  let fading;
  new MutationObserver(() => {
    clearTimeout(fading);
    fading = setTimeout(() => byId("toast").replaceChildren(), 8000);
  }).observe(byId("toast"), { childList: true });

  // A stream that breaks off comes back by itself; until then, say so.

  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail.status === 401) signOut("That token isn't valid any more.");
    else document.body.classList.add("offline");
  });
  document.addEventListener("htmx:error", () => document.body.classList.add("offline"));
  document.addEventListener("htmx:sse:after:connection", () => document.body.classList.remove("offline"));

  // Whatever is shown stays as its reader left it.

  htmx.registerExtension("keep-open", {
    htmx_before_morph_attr: (element, { attrName }) => attrName !== "open",
  });

  // Keyboard.

  const rows = () => [...document.querySelectorAll("table.rows tbody tr")];
  const handle = (row) => row.querySelector("a[href], input, button");

  function step(by) {
    const all = rows();
    const at = all.findIndex((row) => row.contains(document.activeElement));
    const next = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1)];
    if (next) {
      (next.querySelector("th a[href]") ?? handle(next))?.focus();
      next.scrollIntoView({ block: "nearest" });
    }
  }

  const KEYS = {
    "/": () => byId("search")?.focus(),
    j: () => step(1),
    k: () => step(-1),
    x: () => document.activeElement.closest("tr")?.querySelector("[name=chosen]")?.click(),
    "?": () => byId("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox]), textarea, select");
    if (typing && event.key === "Escape") typing.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (byId("app").hidden || document.querySelector("dialog[open]")) return;
    const link = /^[1-9]$/.test(event.key) && document.querySelectorAll("nav [data-section]")[event.key - 1];
    if (!KEYS[event.key] && !link) return;
    event.preventDefault();
    if (link) go(link.href);
    else KEYS[event.key]();
  });
  byId("help-button").addEventListener("click", KEYS["?"]);
  byId("sign-out").addEventListener("click", () => signOut());

  // Times: how long ago, or how long yet. In a shadow tree, which no update of the screen touches.

  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const times = new Set();
  customElements.define(
    "dp-time",
    class extends HTMLElement {
      static observedAttributes = ["at"];
      constructor() {
        super();
        this.text = this.attachShadow({ mode: "open" }).appendChild(document.createTextNode(""));
      }
      connectedCallback() {
        times.add(this);
        this.tell();
      }
      disconnectedCallback() {
        times.delete(this);
      }
      attributeChangedCallback() {
        this.tell();
      }
      tell() {
        const seconds = (Date.now() - Date.parse(this.getAttribute("at"))) / 1000;
        const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["s", 1];
        const length = `${Math.floor(Math.abs(seconds) / size)} ${unit}`;
        const told = Math.abs(seconds) < 1 ? "now" : seconds > 0 ? `${length} ago` : `in ${length}`;
        if (this.text.data !== told) this.text.data = told;
      }
    },
  );
  setInterval(() => times.forEach((each) => each.tell()), 1000);

  // Charts, by uPlot. In a shadow tree too; the colours are the page's.

  const clock = (seconds) =>
    new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

  customElements.define(
    "dp-chart",
    class extends HTMLElement {
      static observedAttributes = ["data"];
      connectedCallback() {
        const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
        if (!root.firstChild) {
          const style = document.createElement("link");
          style.rel = "stylesheet";
          style.href = "/monitor/static/uPlot.min.css";
          root.append(style, document.createElement("div"));
        }
        this.setAttribute("role", "img");
        this.setAttribute("aria-label", this.getAttribute("label"));
        this.resized = new ResizeObserver(() => this.draw());
        this.resized.observe(this);
        this.scheme = matchMedia("(prefers-color-scheme: dark)");
        this.redraw = () => this.draw(true);
        this.scheme.addEventListener("change", this.redraw);
      }
      disconnectedCallback() {
        this.resized.disconnect();
        this.scheme.removeEventListener("change", this.redraw);
        this.plot?.destroy();
        this.plot = undefined;
      }
      attributeChangedCallback() {
        if (this.plot) this.plot.setData(this.rows);
      }
      get rows() {
        return JSON.parse(this.getAttribute("data"));
      }
      draw(anew) {
        if (anew) this.plot = this.plot?.destroy();
        const width = this.clientWidth;
        if (!width) return;
        if (this.plot) {
          this.plot.setSize({ width, height: 170 });
          return;
        }
        const css = getComputedStyle(this);
        const ink = css.getPropertyValue("--muted");
        const grid = { stroke: css.getPropertyValue("--line"), width: 1 };
        const series = this.getAttribute("names").split(",").map((label, n) => ({
          label,
          stroke: css.getPropertyValue(`--s${n}`),
          width: 1.5,
          points: { show: false },
        }));
        const axis = { stroke: ink, grid, ticks: grid, font: "11px system-ui" };
        this.plot = new uPlot(
          {
            width,
            height: 170,
            legend: { show: false },
            cursor: { drag: { x: false, y: false } },
            scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
            axes: [{ ...axis, values: (_, at) => at.map(clock) }, { ...axis, size: 44 }],
            series: [{}, ...series],
          },
          this.rows,
          this.shadowRoot.lastChild,
        );
      }
    },
  );

  // The beginning.

  if (token()) {
    byId("app").hidden = false;
    open();
  } else {
    signOut();
  }
})();
