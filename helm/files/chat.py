"""`helm test`: one streamed chat, which must come to its end."""

import json
import os

import httpx

key = os.environ.get("LING_API_KEY")
body = {"model": "auto", "stream": True, "max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}
with httpx.stream(
    "POST",
    os.environ["LING_URL"] + "/v1/chat/completions",
    json=body,
    headers={"authorization": f"Bearer {key}"} if key else {},
    timeout=120,
) as answer:
    lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert answer.status_code == 200, "".join(lines)
assert lines[-1] == "[DONE]", lines[-1]
events = [json.loads(line) for line in lines[:-1]]
assert not any("error" in event for event in events), lines
print("".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"]))
