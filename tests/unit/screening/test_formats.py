"""Known formats: the file is what the library gives, and each rule finds its own and not what only looks so.

Every example is made of parts: a whole one in a repository is what others search for, too.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fumehood.screening import formats
from fumehood.screening.known import KnownSecrets
from fumehood.screening.search import spans

ROOT = Path(__file__).resolve().parents[3]
NOTHING = KnownSecrets()


def b64(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def letters(count: int, of: str = "Ab3dEf6hIj9k") -> str:
    return (of * (count // len(of) + 1))[:count]


LOWER = "ab3def6hij9k"
HEX = "0a1b2c3d4e5f6789"
PEM = "\n".join(["-----BEGIN " + "RSA PRIVATE KEY-----", letters(64), letters(20), "-----END " + "RSA PRIVATE KEY-----"])
TRUE = {
    "artifactory-token": ("key: ", "AKC" + letters(20), " "),
    "aws-access-key": ("", "AKIA" + "QWERTYUIOPASDFGH", ""),
    "aws-secret-key": ("aws_secret_access_" + "key = '", letters(38) + "/+", "'"),
    "azure-storage-key": ("Account" + "Key=", letters(86) + "==", ";"),
    "basic-auth": ("postgres:" + "//app:", "pa55w0rd", "@db.example.org/x"),
    "cloudant-password": ("cloudant_" + "password: ", letters(64, HEX), ""),
    "cloudant-api-key": ("cloudant_" + "apikey=", "abcdefghijklmnopqrstuvwx", ""),
    "discord-bot-token": ("bot ", "M" + letters(23) + "." + letters(6) + "." + letters(27), ""),
    "github-token": ("", "ghp" + "_" + letters(36), ""),
    "github-fine-grained-token": ("", "github" + "_pat_" + letters(82), ""),
    "gitlab-token": ("", "glpat" + "-" + letters(20), " "),
    "gitlab-runner-registration": ("", "GR1348941" + letters(20), " "),
    "gitlab-ci-token": ("", "glcbt" + "-" + letters(22), " "),
    "gitlab-mail-token": ("", "glimt" + "-" + letters(25), " "),
    "gitlab-trigger-token": ("", "glptt" + "-" + letters(40), " "),
    "gitlab-agent-token": ("", "glagent" + "-" + letters(50), " "),
    "gitlab-oauth-secret": ("", "gloas" + "-" + letters(64), " "),
    "ibm-cloud-key": ("ibm_cloud_api_" + "key: ", letters(44), " "),
    "ibm-cos-key": ("cos_hmac_secret_access_" + "key=", letters(48, HEX), " "),
    "jwt": ("Bearer ", b64({"alg": "HS256"}) + "." + b64({"sub": "me", "n": 1}) + "." + letters(43), " "),
    "mailchimp-key": ("", letters(32, LOWER) + "-us" + "12", ""),
    "npm-auth-token": ("//registry.example.org/:_auth" + "Token=", "npm" + "_" + letters(30), "\n"),
    "npm-token": ("", "npm" + "_" + letters(36), ""),
    "openai-key": ("", "sk" + "-" + letters(20) + "T3Blbk" + "FJ" + letters(20), ""),
    "anthropic-key": ("", "sk" + "-ant-api03-" + letters(90), ""),
    "google-api-key": ("key=", "AIza" + letters(35), "&"),
    "private-key": ("k: ", PEM, "\nafter"),
    "pypi-token": ("", "pypi-" + "AgEIcHlwaS5vcmc" + letters(70), ""),
    "testpypi-token": ("", "pypi-" + "AgENdGVzdC5weXBpLm9yZw" + letters(70), ""),
    "sendgrid-key": ("", "SG" + "." + letters(22) + "." + letters(43), ""),
    "slack-token": ("", "xox" + "b-1234567890-1234567890-" + letters(24), ""),
    "slack-webhook": ("", "https://hooks.slack" + ".com/services/T000/B000/" + letters(24), ""),
    "softlayer-key": ("softlayer_" + "api_key: ", letters(64, LOWER), ""),
    "square-secret": ("", "sq0csp" + "-" + letters(43), ""),
    "stripe-key": ("", "sk" + "_live_" + letters(24), ""),
    "telegram-bot-token": ("bot", "", ""),
    "twilio-key": ("", "SK" + letters(32, LOWER), ""),
}
TRUE["telegram-bot-token"] = ("token ", "123456789" + ":" + letters(35), " ")

NEAR = {
    "artifactory-token": ["AKC" + letters(5) + " ", "MAKC" + letters(20)],
    "aws-access-key": ["AKIA" + "QWERTY", "AKIA" + "qwertyuiopasdfgh"],
    "aws-secret-key": ["'" + letters(40) + "'", "commit " + letters(40, HEX), "aws key = '" + letters(39) + "'", "draws a " + letters(40)],
    "azure-storage-key": ["Account" + "Key=" + letters(20), letters(88)],
    "basic-auth": ["https://example.org:8080/@me", "mailto:a@b", "https://user@example.org/"],
    "cloudant-password": ["sha256: " + letters(64, HEX)],
    "cloudant-api-key": ["cl_" + "token: continuationtokenofpages"],
    "discord-bot-token": ["M" + letters(60), "Module.method.another_name_of_something_long"],
    "github-token": ["ghp" + "_" + letters(20), "GHP" + "_" + letters(36)],
    "gitlab-token": ["glpat" + "-short"],
    "ibm-cloud-key": ["token: " + letters(44), "nextPageToken: " + letters(44)],
    "ibm-cos-key": ["key: " + letters(48, HEX)],
    "jwt": ["eyJust.some.dots", "eyJ" + letters(20) + "." + letters(20) + "." + letters(20)],
    "mailchimp-key": [letters(32, LOWER) + "-usage", letters(31, LOWER) + "-us1"],
    "npm-auth-token": ["//registry.example.org/:_auth" + "Token=${NPM_TOKEN}"],
    "openai-key": ["sk" + "-" + letters(48)],
    "private-key": ["-----BEGIN " + "PUBLIC KEY-----", "how to BEGIN " + "RSA PRIVATE KEY files", "-----BEGIN CERTIFICATE-----"],
    "sendgrid-key": ["SG" + "." + letters(22)],
    "slack-token": ["xox" + "b-word"],
    "stripe-key": ["sk" + "_test_" + letters(24)],
    "telegram-bot-token": ["12:34", "2026-01-01T00:00:00 1234567890123:" + letters(35)],
    "twilio-key": ["SK" + letters(20, LOWER), "AC" + letters(32, LOWER)],
}


def found(text: str) -> list[tuple[str, str]]:
    data = text.encode()
    return [(span.rule, data[span.start : span.end].decode()) for span in spans(data, NOTHING)]


def test_the_file_is_what_the_pinned_library_gives() -> None:
    made = subprocess.run([sys.executable, ROOT / "scripts" / "secret-patterns", "--print"], check=True, capture_output=True, text=True, timeout=60)
    assert made.stdout == (ROOT / "runtime/fumehood/screening/formats.json").read_text(), "run scripts/secret-patterns"


def test_every_translation_says_why_and_names_what_it_replaces() -> None:
    file = json.loads((ROOT / "runtime/fumehood/screening/formats.json").read_text())
    for each in file["formats"]:
        assert each["library"] is None or each["pattern"] == each["library"] or each["why"], each["rule"]
    assert file["source"]["license"] == "Apache-2.0"


def test_every_rule_has_an_example() -> None:
    assert TRUE.keys() == formats.rules()


@pytest.mark.parametrize("rule", TRUE)
def test_a_secret_of_each_format_is_found_and_nothing_around_it(rule: str) -> None:
    before, secret, after = TRUE[rule]
    assert found(f"before {before}{secret}{after} after") == [(rule, secret)]


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in NEAR.items() for text in texts])
def test_what_is_only_near_is_not_found(rule: str, text: str) -> None:
    assert rule not in [name for name, _ in found(f"x {text} x")]


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY=", "export AWS_SECRET_ACCESS_KEY=", '"aws_secret_access_key": "', "aws secret key => "])
def test_an_aws_secret_key_is_known_by_what_stands_before_it_quoted_or_not(name: str) -> None:
    secret = letters(38) + "/+"
    assert found(f"{name}{secret}\n") == [("aws-secret-key", secret)]
    assert found(f"{name}\n{secret}\n") == [], "in the line before"


@pytest.mark.parametrize("escape", ["\\n", "\\t", "\\u000a", '\\"', "\\/"])
@pytest.mark.parametrize("rule", TRUE)
def test_a_secret_right_behind_an_escape_is_found(rule: str, escape: str) -> None:
    before, secret, after = TRUE[rule]
    if before == "" or before[0].isalpha():
        assert (rule, secret) in found(f"line{escape}{before}{secret}{after}")


def test_a_private_key_without_an_end_goes_to_the_end_of_the_text() -> None:
    text = "-----BEGIN " + "OPENSSH PRIVATE KEY-----\n" + letters(64)
    assert found(f"k {text}") == [("private-key", text)]


def test_our_own_markers_are_no_secrets() -> None:
    for rule in formats.rules():
        assert found(f"[secret removed: {rule}]") == []


@pytest.mark.parametrize(
    "text",
    ["a" * 2**20, "://a:" * 2**18, "aws key " * 2**17, "eyJ." * 2**18, "M" * 2**20, "sk-" + "a" * 2**20, "-----BEGIN " + "PRIVATE KEY-----" * 2**16, '"' * 2**20],
)  # fmt: skip
def test_a_text_that_would_be_catastrophic_for_a_backtracking_engine_ends(text: str) -> None:
    list(formats.spans(text.encode()))


@pytest.mark.parametrize("text", ["-----BEGIN ", "ghp" + "_", "aws", "eyJ", "://a:b@", "npm" + "_", ""])
def test_a_long_text_before_a_secret_does_not_hide_it_from_the_set(text: str) -> None:
    secret = "ghp" + "_" + letters(36)
    noise = "".join(chr(33 + (number * 7919 + number // 13) % 90) for number in range(300_000))
    assert secret in [each for rule, each in found(f"{text * 1000}{noise} {secret}") if rule == "github-token"]
