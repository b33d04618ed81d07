"""Secrets: gone from texts, commands, records, error lines, tracebacks, run state and what a leaderboard publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_records import record

from bench.cli.failures import Session, explain
from bench.results.records import encode
from bench.results.redact import redact, redact_command, redact_facts, secret_name
from bench.results.segments import Store
from reports.leaderboard.private import private

SECRET = "Zq3xW8vN5kLm2PtR7yBd"
SPELLED = [
    f"https://user:{SECRET}@host/simple",
    f"https://{SECRET}@host/x?y=1",
    f"https://host/x?token={SECRET}&y=1",
    f"https://host/x?a=1&X-Amz-Signature={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f'{{"authorization": "Basic {SECRET}"}}',
    f"HF_TOKEN={SECRET} bench pull",
    f"'WANDB_API_KEY': '{SECRET}'",
    f"--token={SECRET}",
    f"failed: api_key={SECRET}, retry",
    f"hf_{SECRET}",
    f"ghp_{SECRET}",
]
HARMLESS = [
    "sha256:" + "0123456789abcdef" * 4,
    "commit 9c091bb21b7c1c1d1991bb908d89e4e9dddfe3e0",
    "1.234 nat per token: 0.5; time_to_first_token = 0.01 s, pad_token=<pad>",
    "sparsegpt.percdamp=0.1 --set mixed.key=value owl.lambda=0.08",
    "https://huggingface.co/facebook/opt-125m?download=true",
    "path:/home/a@b/model, tokens=512",
]


@pytest.mark.parametrize("text", SPELLED)
def test_secrets_are_hidden_in_text(text: str) -> None:
    hidden = redact(text, {})
    assert SECRET not in hidden
    assert "***" in hidden
    assert redact(hidden, {}) == hidden


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, {}) == text


def test_values_of_secret_variables_are_hidden_wherever_they_stand() -> None:
    surroundings = {"MY_PASSWORD": SECRET, "MAX_TOKENS": "1234567890", "TOKEN_FILE": "/run/token"}
    assert redact(f"x{SECRET}y 1234567890 /run/token", surroundings) == "x***y 1234567890 /run/token"
    assert secret_name("AWS_SECRET_ACCESS_KEY") and not secret_name("TOKENIZERS_PARALLELISM")
    assert redact_command(["bench", "--token", SECRET, "run"]) == ["bench", "--token", "***", "run"]
    assert redact_facts({"a": [1, {"b": f"hf_{SECRET}"}]}) == {"a": [1, {"b": "***"}]}


def test_nothing_that_is_kept_or_published_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    spoilt: dict[str, Any] = {
        "reason": f"the hub says {SECRET}",
        "warnings": (f"https://u:{SECRET}@h/",),
        "provenance": {"command": ["bench", "--token", SECRET], "deep": [{SECRET: SECRET}]},
        "parameters": {"url": f"https://h/?token={SECRET}"},
    }
    assert SECRET.encode() not in encode(record(**spoilt))
    with Store(tmp_path, create=True) as store:
        store.append(record(status="failed", **spoilt))
    assert SECRET not in json.dumps(private(record(**spoilt)).model_dump(), default=str)
    session = Session(("run", f"--x=https://u:{SECRET}@h/"), tmp_path)
    with pytest.raises(LookupError) as caught:
        raise LookupError(f"Authorization: Bearer {SECRET}")
    assert explain(caught.value, session) == 1
    assert SECRET not in capsys.readouterr().err
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name.startswith("traceback-") for path in kept)
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]
