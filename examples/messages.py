"""A stream with Anthropic's SDK: `python examples/messages.py [WORDS]`."""

import os
import sys

import anthropic


def main(words: str) -> None:
    """Print an answer as it arrives, then its finish reason and token counts."""
    client = anthropic.Anthropic(base_url=os.environ.get("LING_URL", "http://127.0.0.1:8000"), api_key="-")
    asked = client.messages.stream(model="auto", max_tokens=64, messages=[{"role": "user", "content": words}])
    with asked as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
        answer = stream.get_final_message()
    print(f"\n{answer.stop_reason}: {answer.usage.input_tokens} tokens in, {answer.usage.output_tokens} out")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Hello")
