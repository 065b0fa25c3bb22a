"""How report.html looks; light or dark as the reader's system is."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --dim: #656c76; --paper: #fff; --card: #f5f6f8;
  --line: #dfe2e7; --good: #1a7f4b; --bad: #b3372f; --maybe: #f3dfa2; --wrong: #f2bdb6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --dim: #99a1ac; --paper: #14171b;
  --card: #1d2127; --line: #333941; --good: #5cc48d; --bad: #ee8379; --maybe: #5a4a12;
  --wrong: #6b2a24; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 20px 60px; max-width: 1040px; color: var(--ink);
  background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 23px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 38px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--dim); font-weight: 600; }
p { margin: 6px 0; }
.note { color: var(--dim); font-size: 13px; max-width: 88ch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 22px 4px 0; vertical-align: top;
  white-space: nowrap; }
th { color: var(--dim); font-weight: 500; font-size: 13px; border-bottom: 1px solid var(--line); }
tbody { border-bottom: 1px solid var(--line); }
.n { text-align: right; }
.better { color: var(--good); }
.worse { color: var(--bad); }
.no, .level { color: var(--dim); }
.wide { overflow-x: auto; }
.card { background: var(--card); border-radius: 8px; padding: 10px; margin: 10px 0; }
.curves { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
.curves .card { margin: 0; }
.curves svg, img { display: block; width: 100%; height: auto; }
video { width: min(100%, 420px); border-radius: 6px; }
audio { height: 36px; max-width: 100%; }
.sounds { display: flex; flex-wrap: wrap; gap: 8px 22px; font-size: 13px; color: var(--dim); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0 12px;
  font: 14px/1.7 ui-monospace, "DejaVu Sans Mono", monospace; }
.maybe { background: var(--maybe); }
.wrong { background: var(--wrong); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border-radius: 8px;
  padding: 10px; font-size: 13px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--dim); }
"""
