"""What the project's own files say of it agrees: version, licence, addresses."""

import re
from pathlib import Path

import gradwatch

ROOT = Path(__file__).parents[2]
CITATION = (ROOT / "CITATION.cff").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()


def cited(field: str) -> str:
    found = re.search(rf"^{field}: (.+)$", CITATION, re.MULTILINE)
    assert found, f"CITATION.cff has no {field}"
    return found[1]


def test_the_citation_names_the_version_of_the_package():
    assert cited("version") == gradwatch.__version__


def test_the_citation_and_the_package_have_the_same_licence_and_addresses():
    assert f'license = "{cited("license")}"' in PROJECT
    assert f'Homepage = "{cited("repository-code")}"' in PROJECT
    assert f'Documentation = "{cited("url")}"' in PROJECT
