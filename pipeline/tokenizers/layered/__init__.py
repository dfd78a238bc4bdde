"""The tokenizer `layered-kmeans`: two layers of k-means, fitted to images without labels, whose ids tell what is in an image."""
