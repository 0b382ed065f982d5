"""How a page looks: one style sheet for reports and comparisons, light and dark, narrow, wide and printed."""

from __future__ import annotations

from flattrain.lab.figure_style import DARK, PALETTE, variables

LIGHT_INK = f"""--ink: #1f2328; --soft: #59636e; --paper: #ffffff; --panel: #f6f8fa; --line: #b9c1c9;
  --accent: #0b5cad; --warn: #fff3d6; {variables(PALETTE)}"""
DARK_INK = f"""--ink: #e6edf3; --soft: #a3adb8; --paper: #0f1318; --panel: #1a2027; --line: #49525c;
  --accent: #6cb6ff; --warn: #3a2d0a; {variables(DARK)}"""

STYLE = (
    f"""
:root {{ color-scheme: light dark; {LIGHT_INK} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK_INK} }} }}
@media print {{ :root {{ color-scheme: light; {LIGHT_INK} }} }}
"""
    + """
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 66rem; margin: 0 auto; padding: 1.2rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .6rem 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; } .skip:focus { left: 1rem; background: var(--paper); }
.question { font-size: 1.08rem; border-left: 4px solid var(--accent); padding: .1rem 0 .1rem 1rem; }
.warning { background: var(--warn); border: 1px solid var(--soft); border-left-width: 6px;
  padding: .6rem 1rem; }
.verdict { display: inline-block; padding: .1rem .55rem; border-radius: 1rem; color: #fff;
  font-size: .85rem; font-weight: 600; margin-right: .4rem; white-space: nowrap; }
.supported { background: #1a7f37; } .refuted { background: #cf222e; } .undecided { background: #9a6700; }
.void, .missing { background: #7641c9; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding: .2rem .6rem; }
th, td { text-align: left; padding: .45rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top;
  font-weight: normal; }
thead th { font-weight: 600; white-space: nowrap; }
.n { white-space: nowrap; font-variant-numeric: tabular-nums; }
.says { min-width: 15rem; width: 50%; } .claims > tbody > tr > th { min-width: 9rem; }
.changed { background: var(--warn); }
small, .small { color: var(--soft); font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
  gap: 1.6rem 2rem; align-items: start; margin: 1.4rem 0; }
figure { margin: 0; max-width: 36rem; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; color: var(--ink); }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; } figure svg text { fill: currentColor; }
figcaption { font-weight: 600; margin-bottom: .3rem; } 
figcaption small { display: block; font-weight: normal; }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; font-size: .82rem; }
details { border-top: 1px solid var(--line); padding: .1rem 0; }
summary { cursor: pointer; font-weight: 600; padding: .5rem 0; }
@media (max-width: 640px) {
  table.claims, table.claims tbody, table.claims tr, table.claims th, table.claims td { display: block; }
  table.claims caption { display: block; } table.claims .says { width: auto; }
  table.claims thead { position: absolute; left: -100rem; }
  table.claims tr { padding: .7rem 0; border-bottom: 1px solid var(--line); }
  table.claims th, table.claims td { border: 0; padding: .1rem 0; white-space: normal; }
  table.claims td[data-head]::before { content: attr(data-head) ": "; color: var(--soft); font-size: .85rem; }
  table.claims td:empty { display: none; }
  table.claims .n br { display: none; } table.claims .n small { margin-left: .3rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  .wide, pre { overflow: visible; white-space: pre-wrap; } .n { white-space: normal; }
  tr, summary { break-inside: avoid; } h2 { break-after: avoid; }
  .verdict { print-color-adjust: exact; -webkit-print-color-adjust: exact; } .skip { display: none; }
}
"""
)
