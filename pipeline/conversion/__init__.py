"""A whole run: request, tokenizer, plan, work, manifest."""
