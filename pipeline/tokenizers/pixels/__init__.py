"""The tokenizer `pixels`: colour values as ids, after a file format that loses something or after none. Others are measured against it."""
