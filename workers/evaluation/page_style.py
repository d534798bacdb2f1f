"""How the report's page looks: on a screen, on a phone, on paper; always dark on light, as its figures are."""

import base64
import hashlib

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 4rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Verdana, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid #c8c8c8; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
.what { color: #4a4a4a; margin: 0 0 1rem; overflow-wrap: anywhere; }
.findings { padding-left: 1.3rem; max-width: 50rem; }
.findings li { margin: .45rem 0; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; margin: 0; padding: 0; font-size: .9rem; }
a { color: #00538a; }
figure { margin: 1rem 0 1.5rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 54rem; }
figcaption { font-size: .88rem; color: #4a4a4a; max-width: 50rem; margin-top: .35rem; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid #e2e2e2; }
thead th { border-bottom: 1.5px solid #555; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 6rem; max-width: 16rem; overflow-wrap: break-word; }
td { overflow-wrap: break-word; max-width: 24rem; }
td span { white-space: nowrap; }
.spread { color: #4a4a4a; }
td img { display: block; width: 3.5rem; height: 3.5rem; object-fit: contain; image-rendering: pixelated;
  background: #f2f2f2; border: 1px solid #c8c8c8; }
pre { font-size: .78rem; line-height: 1.4; background: #f6f6f6; border: 1px solid #dcdcdc; padding: .75rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details summary { cursor: pointer; font-weight: 500; margin: .5rem 0; }
footer { margin-top: 3rem; font-size: .82rem; color: #4a4a4a; }
@media screen and (max-width: 46rem) {
  figure svg { width: 42rem; max-width: none; }
}
@media print {
  @page { size: A4; margin: 14mm 12mm; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  h2 { margin-top: 1.4rem; break-after: avoid; }
  h3 { break-after: avoid; }
  figure, tr, .findings li { break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: 7.2pt; }
  th, td { padding: .12rem .45rem .12rem 0; }
  tbody th { min-width: 4.5rem; }
  pre { font-size: 7pt; }
  figcaption { font-size: 8.5pt; }
  td img { width: 2.2rem; height: 2.2rem; }
  details::details-content { content-visibility: visible; block-size: auto; }
  a { color: inherit; text-decoration: none; }
}
"""

#: The page brings no script and asks for nothing; its one style element is named by its hash.
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
