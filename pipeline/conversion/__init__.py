"""A whole conversion: request, tokenizer, plan, work, manifest."""
