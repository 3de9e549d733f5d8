"""Patterns of the files of a dataset, relative to its root: `*`, `**/`, `?` and `[..]` as in a glob, and two placeholders.

{case}          marks what names the case; without one, the part of the path with the first wildcard does
{part}          any part that files of a case share ("images{part}/", "labels{part}/")
{case:GLOB}     the same, for what GLOB matches alone ("amos_{case:0[0-4]??}")
"""

import re
from functools import cache
from pathlib import Path

PLACEHOLDER = re.compile(r"\{(case|part)(?::([^{}]*))?\}")
WILDCARDS = {"**/": r"(?:.*/)?", "*": r"[^/]*", "?": r"[^/]"}


def find_cases(root: Path, pattern: str) -> list[tuple[str, Path]]:
    """(what names the case, path) of everything that matches; hidden files such as macOS's "._*" are passed over."""
    found = []
    for path in sorted(root.glob(PLACEHOLDER.sub(lambda place: place[2] or "*", pattern).rstrip("/"))):
        relative = path.relative_to(root)
        case = _case_in(relative.as_posix(), pattern.rstrip("/"))
        hidden = any(part.startswith(".") for part in relative.parts)
        if case and not hidden and (path.is_dir() or not pattern.endswith("/")):
            found.append((case, path))
    return found


def part_of(path: str, pattern: str) -> str:
    """What `{part}` stands for in a path that matches; "" where the pattern has none."""
    match = _expression(pattern.rstrip("/")).fullmatch(path)
    return match["part"] if match and "part" in match.groupdict() else ""


def only_known(pattern: str, *known: str) -> str:
    """The pattern, if it holds no placeholders but these. Raises ValueError."""
    allowed = {f"{{{name}}}" for name in known}
    held = re.findall(r"\{[^}]*\}?", pattern)
    if unknown := sorted({p for p in held if p not in allowed and not (_is_narrowed(p) and f"{{{p[1:5]}}}" in allowed)}):
        raise ValueError(f"{pattern!r} holds {', '.join(unknown)}; {', '.join(f'{{{name}}}' for name in known)} are allowed")
    return pattern


def _is_narrowed(placeholder: str) -> bool:
    return PLACEHOLDER.fullmatch(placeholder) is not None


def _case_in(path: str, pattern: str) -> str | None:
    """What names the case: what `{case}` matches; without one the part of the path with the first wildcard, or else the last part,
    less .nii and .nii.gz. Nothing else goes: an id may hold dots."""
    if PLACEHOLDER.search(pattern) and not (match := _expression(pattern).fullmatch(path)):
        return None
    if "{case" in pattern:
        return match["case"] if match else None
    parts = pattern.split("/")
    place = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
    return re.sub(r"\.nii(\.gz)?$", "", path.split("/")[place])


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    """The glob as a regular expression with a group for each placeholder; where one stands again, the same must stand."""
    text, end, seen = "", 0, set()
    for place in PLACEHOLDER.finditer(pattern):
        name, narrowed = place[1], place[2]
        text += _translated(pattern[end : place.start()])
        text += f"(?P={name})" if name in seen else f"(?P<{name}>{_translated(narrowed) if narrowed else '[^/]+?'})"
        seen.add(name)
        end = place.end()
    return re.compile(text + _translated(pattern[end:]))


def _translated(glob: str) -> str:
    parts = []
    for token in re.findall(r"\*\*/|\*|\?|\[[^]]*\]|[^*?\[]+|.", glob):
        is_set = re.fullmatch(r"\[.+\]", token)
        parts.append(token.replace("[!", "[^") if is_set else WILDCARDS.get(token) or re.escape(token))
    return "".join(parts)
