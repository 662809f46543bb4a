"""Style and scripts of the page."""

STYLE = """
:root { --ink: #1c2026; --soft: #59616d; --paper: #ffffff; --card: #f4f5f7; --line: #d9dde3; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #a0a8b4; --paper: #15181c; --card: #1f242a; --line: #363c45; --link: #7db8f2; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .6rem; margin: 0; }
.cards div { background: var(--card); border-radius: .5rem; padding: .55rem .8rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 0 0 1.4rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
.picture { width: 100%; }
.picture svg { display: block; max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; min-width: 34rem; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: break-word; min-width: 4.5rem; }
td.broken { overflow-wrap: anywhere; }
td.sentence { min-width: 16rem; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem; overflow-x: auto; font: 13px/1.45 ui-monospace,
  monospace; margin: .5rem 0; }
pre.sample { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; }
summary { cursor: pointer; color: var(--link); }
footer { margin: 3rem 0 1rem; color: var(--soft); font-size: .85rem; }
#vg-tooltip-element { font-size: 13px; }
"""

DRAW = """
(function () {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const pictures = read("pictures"), themes = read("themes");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let views = [];
  async function draw() {
    views.forEach((one) => one.finalize());
    const theme = dark.matches ? "dark" : "light";
    const drawn = Object.entries(pictures).map(([id, spec]) => window.vegaEmbed(
      document.getElementById(id), spec,
      { renderer: "svg", actions: false, config: themes[theme], tooltip: { theme }, ast: false }));
    views = await Promise.all(drawn);
    document.documentElement.dataset.drawn = theme;
  }
  dark.addEventListener("change", draw);
  draw();
})();
"""
"""Draws every picture, and again when the page turns light or dark."""

FOLLOW = """
(function () {
  let known = null;
  async function look() {
    try {
      const now = await (await fetch("/state", { cache: "no-store" })).text();
      if (known !== null && known !== now) { window.location.reload(); return; }
      known = now;
    } catch (error) { document.title = "(not served any more) " + document.title.replace(/^\\(.*?\\) /, ""); }
    setTimeout(look, 2000);
  }
  look();
})();
"""
"""Asks the server every two seconds whether the run has gone on."""
