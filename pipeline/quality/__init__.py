"""Measures of a tokenizer's quality: PSNR, SSIM, normalisation."""
