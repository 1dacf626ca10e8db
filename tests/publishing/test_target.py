"""Where an output goes on the Hub: what is a target, and what looks like a secret."""

from __future__ import annotations

import pytest

from blockexpand.errors import UsageError
from blockexpand.publishing.target import PushTarget, looks_secret, parse_push_target


def test_a_target_with_a_branch() -> None:
    assert parse_push_target("org/name@grown/v2", message="m") == PushTarget(
        repo_id="org/name", branch="grown/v2", message="m"
    )
    assert parse_push_target("name").branch is None


@pytest.mark.parametrize("text", ["a/b/c", "", "@x", "org/name@", "org/name@a b", "o/n@../x"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError, match="no repository id"):
        parse_push_target(text)


def test_a_pull_request_goes_to_the_main_branch() -> None:
    assert parse_push_target("org/name", create_pr=True).create_pr
    with pytest.raises(UsageError, match="leave out the branch or --create-pr"):
        parse_push_target("org/name@x", create_pr=True)


@pytest.mark.parametrize(
    "name",
    [
        "id_rsa",
        "a/b/ID_ED25519",
        "server.pem",
        "private.key",
        ".env",
        "prod.env",
        "credentials.json",
        "aws_credentials.json",
        "secrets.toml",
        "token",
        "token.txt",
        "hf_token",
        "openai_api_key.txt",
        "x/service_account-7.json",
    ],
)
def test_what_looks_like_a_secret(name: str) -> None:
    assert looks_secret(name)


# What lies beside released models.
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "tokens.txt",
        "token_counts.json",
        "keys.md",
        "monkey.jpg",
        "tokenization_kimi.py",
        "id_rsa.pub",
        "environment.yml",
        "configuration.json",
    ],
)
def test_what_does_not(name: str) -> None:
    assert not looks_secret(name)
