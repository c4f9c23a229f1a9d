"""How ling-nano is made: corpus, tokenizer, trainable model, training, export and evaluation."""
