"""How well a tokenizer keeps an image: PSNR, SSIM, normalisation."""
