"""Commands that a user may type once a cluster serves."""

import shlex

_BODY = '{"model": "auto", "stream": true, "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}'


def hints(url: str, api_keys: str | None) -> str:
    """Commands for a cluster at `url`. api_keys: the file of its keys, if it asks for one."""
    curl = f"curl -N {url}/v1/chat/completions -H 'content-type: application/json'"
    lines = []
    if api_keys is not None:
        file = shlex.quote(api_keys)
        curl += ' -H "authorization: Bearer $LING_API_KEY"'
        lines += [
            f"It asks for a key that {file} knows. To make one, and use it:",
            f"  python -m router.access.keys TENANT >> {file}",
            "  export LING_API_KEY=THE_KEY_IT_SHOWS",
            "",
        ]
    lines += ["Try it:", f"  {curl} -d '{_BODY}'", f"  ling chat --url {url}", f"  ling status --url {url}"]
    lines.append(f"Live figures, in a browser: {url}/")
    return "\n".join(lines)
