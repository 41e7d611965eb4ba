r"""A report as one page that needs nothing else: its style is in it, and so are its pictures."""

import html
import math
from collections.abc import Iterable

from ._findings import LEVEL, Coverage, Findings
from ._report_pictures import Picture

STYLE = """
:root{color-scheme:light dark;--ink:#1c2733;--soft:#51606f;--page:#fff;--card:#f3f6f9;--line:#d5dde5;--good:#1e7a46;
--bad:#b3261e;--warn:#8a5a00}
@media(prefers-color-scheme:dark){:root{--ink:#e3e8ee;--soft:#a3b0bd;--page:#14191f;--card:#1e252d;--line:#38434e;
--good:#6fd39b;--bad:#ff8f85;--warn:#f2c063}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:50rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0 1rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
.verdict,.warning{background:var(--card);border-left:.4rem solid;border-radius:.3rem;padding:.8rem 1rem;margin:.8rem 0}
.verdict{font-size:1.15rem;font-weight:600}
.right{border-color:var(--good)}.wrong{border-color:var(--bad)}.warning{border-color:var(--warn)}
.table{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;vertical-align:top;padding:.45rem .6rem .45rem 0;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}
td.number{font-variant-numeric:tabular-nums;white-space:nowrap}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
figure{margin:1.2rem 0}
img{display:block;max-width:100%;height:auto;margin:0 auto}
figcaption,footer,.soft{color:var(--soft);font-size:.92rem}
dt{font-weight:600;margin-top:.6rem}dd{margin:0}
"""

WORDS = {
    "Posterior": "all signals that fit what was measured, each as often as it is likely. A draw is one of them.",
    "Record": "all measurements of one signal, such as one patient. Held-out ones took no part in training.",
    "Standard deviation of the noise": "how far apart two measurements of the same thing typically are.",
    "Interval": "two limits between which a value lies with the promised probability, such as 90 %.",
    "p-value": "how often chance alone would make a result as bad as this, if all were right.",
}


def page(findings: Findings, drawn: Iterable[Picture]) -> str:
    """The page.

    **Arguments:**

    - `findings`: what it says.
    - `drawn`: its pictures.
    """
    wrong = any(x.wrong for x in findings.tests.values())
    sections = [
        "<h1>Can these posteriors be trusted?</h1>",
        f'<p class="verdict {"wrong" if wrong else "right"}">{"✗" if wrong else "✓"} {_text(findings.verdict)}</p>',
        *(f'<p class="warning"><strong>Warning.</strong> {_text(x)}</p>' for x in findings.warnings),
        f"<p>{_text(_summary(findings))}</p>",
        "<h2>What was asked</h2>",
        _tests(findings),
        "<h2>Do intervals hold what they promise?</h2>",
        _coverage(findings),
        *map(_figure, drawn),
        "<h2>Other figures</h2>",
        _others(findings),
        "<h2>What the words mean</h2>",
        "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in WORDS.items()) + "</dl>",
        "<footer><p>That nothing is wrong means that these tests found nothing with these records. They see what "
        "measurements say, and signals where they are known; what no measurement ever looks at stays untested.</p>"
        "<p>Made by stochinv.</p></footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Can these posteriors be trusted?</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _text(words: str) -> str:
    return html.escape(words)


def _summary(findings):
    return (
        f"{findings.records} held-out records were looked at, with {findings.draws} draws of the posterior of each. "
        f"All tests together call a right posterior wrong in {LEVEL:.0%} of cases."
    )


def _table(heads, rows):
    head = "".join(f'<th scope="col">{_text(x)}</th>' for x in heads)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(*cells):
    return "<tr>" + "".join(cells) + "</tr>"


def _cell(words, kind=""):
    return f'<td class="{kind}">{_text(words)}</td>' if kind else f"<td>{_text(words)}</td>"


def _tests(findings):
    rows = []
    for test in findings.tests.values():
        answer = _cell(f"No: {test.found}.", "bad") if test.wrong else _cell("Yes, as far as can be told.", "good")
        rows.append(_row(_cell(test.question), answer, _cell(_share_of_chance(test.adjusted), "number")))
    return _table(("Question", "Answer", "p-value"), rows)


def _share_of_chance(p_value):
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _coverage(findings):
    known = findings.signal_coverage or [None] * len(findings.coverage)
    heads = ("Promised", "Unseen measurements inside") + ("True signals inside",) * (
        findings.signal_coverage is not None
    )
    rows = []
    for seen, signal in zip(findings.coverage, known, strict=True):
        cells = [_cell(f"{seen.level:.0%}", "number"), _cell(_between(seen), "number")]
        rows.append(_row(*cells, *([] if signal is None else [_cell(_between(signal), "number")])))
    return _table(heads, rows) + '<p class="soft">In brackets: where the share may lie, with 95 % probability.</p>'


def _between(found: Coverage) -> str:
    return f"{found.share:.1%} ({found.low:.1%} to {found.high:.1%})"


def _figure(picture):
    alt = html.escape(picture.says, quote=True)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{picture.dark}">'
        f'<img src="{picture.light}" alt="{alt}"></picture><figcaption>{_text(picture.caption)}</figcaption></figure>'
    )


def _others(findings):
    rows = []
    add = lambda name, value, right: rows.append(_row(_cell(name), _cell(value, "number"), _cell(right)))
    if findings.residuals is not None:
        left = findings.residuals
        add(
            "What draws leave of given data, in noise standard deviations",
            f"{left.rms:.3f} ± {left.rms_error:.3f}",
            "1",
        )
        if not math.isnan(left.correlation):
            add("Correlation of neighbours in it", f"{left.correlation:.3f}", "0")
    joints = {"unseen measurements": findings.predictions, "signals": findings.signals}
    for name, joint in joints.items():
        if joint is not None:
            add(f"Spread of {name}, found over right", f"{joint.spread:.2f}", "1")
            add(f"Shift of {name}, in standard deviations", f"{joint.bias:.2f}", "0")
            add(f"Share of {name} far from all draws, beyond chance", f"{joint.missed:.1%}", "0 %")
    if findings.effective is not None:
        add("Draws of the network that fit the data", f"{findings.effective:.1%}", "near 100 %")
    add("Records unlike what was learned from", f"{len(findings.unusual)} of {findings.records}", "about 5 %")
    return _table(("Figure", "Found", "Right"), rows)
