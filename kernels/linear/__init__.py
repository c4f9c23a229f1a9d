"""Matrix products over dense and quantized weights."""
