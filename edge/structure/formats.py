"""`format` of JSON Schema as regular expressions: a part of what RFC 3339, 4122, 5321, 2673 and 3986 allow."""

from __future__ import annotations

YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
LEAP = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
DATE = (
    rf"({YEAR}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    rf"|{LEAP}-02-29)"
)
CLOCK = r"([01]\d|2[0-3]):[0-5]\d"
TIME = rf"{CLOCK}:[0-5]\d(\.\d{{1,6}})?(Z|[+-]{CLOCK})"
BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
NAME = r"[A-Za-z0-9_+-]{1,30}"
HOST = r"([A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?\.){1,3}[A-Za-z]{2,12}"

FORMATS = {
    "date": f"^{DATE}$",
    "time": f"^{TIME}$",
    "date-time": f"^{DATE}T{TIME}$",
    "uuid": r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "email": rf"^{NAME}(\.{NAME}){{0,3}}@{HOST}$",
    "ipv4": rf"^{BYTE}\.{BYTE}\.{BYTE}\.{BYTE}$",
    "uri": rf"^(https?|ftp)://{HOST}(:[1-9]\d{{0,3}})?(/[A-Za-z0-9._~-]{{0,60}}){{0,8}}(\?[A-Za-z0-9._~=&-]{{0,120}})?$",
}
