"""The page at `/`: files as they are, with the headers that keep them harmless.

index.html   what there is to see
page.css     how it looks, dark and light, down to 320 pixels
store.js     conversations as trees of messages, in the browser's own store
markdown.js  Markdown -> elements, never HTML: what a model writes is text
page.js      what happens

The policy allows scripts and styles of this server alone, and requests to it alone; nothing inline is run.
"""

from pathlib import Path

_HERE = Path(__file__).parent
_KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_NAMES = {"/": "index.html", "/page.css": "page.css", "/store.js": "store.js", "/markdown.js": "markdown.js", "/page.js": "page.js"}
FILES = {path: ((_HERE / name).read_bytes(), _KINDS[Path(name).suffix]) for path, name in _NAMES.items()}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}
