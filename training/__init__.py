"""Makes ling-nano: its corpus, tokenizer, trainable model, training, export and evaluation."""
