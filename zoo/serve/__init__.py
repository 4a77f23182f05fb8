"""A small web page and HTTP API to try tokenizers on one's own photo or clip; `zoo serve` starts it."""
