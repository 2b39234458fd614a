"""Names that people give by accident or as weapons: readers must show the very same letters, and do nothing."""

ODD_NAMES = [
    "![t](http://x)",
    "[click](javascript:alert(1))",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    r"a\|b",
    "`code` and ``more``",
    "*bold* **bolder** _slanted_ __init__",
    "a_b_c*d*e",
    "~~gone~~ $x_1$ $\\frac$",
    "&lt;b&gt; &#42; R&D",
    "[ref]: http://x",
    "# heading",
    "- item",
    "> quoted",
    "https://example.com www.example.com",
    "=1+1",
    "@SUM(A1)",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "'=1",
    "_hidden",
    "Ümläut 黑色素瘤",
    "x" * 300,
]
BROKEN_NAMES = ["two\nlines", "a\rb", "\tx", "\x1b[31mred", "\u202eright to left"]  # shown with spaces instead
