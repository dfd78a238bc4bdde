"""Comments and docstrings cite papers so that a reader finds the place, and never a file that only we have."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.datasets import ROOT

SOURCES = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stem_adaptors").rglob("*.py"), *(ROOT / "infra").rglob("*.py"), ROOT / "cli.py"]
OUR_NOTES = r"\bPROTOCOL\b|\bDESIGN(\.md)?\b|\b(references|reviews|shared)/\w+\.md|\b(seit|peers|newcomers)\.md\b"
PLACE = r"\b([Ss]ection|[Tt]able|[Ee]quation|[Aa]ppendix) \(?[0-9A-C]"
BARE_PLACE = r"\b(SeiT(\+\+)?|DeiT|LPIPS|VQGAN|TiTok|MaskGIT),? \(?\d+\.\d"


def texts() -> Iterator[tuple[str, str]]:
    """Yield (place, text) of each string and each comment."""
    for path in SOURCES:
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type in (tokenize.STRING, tokenize.COMMENT):
                    yield f"{path.relative_to(ROOT)}:{token.start[0]}", " ".join(token.string.split())


def faults(text: str) -> list[str]:
    """Return what is wrong with the citations of a text."""
    found = [f"names our own notes: {match[0]}" for match in re.finditer(OUR_NOTES, text)]
    found += [f"{match[0]}: a number without the word section" for match in re.finditer(BARE_PLACE, text)]
    if (place := re.search(PLACE, text)) and not re.search(r"\bSPEC\b|\b(19|20)\d\d\b", text):
        found.append(f"{place[0]}: of which paper, by whom and of which year?")
    found += [f"{match[0]}: no year" for match in re.finditer(r"\bet al\b(?!.{0,40}\b(19|20)\d\d\b)", text)]
    arxiv = r"(?<!\d{4}, )arXiv|arXiv(?! \d{4}\.\d{4,5})"  # four digits until 2014
    found += [f"{match[0]}: expected `Authors YEAR, arXiv NNNN.NNNNN`" for match in re.finditer(arxiv, text)]
    return found


def test_every_citation_leads_to_its_place() -> None:
    wrong = {place: problems for place, text in texts() if (problems := faults(text))}
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ColorAdapt (SeiT, 4.6)", "SeiT, 4.6: a number"),
        ("as references/seit.md says", "names our own notes"),
        ("the identity (PROTOCOL: Identity)", "names our own notes: PROTOCOL"),
        ("sizes (DeiT, table 1)", "table 1: of which paper"),
        ("as Mentzer et al. say", "et al: no year"),
        ("FSQ (arXiv 2309.15505)", "expected `Authors YEAR"),
        ("FSQ (Mentzer et al. 2023, arXiv abs)", "expected `Authors YEAR"),
    ],
)
def test_a_citation_that_leads_nowhere_is_found(text: str, fault: str) -> None:
    assert [problem for problem in faults(text) if fault in problem], faults(text)


def test_a_whole_citation_is_not_a_fault() -> None:
    assert faults("(Mentzer et al. 2023, arXiv 2309.15505, section 3.1)") == faults("a commit (SPEC section 8)") == []
