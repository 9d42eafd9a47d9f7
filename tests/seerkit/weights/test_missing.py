"""Parts of a model looked for together: nothing where all is there, else one message with a command for each repository."""

import pytest

from seerkit.weights.checkpoints import NotFoundError
from seerkit.weights.missing import Part, Repository, find_parts

OWN = Repository("someone/Model", ("transformer/*", "vae.safetensors"))
OTHER = Repository("else/Encoder", ("*.json",), hint="ask for access")


def fails(**told):
    def search():
        raise NotFoundError("it is nowhere", **told)

    return search


def found():
    return "weights"


def test_what_is_there_is_not_mentioned():
    find_parts("model", [Part("the transformer", OWN, found)], flags="--ckpt")
    with pytest.raises(FileNotFoundError) as caught:
        find_parts("model", [Part("one", OWN, found), Part("two", OTHER, fails())], flags="--ckpt or --encoder")
    assert str(caught.value) == (
        f"model cannot run without two (looked at {OTHER.folder}, the hub's cache); fetch everything with `hf download "
        f"else/Encoder --include '*.json' --local-dir {OTHER.folder}` (ask for access), or name yours by --ckpt or --encoder"
    )


def test_places_of_the_users_own_and_reasons_are_told_once():
    why = ("someone/Model: no network", "else/Encoder: no network", "else/Encoder: not allowed")
    parts = [
        Part("one", OWN, fails(named="mine (is empty)")),
        Part("two", OWN, fails(failures=why[:1])),
        Part("three", OTHER, fails(failures=why[1:])),
    ]
    with pytest.raises(FileNotFoundError) as caught:
        find_parts("model", parts, flags="--ckpt")
    said = str(caught.value)
    assert "one (looked at mine (is empty)); two (looked at " in said
    assert "download failed: no network, not allowed; fetch" in said
    assert said.count("hf download") == 2
    assert said.count(OWN.remedy) == said.count(OTHER.remedy) == 1


def test_other_errors_pass():
    def damaged():
        raise ValueError("NaN")

    with pytest.raises(ValueError, match="NaN"):
        find_parts("model", [Part("one", OWN, damaged)], flags="--ckpt")
