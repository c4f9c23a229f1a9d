"""A batch with OpenAI's SDK: one file with many requests. `python examples/batch.py`."""

import json
import os
import time

import openai

CITIES = ("Lisbon", "Oslo", "Quito")


def main() -> None:
    """Upload the requests, wait until all are answered, and print the answers."""
    client = openai.OpenAI(base_url=os.environ.get("LING_URL", "http://127.0.0.1:8000") + "/v1", api_key="-")
    lines = [
        {
            "custom_id": city,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "auto",
                "max_tokens": 32,
                "messages": [{"role": "user", "content": f"Say something about {city}."}],
            },
        }
        for city in CITIES
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    if batch.output_file_id is None:
        raise SystemExit(f"the batch ended as {batch.status}: {batch.errors}")
    for line in client.files.content(batch.output_file_id).text.splitlines():
        answer = json.loads(line)
        print(answer["custom_id"], "->", answer["response"]["body"]["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()
