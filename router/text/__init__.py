"""Converts text to tokens and back: template, tokenizer, tool calls, grammars."""
